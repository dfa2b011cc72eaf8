"""Int8 and weights only: numbers of fewer bits in graphs that an engine computes fast."""
