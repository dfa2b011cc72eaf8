"""What a thousand boxes that wait for news cost the gateway: memory and processor, and how soon they hear it.

A process of its own serves the real route, listener and steering; this one holds a connection a box, each with one
state call that waits. Memory is what the server's private memory grew by, processor time what it used meanwhile.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from benchmarks.report import Bar, Record, publish, spread

HELD_S = 20.0
BODY = json.dumps({"known": "%s", "epoch": "e", "run": "r", "wait_s": 300.0, "trust_sequence": -1})


def main() -> int:
    """Measure; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--serve", type=Path, default=None, help="(the server's process) its folder")
    given = parser.parse_args()
    if given.serve is not None:
        asyncio.run(_serve(given.serve, given.boxes))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.waiting_polls", "--serve", folder, "--boxes", str(given.boxes)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            found = asyncio.run(_measure(server, port, given.boxes))
            server.terminate()
    return _publish(given.boxes, found)


def _publish(n: int, found: dict[str, float]) -> int:
    rows: list[list[str | float]] = [
        ["memory of one box that waits, its connection among it, KiB", found["box_kib"]],
        ["of this the waiting call, KiB", found["kib"]],
        ["processor while all wait, % of a core", found["idle_percent"]],
        ["processor for one call that is answered at once, ms", found["call_ms"]],
        ["an order for all boxes: median until its box hears it, ms", 1e3 * found["all_p50_s"]],
        ["the same, the slowest one in a hundred, ms", 1e3 * found["all_p99_s"]],
        ["an order for one box: until it hears it, ms", 1e3 * found["one_s"]],
        ["other calls answered by an order for one box", found["n_others"]],
    ]
    bars = [
        Bar(name="memory of one box that waits", measured=found["box_kib"], limit=64.0, unit=" KiB"),
        Bar(name="processor while all wait", measured=found["idle_percent"], limit=1.0, unit=" % of a core"),
        Bar(name="others answered by an order for one box", measured=found["n_others"], limit=0.0),
    ]
    return publish(
        Record(
            name="waiting_polls",
            claim="A thousand boxes that wait cost little, and hear at once what concerns them",
            method=f"{n} connections from one process, one waiting state call each; server and client share this "
            f"machine, so that times are upper bounds. Processor: over {HELD_S:.0f} s of waiting. Plain HTTP: TLS adds "
            "its buffers.",
            seed=0,
            columns=("what", "measured"),
            rows=rows,
            bars=bars,
        )
    )


async def _measure(server: "subprocess.Popen[str]", port: int, n: int) -> dict[str, float]:
    process = psutil.Process(server.pid)
    boxes = [f"{at:032x}" for at in range(n)]
    bare = process.memory_full_info().uss
    links = [await asyncio.open_connection("127.0.0.1", port) for _ in boxes]

    async def ask(at: int, known: str) -> str:
        reader, writer = links[at]
        body = (BODY % known).encode()
        head = f"POST /v2/hybrid/fleet/state HTTP/1.1\r\nHost: x\r\nX-Box: {boxes[at]}\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()
        headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(headers.partition("content-length:")[2].partition("\r\n")[0])
        return str(json.loads(await reader.readexactly(length))["generation"])

    known = [await ask(at, "") for at in range(n)]
    busy_s = _cpu_s(process)
    for at in range(n):
        await ask(at, "")
    call_ms = 1e3 * (_cpu_s(process) - busy_s) / n
    before = process.memory_full_info().uss
    waiting = [asyncio.create_task(_timed(ask, at, known[at])) for at in range(n)]
    await asyncio.sleep(3.0)
    held = process.memory_full_info().uss
    busy_s = _cpu_s(process)
    await asyncio.sleep(HELD_S)
    idle = (_cpu_s(process) - busy_s) / HELD_S
    ordered_s = _order(server, "one")
    one_s = (await waiting[n - 1])[1] - ordered_s
    await asyncio.sleep(0.5)
    n_others = sum(task.done() for task in waiting) - 1
    ordered_s = _order(server, "all")
    heard = spread([(await task)[1] - ordered_s for task in waiting[:-1]])
    for _, writer in links:
        writer.close()
    return {
        "kib": (held - before) / n / 1024.0,
        "box_kib": (held - bare) / n / 1024.0,
        "idle_percent": 100.0 * idle,
        "call_ms": call_ms,
        "one_s": one_s,
        "n_others": float(n_others),
        "all_p50_s": heard["p50"],
        "all_p99_s": heard["p99"],
    }


async def _timed(ask: Callable[[int, str], Awaitable[str]], at: int, known: str) -> tuple[str, float]:
    return await ask(at, known), time.monotonic()


def _order(server: "subprocess.Popen[str]", word: str) -> float:
    assert server.stdin is not None
    server.stdin.write(word + "\n")
    server.stdin.flush()
    return time.monotonic()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _serve(folder: Path, n: int) -> None:
    """The server: real route, listener and steering; boxes name themselves."""
    from aiohttp import web

    from cloud_gateway.fleet.assignments import Terms
    from cloud_gateway.fleet.steering.herd import HerdLimits
    from cloud_gateway.fleet.steering.neighbours import Neighbours
    from cloud_gateway.fleet.steering.routes import add_steering_routes
    from cloud_gateway.fleet.steering.steering import Steering
    from hybrid.hosting.front_door import IDENTITY
    from hybrid.hosting.listener import Listener, ListenerSettings

    boxes: dict[str, Any] = {
        f"{at:032x}": SimpleNamespace(
            id=f"{at:032x}", name=f"box-{at}", tags={"last": "1"} if at == n - 1 else {}, admission="admitted"
        )
        for at in range(n)
    }
    directory: Any = SimpleNamespace(all=lambda: tuple(boxes.values()), find=boxes.get)
    versions: Any = SimpleNamespace(
        resolve=lambda _name, version=None: SimpleNamespace(version=version, artifact_digest=str(version) * 64)
    )
    around = Neighbours(boxes=directory, versions=versions, raise_alarm=lambda *_: None, trust=lambda: None)
    steering = Steering(folder / "rollouts.db", around, limits=HerdLimits(max_waiting=n + 10))

    @web.middleware
    async def door(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        request[IDENTITY] = request.headers["X-Box"]
        return await handler(request)

    app = web.Application(middlewares=[door])
    add_steering_routes(
        app, steering, check_epoch=lambda box_id, _epoch: boxes[str(box_id)], boxes=directory, note=lambda *_: None
    )
    listener = Listener(app, ListenerSettings(max_connections=n + 100))
    await listener.start("127.0.0.1", 0, None)
    async with asyncio.TaskGroup() as group:
        group.create_task(steering.run())
        print(listener.port, flush=True)
        for version in ("1", "2"):
            word = (await asyncio.to_thread(sys.stdin.readline)).strip()
            await steering.assign("detector", version, {"last": "1"} if word == "one" else {}, Terms(), "me")
        await asyncio.sleep(60.0)


if __name__ == "__main__":
    sys.exit(main())
