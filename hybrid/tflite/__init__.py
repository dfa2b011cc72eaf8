"""TensorFlow Lite files read, bound to shapes, seen as graphs, and divided into head and tail files."""
