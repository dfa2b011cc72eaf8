"""Tensors and models to fewer bytes: feature codecs, quantization, pruning, training, bottlenecks, export to TFLite."""
