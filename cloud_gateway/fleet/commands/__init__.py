"""`hybrid fleet`: the operator's commands."""
