"""Ten agents and a gateway, all real processes: bytes on the wire, seconds a round, and what learning costs an agent.

Bytes are counted by a relay that all boxes connect through: what TCP carries, TLS and HTTP with it. The seconds are of
a second run without the relay. Each box is its own process with its own key, token, samples and disk, on two cores with
the gateway.
"""

import asyncio
import io
import json
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np
import onnx
import psutil
from onnx import helper

from benchmarks.agent_idle import pss_mb
from hybrid.artifact.trainable import trainable_artifact
from tests.enrolled_box import ask, enrolled_box, make_token
from tests.federated import digits_task
from tests.federated.learning_making import reference_model
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway

CAMPAIGNS: Final = "/v2/hybrid/rounds/campaigns"
EVALUATION: Final = "/v2/hybrid/rounds/evaluation"
N_BOXES: Final = digits_task.N_DEVICES
PAYLOAD_BYTES: Final = 4 * digits_task.LAYOUT.n_elements
MODEL: Final = "digits"
FIRST_ROUNDS: Final = 2
"""Rounds that are not counted: boxes fetch what a campaign is, connections open."""

_LIMIT_S: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """One campaign of all boxes.

    Attributes:
        n_rounds: that were counted, without the first ones.
        up_bytes, down_bytes: of one round and all boxes, as TCP carried them; medians; 0 where nobody counted.
        round_s: median from one round's begin to the next one's.
        core_s: of one agent and task.
        gateway_core_s: of the gateway and one round of all boxes.
        accuracy: of the last step, on the gateway's set.
        to_target: rounds until 95 %, 0 for never.
    """

    n_rounds: int
    up_bytes: float
    down_bytes: float
    round_s: float
    core_s: float
    gateway_core_s: float
    accuracy: float
    to_target: int


class Relay:
    """Carries connections to the gateway and counts both ways, in a thread of its own, for as long as the program."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.up = 0
        self.down = 0
        self.port = 0
        self._listens = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        if not self._listens.wait(10):
            raise RuntimeError("the relay did not come up")

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await server.serve_forever()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)

        async def one_way(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_up: bool) -> None:
            try:
                while data := await source.read(1 << 16):
                    if is_up:
                        self.up += len(data)
                    else:
                        self.down += len(data)
                    sink.write(data)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.close()

        await asyncio.gather(
            one_way(reader, far_writer, is_up=True), one_way(far_reader, writer, is_up=False), return_exceptions=True
        )


class Fleet:
    """A gateway over TLS, ten enrolled boxes with their samples, and what is measured of them."""

    def __init__(self, folder: Path, stack: ExitStack, *, seed: int) -> None:
        self._folder = folder
        self._train, self._test = digits_task.all_digits()
        self._parts = digits_task.by_dirichlet(self._train.labels, 0.5, seed)
        model = reference_model(folder / "model", seed=seed)
        self.gateway = stack.enter_context(LiveGateway(folder / "gateway", "--host", "0.0.0.0", "--no-announce"))
        self.gateway.url = self.gateway.url.replace("0.0.0.0", "127.0.0.1")
        self._push(model)
        self.agents: list[LiveAgent] = []
        self._stack = stack

    def _push(self, path: Path) -> None:
        """All 4,810 weights learn: the body is the pixels as they are."""
        model = onnx.load(path)
        model.graph.node[0].input[0] = "pixels"
        model.graph.node.insert(0, helper.make_node("Identity", ["image"], ["pixels"], name="body"))
        onnx.save(model, self._folder / "digits.onnx")
        made = trainable_artifact(self._folder / "digits.onnx", self._folder / "artifact", name=MODEL, head="pixels")
        self.gateway.push(made.folder, MODEL)

    async def enrol(self, port: int) -> None:
        """Lets the boxes in, by a URL with this port."""
        url = f"https://127.0.0.1:{port}"
        token = await make_token(self.gateway, count=N_BOXES, url=url)
        for box in range(N_BOXES):
            async with enrolled_box(self._folder / f"box{box}", self.gateway, token=token):
                pass
        await ask(self.gateway, "POST", "/v2/hybrid/fleet/assignments", {"model": MODEL})

    def start(self, *flags: str) -> None:
        """Starts all agents and waits until the model answers on each."""
        for box in range(N_BOXES):
            agent = LiveAgent(self._folder / f"box{box}", {}, "--no-announce", *flags, gateway="auto")
            self._stack.callback(agent.stop)
            self.agents.append(agent)
        _until(lambda: all(agent.status()["models"] for agent in self.agents))

    def bring(self) -> None:
        """Every box gets its labelled samples, as programs bring them."""
        for agent, indices in zip(self.agents, self._parts, strict=True):
            for index in indices:
                _bring(agent, self._train.pixels[index], int(self._train.labels[index]))

    async def evaluation(self) -> str:
        """Brings the gateway's set."""
        content = io.BytesIO()
        np.savez(content, image=self._test.pixels, labels=self._test.labels)
        headers = {"Authorization": f"Bearer {self.gateway.token}"}
        async with (
            aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=False)) as session,
            session.put(self.gateway.url + EVALUATION, data=content.getvalue()) as response,
        ):
            told = await response.json()
            return str(told["sha256"])

    async def learn(self, rounds: int, coding: str, relay: Relay | None) -> Learned:
        """One campaign from its order to its end."""
        order = {
            "model": MODEL, "version": "", "variant": "", "rounds": rounds, "goal": N_BOXES, "least": N_BOXES,
            "over_selection": 1.0, "coding": {"up": coding, "down": coding}, "promotion": {"policy": "none"},
        }  # fmt: skip
        watched = [psutil.Process(agent.pid) for agent in self.agents]
        before_s, gateway = sum(_core_s(process) for process in watched), psutil.Process(self.gateway.pid)
        gateway_before_s = _core_s(gateway)
        wish = {"order": order, "evaluation": await self.evaluation()}
        campaign = (await ask(self.gateway, "POST", CAMPAIGNS, wish))["id"]
        counts: dict[int, tuple[int, int]] = {}
        begun_s = time.monotonic()
        while True:
            told = await ask(self.gateway, "GET", f"{CAMPAIGNS}/{campaign}")
            if relay is not None:
                counts[told["step"]] = (relay.up, relay.down)
            if told["state"] == "completed":
                break
            if time.monotonic() - begun_s > _LIMIT_S or told["state"] != "running":
                raise RuntimeError(f"the campaign is {told['state']} at step {told['step']}: {told['reason']}")
            await asyncio.sleep(0.01 if relay is not None else 0.25)
        core_s = (sum(_core_s(process) for process in watched) - before_s) / (rounds * N_BOXES)
        cores_s = (core_s, (_core_s(gateway) - gateway_before_s) / rounds)
        return _learned(await ask(self.gateway, "GET", f"{CAMPAIGNS}/{campaign}/report"), counts, cores_s)


