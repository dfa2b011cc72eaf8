"""From what was measured to a plan: pure functions of recorded inputs."""
