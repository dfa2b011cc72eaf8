"""Differential privacy of what devices learn together: clip, noise, what it costs, and who has spent how much."""
