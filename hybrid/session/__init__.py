"""The public face: an onnxruntime session that may run in two places."""