def _learned(report: dict[str, Any], counts: dict[int, tuple[int, int]], cores_s: tuple[float, float]) -> Learned:
    rounds = [one for one in report["campaign"]["rounds"] if one["state"] == "closed"]
    begins = [one["opened_s"] for one in rounds[FIRST_ROUNDS:]]
    steps = sorted(step for step in counts if step >= FIRST_ROUNDS)
    up = down = 0.0
    if len(steps) > 1:
        n_steps = steps[-1] - steps[0]
        up, down = ((counts[steps[-1]][way] - counts[steps[0]][way]) / n_steps for way in (0, 1))
    accuracies = [one["accuracy"] or 0.0 for one in rounds]
    return Learned(
        n_rounds=len(begins),
        up_bytes=up,
        down_bytes=down,
        round_s=statistics.median(later - one for one, later in pairwise(begins)),
        core_s=cores_s[0],
        gateway_core_s=cores_s[1],
        accuracy=accuracies[-1],
        to_target=next((at for at, accuracy in enumerate(accuracies, 1) if accuracy >= 0.95), 0),
    )


def _core_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _bring(agent: LiveAgent, pixels: np.ndarray, label: int) -> None:
    tensor = {"name": "image", "shape": [1, len(pixels)], "datatype": "FP32", "data": pixels.tolist()}
    call = urllib.request.Request(
        f"{agent.url}/v2/hybrid/agent/samples/models/{MODEL}",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Hybrid-Label": json.dumps({"class": label}), "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=30) as answer:
        answer.read()


def _until(fact: Any, within_s: float = 90.0) -> None:
    end_s = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > end_s:
            raise RuntimeError("the boxes did not become ready in time")
        time.sleep(0.2)


@contextmanager
def fleet(*, seed: int = 0, is_counted: bool = False) -> Iterator[tuple[Fleet, Relay | None, asyncio.Runner]]:
    """A whole fleet until the block ends; with a relay where bytes are counted."""
    with tempfile.TemporaryDirectory(prefix="federated-") as kept, ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        made = Fleet(Path(kept), stack, seed=seed)
        relay = Relay(made.gateway.port) if is_counted else None
        runner.run(made.enrol(relay.port if relay is not None else made.gateway.port))
        yield made, relay, runner


def memory_mb(agents: Sequence[LiveAgent]) -> float:
    """Median proportional set size of an agent."""
    return statistics.median(pss_mb(agent.pid) for agent in agents)
