"""A thousand boxes whose gateway was away: how many come back at once, and how soon all of them are back.

    python -m tests.reliability.herd [--boxes 1000] [--outage-s 30] [--seed 1]

Each box runs the real following and the real sender of the outbox on virtual time, against the real steering and ingest
of one gateway, which is killed and started again. All calls that a second brings to the gateway are counted.
"""

import argparse
import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from edge_agent.follow.follow import Follow, Leader
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from edge_agent.trust.one_knock import OneKnock
from hybrid.fleet.messages import Assigned, Installed
from tests.reliability.gateway import Gateway, KnownBox
from tests.reliability.history import History
from tests.reliability.machine import DATA, Machine
from tests.reliability.simulated_link import Link, Server, SimulatedCalls
from tests.reliability.virtual_loop import VirtualLoop

STEADY_S = 400.0
"""Long enough for every box to have asked, and to wait for news."""


@dataclass(frozen=True)
class Return:
    """How a herd came back.

    Attributes:
        peak_ratio: most arrivals in a second since the outage ended, over the number of boxes.
        back_p95_s: until 95 % of the boxes had an answer; back_last_s: until all had.
    """

    n_boxes: int
    outage_s: float
    peak_ratio: float
    peak_at_s: float
    back_p50_s: float
    back_p95_s: float
    back_last_s: float
    n_arrivals: int


class Nothing:
    """Installs nothing."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.begun.set()

    def assign(self, models: list[Assigned]) -> None:
        pass

    def installed(self) -> tuple[Installed, ...]:
        return ()

    def hurry(self, *codes: str) -> None:
        pass

    def kept(self) -> list[Assigned]:
        return []


class HerdBox(Machine):
    """A box that follows, and brings one thing a minute."""

    def __init__(self, name: str, loop: VirtualLoop, rng: Random, history: History, link: Link) -> None:
        super().__init__(name, loop, rng, history)
        self.link = link

    async def program(self) -> None:
        assert self.disk is not None
        calls = OneKnock(SimulatedCalls(self.link, self.name), rng=Random(self.rng.random()))
        outbox = Outbox(
            Place(folder=DATA / "outbox", disk=self.disk, connect=self.connect, wall_s=self.wall_s),
            calls=calls,
            rng=Random(self.rng.random()),
        )
        leader = Leader(
            calls=lambda: calls, epoch=lambda: "0" * 32, run="1" * 32, trust_sequence=lambda: -1, take_trust=_nothing
        )
        install: Any = Nothing()
        follow = Follow(
            DATA, self.disk, leader=leader, install=install, rng=Random(self.rng.random()), now_s=self.wall_s
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(follow.run())
            group.create_task(outbox.run())
            group.create_task(self._bring(outbox))

    async def _bring(self, outbox: Outbox) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(30, 90))
            await outbox.put("result", b"seen")


async def _nothing(bundle: bytes) -> None:
    pass


class Arrivals(Link):
    """Notes when calls arrive, and when the first answer after an outage came."""

    seconds: Counter[int]
    back: dict[str, float]

    def note(self, seconds: Counter[int], back: dict[str, float]) -> None:
        self.seconds, self.back = seconds, back

    def _arrive(self, who: str, call: str, request: bytes, came: Any) -> None:
        self.seconds[int(self.loop.now_s)] += 1
        super()._arrive(who, call, request, came)

    async def ask(self, who: str, call: str, request: bytes, timeout_s: float) -> bytes:
        reply = await super().ask(who, call, request, timeout_s)
        self.back.setdefault(who, self.loop.now_s)
        return reply


def herd(n_boxes: int, outage_s: float, seed: int, prepare: Callable[[], None] = lambda: None) -> Return:
    """Let a herd lose its gateway, and come back."""
    loop, rng = VirtualLoop(f"herd {seed}"), Random(f"herd {seed}")
    prepare()
    history = History(loop)
    history.is_closed = True
    server = Server()
    names = [f"{number:032x}" for number in range(n_boxes)]
    gateway = Gateway(loop, Random(rng.random()), history, server, [KnownBox(name, name) for name in names])
    seconds: Counter[int] = Counter()
    back: dict[str, float] = {}

    async def live() -> float:
        gateway.start()
        for name in names:
            link = Arrivals(loop, server, Random(rng.random()))
            link.note(seconds, back)
            loop.call_later(rng.uniform(0, 60), HerdBox(name, loop, Random(rng.random()), history, link).start)
        await asyncio.sleep(STEADY_S)
        gateway.is_held = True
        gateway.end("kill")
        await asyncio.sleep(outage_s)
        gateway.release()
        while not server.is_up:  # noqa: ASYNC110 (a virtual clock costs nothing)
            await asyncio.sleep(0.01)
        seconds.clear()
        back.clear()
        returned_s = loop.now_s
        while len(back) < n_boxes and loop.now_s < returned_s + 600:  # noqa: ASYNC110
            await asyncio.sleep(1)
        return returned_s

    returned_s = loop.run(live())
    times = sorted(at_s - returned_s for at_s in back.values())
    peak_at, peak = max(seconds.items(), key=lambda pair: pair[1])
    times += [float("inf")] * (n_boxes - len(times))
    return Return(
        n_boxes=n_boxes,
        outage_s=outage_s,
        peak_ratio=peak / n_boxes,
        peak_at_s=peak_at - returned_s,
        back_p50_s=times[n_boxes // 2],
        back_p95_s=times[int(0.95 * n_boxes) - 1],
        back_last_s=times[-1],
        n_arrivals=sum(seconds.values()),
    )


def main() -> None:
    """One herd, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--outage-s", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(json.dumps(asdict(herd(chosen.boxes, chosen.outage_s, chosen.seed))))


if __name__ == "__main__":
    main()
