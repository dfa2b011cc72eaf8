"""A learned encoder and decoder at a cut, and the entropy coder between them."""
