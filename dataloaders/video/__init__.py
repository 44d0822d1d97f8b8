"""Frames of one video: sampled, decoded in a process of their own or read from a pack, resized as CLIP's own do."""
