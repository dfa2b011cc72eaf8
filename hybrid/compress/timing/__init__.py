"""Seconds of candidates beside the original's, on the device that they are for."""
