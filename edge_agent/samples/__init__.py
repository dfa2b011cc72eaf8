"""Inputs and outputs kept for learning: bounded, encrypted."""
