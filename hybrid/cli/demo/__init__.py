"""The demo: a device and a gateway answer together while the link between them changes."""

from hybrid.cli.demo.command import app

__all__ = ["app"]
