"""Every cut of a graph, and the head and tail models that it makes."""
