"""Datasets of videos and captions."""
