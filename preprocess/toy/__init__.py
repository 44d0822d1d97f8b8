"""The toy world: what its videos show, and the published forms that its annotation files can have."""
