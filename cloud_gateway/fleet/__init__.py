"""The fleet as its gateway sees it: boxes, what they should be, and what they bring."""
