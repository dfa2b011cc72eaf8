"""Secure aggregation: a gateway learns the sum of its devices' updates and of no device its own."""
