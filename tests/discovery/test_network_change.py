"""A device and a gateway in two network namespaces; the cable between them is pulled and put into another network."""

import contextlib
import json
import os
import queue
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybrid.hosting.auth import Tokens
from tests import trust_lab

PATIENCE_S = 40.0
GATEWAY = """
import asyncio, sys
from pathlib import Path
from aiohttp import web
from hybrid.hosting.auth import Tokens
from hybrid.hosting.proof_route import add_proof_route
from hybrid.hosting.tls import load_certificate
from hybrid.discovery.announce import Announcer

async def main(data, certificate):
    app = web.Application()
    tokens = Tokens(data)
    add_proof_route(app, tokens, lambda: certificate.spki_sha256)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 8700, ssl_context=certificate.context()).start()
    properties = {"version": "1", "fp": certificate.certificate_sha256[:16], "id": "ab"}
    announcer = Announcer(name="gw", port=8700, tls=True, properties=properties, poll_s=0.2)
    await announcer.start()
    print("serving", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await announcer.close()
    await runner.cleanup()
    tokens.close()

data = Path(sys.argv[1])
asyncio.run(main(data, load_certificate(data / "certificate.pem", data / "key.pem")))
"""
DEVICE = """
import json, os, sys
from hybrid.discovery.find import find_gateways
finding = find_gateways(
    os.environ["HYBRID_TOKEN"],
    on_found=lambda url, pin: print(json.dumps(["found", url]), flush=True),
    on_lost=lambda url: print(json.dumps(["lost", url]), flush=True),
    poll_s=0.2,
)
sys.stdin.read()
finding.close()
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the command ip (iproute2)"),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class TwoRooms:
    """Two network namespaces, each with nothing but loopback, and a cable that can be put between them."""

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self.gateway, self.device = f"hyg{mark}", f"hyd{mark}"
        self._ends = (f"g{mark}", f"d{mark}")
        self._processes: list[subprocess.Popen[str]] = []

    def open(self) -> None:
        for room in (self.gateway, self.device):
            ip("netns", "add", room)
            ip("-n", room, "link", "set", "lo", "up")

    def connect(self, network: str) -> None:
        """A cable; the gateway's address ends in 1, the device's in 2."""
        ip("link", "add", self._ends[0], "type", "veth", "peer", "name", self._ends[1])
        for room, end, number in zip((self.gateway, self.device), self._ends, (1, 2), strict=True):
            ip("link", "set", end, "netns", room)
            ip("-n", room, "addr", "add", f"{network}.{number}/24", "dev", end)
            ip("-n", room, "link", "set", end, "up")

    def cut(self) -> None:
        ip("-n", self.gateway, "link", "del", self._ends[0])

    def run(self, room: str, code: str, *words: str, **settings: str) -> Callable[[], str]:
        """Runs a program in a room; the returned call waits for its next line."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", room, sys.executable, "-c", code, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | settings,
        )  # fmt: skip
        self._processes.append(process)
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True).start()
        return lambda: lines.get(timeout=PATIENCE_S)

    def close(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for room in (self.gateway, self.device):
            subprocess.run(["ip", "netns", "del", room], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._ends[0]], check=False, capture_output=True)


@pytest.fixture
def rooms() -> Iterator[TwoRooms]:
    made = TwoRooms()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(made.close)
        try:
            made.open()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine allows no network namespaces: {error.stderr.strip()}")
        yield made


def test_the_gateway_is_found_again_after_a_change_of_network(rooms: TwoRooms, tmp_path: Path) -> None:
    with Tokens(tmp_path) as tokens:
        _, token = tokens.create("device", "camera")
    trust_lab.certificate_in(tmp_path)
    gateway_says = rooms.run(rooms.gateway, GATEWAY, str(tmp_path))
    device_says = rooms.run(rooms.device, DEVICE, HYBRID_TOKEN=token)
    assert gateway_says() == "serving\n"
    rooms.connect("10.201.1")
    assert json.loads(device_says()) == ["found", "https://10.201.1.1:8700"]
    rooms.cut()
    rooms.connect("10.201.2")
    told = {tuple(json.loads(device_says())), tuple(json.loads(device_says()))}
    assert told == {("lost", "https://10.201.1.1:8700"), ("found", "https://10.201.2.1:8700")}
