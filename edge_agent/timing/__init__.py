"""A box times models that are only candidates, for whoever compresses one for it."""
