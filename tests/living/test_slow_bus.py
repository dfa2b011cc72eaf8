"""A system bus that trickles: the whole question has a bound, not each byte."""

import socket
import threading
import time
from pathlib import Path

import pytest

from edge_agent.living import system_bus
from edge_agent.living.system_bus import BusUnavailable, property_number


def test_a_bus_that_trickles_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_bus, "_WITHIN_S", 0.5)
    path = str(tmp_path / "bus")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    ended = threading.Event()

    def trickle() -> None:
        wire, _ = listener.accept()
        with wire:
            for byte in b"OK " + b"0" * 900:
                if ended.wait(0.1):
                    return
                wire.sendall(bytes([byte]))

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    before_s = time.monotonic()
    with pytest.raises(BusUnavailable):
        property_number("org.freedesktop.NetworkManager", "/x", "org.x.Metered", bus=path)
    assert time.monotonic() - before_s < 5.0
    ended.set()
    thread.join(10)
    listener.close()
