"""What becomes of a step: a signed version of its model, or a file."""
