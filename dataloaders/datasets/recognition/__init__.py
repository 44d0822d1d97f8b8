"""Datasets of videos and classes."""
