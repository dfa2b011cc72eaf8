"""Vectors of a layout as few bytes, and back: updates going up, new versions coming down."""
