"""Commands that prepare raw videos for training."""
