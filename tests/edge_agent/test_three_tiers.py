"""Three hosts in the lab: a device, its box, and the cloud behind it; each hop planned, and one of them gone."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.errors import EmulationUnavailable
from devices.lab.three_hosts import Host, ThreeHosts
from tests import zoo
from tests.live_agent import LiveAgent
from tests.live_gateway import HYBRID, LiveGateway

pytestmark = pytest.mark.root
ROOT = Path(__file__).parent.parent.parent
MODEL = "ppocr_cls"


@pytest.fixture(scope="module")
def hosts() -> Iterator[ThreeHosts]:
    try:
        with ThreeHosts() as hosts:
            hosts.pace(8e6)  # inputs of 110 kB take a tenth of a second to the cloud, and nothing to the box
            yield hosts
    except EmulationUnavailable as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def cloud(hosts: ThreeHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path_factory.mktemp("cloud") / "data", "--no-announce", place=hosts.cloud) as gateway:
        gateway.push(zoo.path(MODEL), "cls")
        yield gateway


def _box(hosts: ThreeHosts, cloud: LiveGateway, data: Path, models: dict[str, Path], *flags: str) -> LiveAgent:
    agent = LiveAgent(data, models, "--token", cloud.token, "--no-announce", *flags, gateway=cloud.url, place=hosts.box)
    # One token for a device opens both.
    adopt = [str(HYBRID), "agent", "token", "import", "--name", "device", "--data", str(data)]
    subprocess.run(adopt, input=cloud.token, text=True, check=True, capture_output=True)
    time.sleep(1.0)  # a running service follows its tokens within a second
    return agent


class Device:
    """A device's program on its host."""

    def __init__(self, host: Host, folder: Path, gateways: list[str], token: str, placement: str) -> None:
        folder.mkdir()
        feeds = {}
        for name, array in zoo.feeds(MODEL).items():
            feeds[name] = str(folder / f"{name}.npy")
            np.save(feeds[name], array)
        self._until = folder / "stop"
        wish = {
            "model": str(zoo.path(MODEL)), "feeds": feeds, "gateways": gateways, "token": token,
            "placement": placement, "until": str(self._until),
        }  # fmt: skip
        self._process = subprocess.Popen(
            host.command([sys.executable, str(ROOT / "tests/edge_agent/device_program.py")]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HYBRID_CACHE": str(folder / "cache")},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        self.prepared = self._next()["prepared"]
        self.answers: list[dict[str, Any]] = []

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the device's program has ended"
        return json.loads(line)

    def until(self, condition: Callable[[dict[str, Any]], bool], patience_s: float = 20.0) -> dict[str, Any]:
        """Reads answers until one is as wanted; every answer on the way is right."""
        end_s = time.monotonic() + patience_s
        while time.monotonic() < end_s:
            answer = self._next()
            assert answer["error"] < 1e-4
            self.answers.append(answer)
            if condition(answer):
                return answer
        raise AssertionError(f"no such answer in {patience_s} s: {Counter(map(_place, self.answers[-50:]))}")

    def stop(self) -> None:
        self._until.touch()
        self._process.communicate(timeout=20)


def _place(answer: dict[str, Any]) -> tuple[str, str]:
    return answer["placement"], answer["gateway"]


def test_devices_work_with_their_box_and_go_on_when_it_dies(
    hosts: ThreeHosts, cloud: LiveGateway, tmp_path: Path
) -> None:
    """One offloads and knows the cloud too, one splits and knows the box alone."""
    with _box(hosts, cloud, tmp_path / "box", {"cls": zoo.path(MODEL)}) as box, ExitStack() as stack:
        offloads = Device(hosts.device, tmp_path / "one", [box.url, cloud.url], cloud.token, "offload")
        stack.callback(offloads.stop)
        splits = Device(hosts.device, tmp_path / "two", [box.url], cloud.token, "split")
        stack.callback(splits.stop)
        assert offloads.prepared
        offloads.until(lambda answer: _place(answer) == ("offload", box.url))
        splits.until(lambda answer: _place(answer) == ("split", box.url))
        box.kill()
        offloads.until(lambda answer: _place(answer) == ("offload", cloud.url))
        splits.until(lambda answer: answer["placement"] == "local")
        assert max(answer["seconds"] for answer in [*offloads.answers, *splits.answers]) < 5.0
        box.start()
        splits.until(lambda answer: answer["gateway"] == box.url, 40.0)


def test_a_model_that_the_box_does_not_hold_goes_through_it_to_the_cloud(
    hosts: ThreeHosts, cloud: LiveGateway, tmp_path: Path
) -> None:
    with _box(hosts, cloud, tmp_path / "box", {}) as box:
        device = Device(hosts.device, tmp_path / "device", [box.url], cloud.token, "offload")
        try:
            assert device.prepared
            device.until(lambda answer: _place(answer) == ("offload", box.url))
            hosts.cut(up=False)
            device.until(lambda answer: answer["placement"] == "local")
            assert max(answer["seconds"] for answer in device.answers) < 5.0
            hosts.cut(up=True)
            device.until(lambda answer: answer["placement"] == "offload", 40.0)
        finally:
            hosts.cut(up=True)
            device.stop()


def test_the_box_plans_its_own_hop_for_what_a_device_offloads(
    hosts: ThreeHosts, cloud: LiveGateway, tmp_path: Path
) -> None:
    """A box that is told to offload sends on what the device gave it: device, box and cloud in one request."""
    with _box(hosts, cloud, tmp_path / "box", {"cls": zoo.path(MODEL)}, "--placement", "offload") as box:
        device = Device(hosts.device, tmp_path / "device", [box.url], cloud.token, "offload")
        try:
            device.until(lambda answer: _place(answer) == ("offload", box.url))
            told: dict[str, Any] = {}
            end_s = time.monotonic() + 20
            while not told.get("offload") and time.monotonic() < end_s:
                device.until(lambda answer: answer["gateway"] == box.url)
                shown = hosts.box.run([str(HYBRID), "agent", "status", "--data", str(box.data), "--json"])
                told = json.loads(shown.stdout)["data"]["models"][0]["by_place"]
            assert told["offload"] > 0
        finally:
            device.stop()
