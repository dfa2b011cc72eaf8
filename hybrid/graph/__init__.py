"""Models as shipped, bound to one shape key, normalised, and seen as a graph of tensors."""
