"""A real agent process for tests and benchmarks."""

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.live_gateway import LiveGateway

if TYPE_CHECKING:
    from devices.lab.lab import Place


class LiveAgent(LiveGateway):
    """`hybrid agent serve` with local models, on loopback or somewhere in a lab.

    Args:
        data: its folder; kept between `kill` and `start`.
        models: files by name.
        gateway: URL of its gateway, or none.
        flags: further flags.
        place: where in a lab it runs; None for loopback.
    """

    service = "agent"

    def __init__(
        self,
        data: Path,
        models: Mapping[str, Path],
        *flags: str,
        gateway: str = "none",
        place: "Place | None" = None,
    ) -> None:
        named = ",".join(f"{name}={path}" for name, path in models.items())
        super().__init__(data, "--gateway", gateway, *(("--model", named) if named else ()), *flags, place=place)

    def status(self) -> dict[str, Any]:
        """What it says of itself, on loopback."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        call = urllib.request.Request(f"{self.url}/v2/hybrid/agent/status", headers=headers)
        with urllib.request.urlopen(call, timeout=10) as answer:
            return json.load(answer)

    def model(self, name: str) -> dict[str, Any]:
        """What it says of one model."""
        return next(model for model in self.status()["models"] if model["name"] == name)
