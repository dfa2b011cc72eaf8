"""Gateways for the fleet's tests: on loopback, with TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_gateway import LiveGateway
from tests.trust_lab import certificate_in


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    """A gateway of one's own that speaks TLS on loopback, with a certificate that can be renewed."""
    made = certificate_in(tmp_path / "tls")
    flags = ("--tls-cert", str(made.certificate_path), "--tls-key", str(made.key_path))
    with LiveGateway(tmp_path / "gateway", *flags) as running:
        yield running
