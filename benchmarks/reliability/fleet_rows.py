"""Rows R14 and R15: boxes of other releases, and two hundred boxes whose gateway was away for half a minute.

python -m benchmarks.reliability.fleet_rows [--seed 7] [--boxes 200] [--outage-s 30]
"""

import argparse
import asyncio
import functools
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks.reliability.table import Finding, keep
from hybrid.errors import HybridError, Overloaded, VersionUnsupported
from hybrid.fleet.messages import PROTOCOL, IngestCall, Item, StateCall
from tests.live_gateway import LiveGateway

COMMAND = "python -m benchmarks.reliability.fleet_rows --seed {seed}"
PEAK_RATIO, BACK_S = 0.10, 60.0


class LaterItem(Item, frozen=True, kw_only=True):
    """An item of a later release: it knows more."""

    colour: str = "blue"


async def _skew(folder: Path) -> dict[str, str]:
    """What each protocol number gets from this gateway: `served`, or an error's code."""
    from hashlib import sha256

    from tests.enrolled_box import enrolled_box

    found = {}
    with LiveGateway(folder / "gateway", "--no-announce") as gateway:
        async with enrolled_box(folder / "box", gateway) as box:
            for number in range(PROTOCOL - 3, PROTOCOL + 3):
                body = b"word"
                item = LaterItem(stream="result", seq=0, kind="result", digest=sha256(body).hexdigest(), body=body)
                state = StateCall(known="", epoch=box.epoch, run=box.run_id, protocol=number)
                ingest = IngestCall(epoch=f"{number + 8:032x}", items=(item,), protocol=number)
                found[f"state N{number - PROTOCOL:+d}"] = await _answer(box.calls.state(state))
                found[f"ingest N{number - PROTOCOL:+d}"] = await _answer(box.calls.ingest(ingest))
    return found


async def _answer(call: Awaitable[object]) -> str:
    """`served`, or the code of the refusal."""
    try:
        await call
    except HybridError as exc:
        return exc.code
    return "served"


def version_skew(seed: int) -> Finding:
    """State and ingest calls that say other protocol numbers, with fields that this gateway does not know."""
    with tempfile.TemporaryDirectory() as place:
        found = asyncio.run(_skew(Path(place)))
    served, too_old = {"N+0"}, {"N-3"}
    bad = [
        f"{name}: {what}"
        for name, what in found.items()
        if what not in ("served", VersionUnsupported.code)
        or (what != "served" and name.split()[1] in served)
        or (what == "served" and name.split()[1] in too_old)
    ]
    told = "; ".join(f"{name} {what}" for name, what in found.items())
    return Finding(
        row="R14",
        fault="boxes of releases N-3 to N+2 (messages with other protocol numbers, items with unknown fields)",
        promise="served, or the typed `version_unsupported` and nothing stored; never misread",
        result=told if not bad else f"unexpected: {'; '.join(bad)} (all: {told})",
        held=not bad,
        times=len(found),
        seed=seed,
        command=COMMAND.format(seed=seed),
    )


class Knocks:
    """Fleet calls of one box, counted by the second in which they were made."""

    def __init__(self, calls: Any, name: str, seconds: Counter[int], back: dict[str, float]) -> None:
        self._calls, self._name, self._seconds, self._back = calls, name, seconds, back

    def __getattr__(self, call: str) -> Any:
        inner = getattr(self._calls, call)

        async def counted(*words: Any) -> Any:
            now_s = asyncio.get_running_loop().time()
            self._seconds[int(now_s)] += 1
            answer = await inner(*words)
            self._back.setdefault(self._name, asyncio.get_running_loop().time())
            return answer

        return counted


async def _herd(folder: Path, n_boxes: int, outage_s: float, seed: int) -> tuple[Counter[int], list[float], float]:
    """Attempts by second since the gateway was back, when each box was, and that moment."""
    from tests.enrolled_box import make_token

    rng, seconds, back = random.Random(seed), Counter[int](), dict[str, float]()
    gateway = await asyncio.to_thread(LiveGateway, folder / "gateway", "--no-announce")
    loop = asyncio.get_running_loop()
    try:
        token = await make_token(gateway, count=n_boxes)
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            tasks = []
            for number in range(n_boxes):
                name = f"box{number}"
                boxes = functools.partial(_box, folder / name, gateway, token, rng, seconds, back)
                tasks.append(group.create_task(_live(boxes, rng)))
                await asyncio.sleep(0.05)
            await _until(lambda: len(back) == n_boxes, 120)
            await asyncio.sleep(5)
            gateway.kill()
            await asyncio.sleep(outage_s)
            await asyncio.to_thread(gateway.start)
            seconds.clear()
            back.clear()
            returned_s = loop.time()
            await _until(lambda: len(back) == n_boxes, 150)
            for task in tasks:
                task.cancel()
        return seconds, sorted(at_s - returned_s for at_s in back.values()), returned_s
    finally:
        gateway.stop()


