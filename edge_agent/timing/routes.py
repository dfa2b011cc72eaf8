"""The two calls of timing: what times here, and times of models that the call brings along."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from edge_agent.timing.bench import TimingBench, place
from hybrid.errors import BadMessage, DiskFull
from hybrid.hosting.http_replies import json_reply
from hybrid.hosting.identity import Right
from hybrid.wire.timing_call import PATH, TimingCall, header_bytes, parse

Admit = Callable[[web.Request, Right], None]
IDLE_S: Final = 30.0
"""Without a byte of the body, a call ends."""
_BLOCK_BYTES: Final = 1 << 20


def add_timing_routes(app: web.Application, bench: TimingBench, admit: Admit) -> None:
    """Serve the calls; docs/agent.md describes them.

    Args:
        app: gets the routes.
        bench: carries them out.
        admit: returns, or raises `Forbidden`.
    """

    async def show(request: web.Request) -> web.StreamResponse:
        admit(request, "read")
        return json_reply(await asyncio.to_thread(place))

    async def measure(request: web.Request) -> web.StreamResponse:
        admit(request, "publish")
        call = parse(await _exactly(request, header_bytes(await _exactly(request, 4))))
        async with bench.room(call) as folder:
            await _store(request, call, folder)
            return json_reply(await bench.timed(call, folder))

    app.router.add_get(PATH, show)
    app.router.add_post(PATH, measure)


async def _store(request: web.Request, call: TimingCall, folder: Path) -> None:
    for file in call.files:
        left = file.size
        with await asyncio.to_thread((folder / file.name).open, "xb") as stored:
            while left:
                block = await _some(request, min(left, _BLOCK_BYTES))
                try:
                    await asyncio.to_thread(stored.write, block)
                except OSError as exc:
                    raise DiskFull(f"{folder}: {exc.strerror or exc}; make room on the box", path=str(folder)) from exc
                left -= len(block)


async def _exactly(request: web.Request, n_bytes: int) -> bytes:
    found = b""
    while len(found) < n_bytes:
        found += await _some(request, n_bytes - len(found))
    return found


async def _some(request: web.Request, most: int) -> bytes:
    """At least one byte of the body, at most so many."""
    try:
        async with asyncio.timeout(IDLE_S):
            block = await request.content.read(most)
    except TimeoutError as exc:
        raise BadMessage(f"no byte of the body came for {IDLE_S:g} s; the call is given up") from exc
    if not block:
        raise BadMessage("the body ends before the files that its header names")
    return block
