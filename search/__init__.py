"""Finding moments in one's own videos: an index of overlapping windows, exact search by text, and a local page."""
