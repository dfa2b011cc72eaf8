"""Parts of the benchmark of learned bottlenecks."""
