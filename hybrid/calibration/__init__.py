"""What a lossy codec costs in accuracy: measured on data, stored beside the model, signed, and trusted only so."""
