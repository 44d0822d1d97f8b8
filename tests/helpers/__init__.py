"""What the tests of several files share: inputs, faults, ways to start the programs, ways to read what runs leave."""

# Before decord, which the programs import: once its libraries are loaded, PyAV's VP9 encoder cannot be opened.
import av  # noqa: F401
import pytest

# their assertions are said as those of the tests are
pytest.register_assert_rewrite("helpers.launching", "helpers.runs")
