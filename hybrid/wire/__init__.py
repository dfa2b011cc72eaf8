"""Bytes in, messages out: the inference protocol and its framing, without I/O."""
