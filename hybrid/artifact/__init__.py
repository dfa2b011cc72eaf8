"""A model version with all that belongs to it, named by its digests."""
