"""What people say about campaigns on a command line."""
