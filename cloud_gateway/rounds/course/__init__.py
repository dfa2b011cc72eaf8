"""One campaign as it runs: its open round, what boxes bring to it, and the step that it closes with."""
