"""What every part of the project may use, and which uses none of them: errors, settings, files, seeds."""
