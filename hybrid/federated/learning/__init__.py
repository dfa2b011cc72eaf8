"""Training on a box: a model's head as numpy, features from its engine, labels, steps that yield, and counts."""
