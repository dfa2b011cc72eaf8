"""Tensors and models to fewer bytes: feature codecs, quantization, pruning, training, learned bottlenecks, export to TFLite."""
