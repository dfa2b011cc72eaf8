"""Fewer channels: structured pruning of torch modules and of ONNX graphs."""
