"""Requests divided between device and gateway: at which cut, by which head and codec, and what of it is shipped."""
