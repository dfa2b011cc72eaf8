"""Parts of the benchmark of learning together."""
