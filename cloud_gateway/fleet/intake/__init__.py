"""What boxes bring: stored before it is acknowledged, deferred inference computed, samples and results kept."""
