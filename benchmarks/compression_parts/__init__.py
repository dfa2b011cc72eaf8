"""What `benchmarks/compression.py` is made of: tasks, other tools, timing, and one module a claim."""
