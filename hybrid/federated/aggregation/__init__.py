"""Many updates as one: gates, means, robust rules, and the server's optimisers."""
