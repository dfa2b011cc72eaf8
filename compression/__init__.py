"""Tensors to fewer bytes: feature codecs and, later, quantization, pruning, distillation and bottlenecks."""
