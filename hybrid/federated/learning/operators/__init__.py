"""Operators of heads in numpy: what each answers, and how a gradient goes back through it."""
