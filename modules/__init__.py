"""The model, its losses and metrics, and the trainer."""