async def _until(true: Callable[[], bool], limit_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not true():  # noqa: ASYNC110 (it looks at what many tasks do)
                await asyncio.sleep(0.2)


async def _live(boxes: Callable[[], AsyncIterator[Any]], rng: random.Random) -> None:
    while True:
        try:
            async for box in boxes():
                await box.run()
        except Overloaded:  # two hundred enrolments from one address are more than a gateway takes at once
            await asyncio.sleep(rng.uniform(0.5, 5.0))


async def _box(  # noqa: PLR0917 (one call, by its names)
    data: Path, gateway: LiveGateway, token: Any, rng: random.Random, seconds: Counter[int], back: dict[str, float]
) -> AsyncIterator[Any]:
    """The real following of a real box over its real link."""
    from edge_agent.disk import RealDisk
    from edge_agent.follow.follow import Follow, Leader
    from edge_agent.trust.one_knock import OneKnock
    from tests.enrolled_box import enrolled_box
    from tests.reliability.herd import Nothing

    async with enrolled_box(data, gateway, token=token) as access:
        calls: Any = OneKnock(Knocks(access.calls, data.name, seconds, back), rng=rng)
        leader = Leader(
            calls=lambda: calls,
            epoch=lambda: access.epoch,
            run=access.run_id,
            trust_sequence=lambda: 1 << 30,
            take_trust=access.take_trust,
        )
        install: Any = Nothing()
        yield Follow(data, RealDisk(), leader=leader, install=install, rng=rng, now_s=lambda: 0.0)


def real_herd(seed: int, n_boxes: int, outage_s: float) -> Finding:
    """Real boxes' links and a real gateway process."""
    with tempfile.TemporaryDirectory() as place:
        seconds, back, returned_s = asyncio.run(_herd(Path(place), n_boxes, outage_s, seed))
    at_s, peak = max(seconds.items(), key=lambda pair: pair[1], default=(0, 0))
    p95_s = back[int(0.95 * n_boxes) - 1] if len(back) >= int(0.95 * n_boxes) else float("inf")
    return Finding(
        row="R15",
        fault=f"gateway away for {outage_s:.0f} s under {n_boxes} real connections (access tokens kept, following)",
        promise=f"P5: at most {PEAK_RATIO:.0%} of the boxes a second, 95 % back in {BACK_S:.0f} s",
        result=(
            f"peak {peak / n_boxes:.1%} of them in second {at_s - int(returned_s)}, 95 % back after {p95_s:.1f} s; "
            f"{len(back)} of {n_boxes} back"
        ),
        held=peak <= PEAK_RATIO * n_boxes and p95_s < BACK_S and len(back) == n_boxes,
        times=1,
        seed=seed,
        command=COMMAND.format(seed=seed),
    )


def simulated_herd(seed: int) -> Finding:
    """A thousand boxes on virtual time."""
    from tests.reliability.herd import herd

    found = [herd(1000, 30.0, seed)]
    peak, p95_s = max(one.peak_ratio for one in found), max(one.back_p95_s for one in found)
    return Finding(
        row="R15",
        fault="gateway away for 30 s under 1,000 boxes on virtual time (real following, outbox, steering, ingest)",
        promise=f"P5: at most {PEAK_RATIO:.0%} of the boxes a second, 95 % back in {BACK_S:.0f} s",
        result=(
            f"most calls in a second: {', '.join(f'{one.peak_ratio:.1%}' for one in found)} of N; 95 % back after "
            f"{', '.join(f'{one.back_p95_s:.1f}' for one in found)} s"
        ),
        held=peak <= PEAK_RATIO and p95_s < BACK_S,
        times=len(found),
        seed=seed,
        command=COMMAND.format(seed=seed),
    )


def main() -> int:
    """All of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--boxes", type=int, default=200)
    parser.add_argument("--outage-s", type=float, default=30.0)
    parser.add_argument("--only", choices=("skew", "real", "simulated"), action="append")
    chosen = parser.parse_args()
    rows: dict[str, Callable[[], Finding]] = {
        "skew": lambda: version_skew(chosen.seed),
        "real": lambda: real_herd(chosen.seed, chosen.boxes, chosen.outage_s),
        "simulated": lambda: simulated_herd(chosen.seed),
    }
    for name in chosen.only or rows:
        finding = rows[name]()
        keep(f"fleet_{name}", [finding])
        print(f"{finding.row} {finding.verdict}: {finding.result}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
