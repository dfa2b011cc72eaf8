"""The one command, hybrid."""
