"""`hybrid doctor`: what this machine is, what works here, and how to mend what does not."""

from hybrid.cli.doctor.command import app

__all__ = ["app"]
