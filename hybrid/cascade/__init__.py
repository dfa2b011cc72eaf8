"""A small model answers where it is sure, a large one elsewhere: how sure is sure, and how the others are sent."""
