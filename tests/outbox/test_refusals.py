"""A gateway that refuses: whole, or one file; with or without saying when to come back."""

import asyncio
from itertools import pairwise
from pathlib import Path

from edge_agent.outbox.policy import INLINE_BYTES
from hybrid.errors import Overloaded, VersionUnsupported
from hybrid.fleet.messages import IngestAnswer, IngestCall
from tests.outbox.lab import Gateway, Lane, in_virtual_time, outbox_of, running, sequence, until


class Refusing(Lane):
    """A gateway that refuses as overloaded ones and newer ones do."""

    error: Exception | None = None
    asked_at_s: list[float]

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        self.asked_at_s.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error
        return await super().ingest(call)


def test_refusals_are_waited_out_with_jitter(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = Refusing(gateway.ingest, gateway.deferrals)
        lane.asked_at_s = []
        lane.error = Overloaded("later", retry_after_s=20.0)
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            await outbox.put("result", b"0:")
            for _ in range(100):  # news do not shorten a pause after failures
                await asyncio.sleep(1.0)
                await outbox.put("telemetry", b"1:")
            gaps = [b - a for a, b in zip(lane.asked_at_s, lane.asked_at_s[1:], strict=False)]
            assert gaps
            assert min(gaps) >= 20.0
            assert len({round(gap, 3) for gap in gaps}) == len(gaps), "no two pauses are alike"
            lane.error = VersionUnsupported("upgrade", mine=1, theirs=9)
            await asyncio.sleep(600.0)
            assert outbox.sender.status()["last_error"] == "version_unsupported"
            lane.error = None
            await until(lambda: not outbox.store.ledger.n_items, within_s=200)

    in_virtual_time(program())


def test_a_long_pause_that_the_gateway_asks_for_is_kept(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = Refusing(gateway.ingest, gateway.deferrals)
        lane.asked_at_s = []
        lane.error = Overloaded("later", retry_after_s=300.0)
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            await outbox.put("result", b"0:")
            await until(lambda: len(lane.asked_at_s) == 3, within_s=2000.0)
            lane.error = Overloaded("next year", retry_after_s=1e8)
            await until(lambda: len(lane.asked_at_s) == 5, within_s=5000.0)
        gaps = [b - a for a, b in pairwise(lane.asked_at_s)]
        assert all(300.0 <= gap <= 600.0 for gap in gaps[:2])
        assert 900.0 <= gaps[3] <= 1800.0, "it is asked in the end"

    in_virtual_time(program())


class FullOfFiles(Lane):
    """A gateway that takes no more files of this box."""

    n_refused = 0
    is_full = True

    async def put_blob(self, sha256: str, content: bytes) -> None:
        if self.is_full:
            self.n_refused += 1
            raise Overloaded("this box has too many files here", retry_after_s=300.0)
        await super().put_blob(sha256, content)


def test_a_file_that_is_refused_holds_its_stream_alone(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = FullOfFiles(gateway.ingest, gateway.deferrals)
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            await outbox.put("result", b"0:" + bytes(INLINE_BYTES))
            await outbox.put("result", b"1:")
            await outbox.put("sample", b"9:")
            await until(lambda: outbox.store.ledger.n_items == 2)
            assert sequence(gateway.bodies()) == [9]
            assert outbox.sender.status()["held"] == {"result": "overloaded"}
            await asyncio.sleep(200.0)
            assert lane.n_refused == 1, "it comes back when the gateway said"
            lane.is_full = False
            await until(lambda: not outbox.store.ledger.n_items, within_s=600)
        assert sequence(gateway.bodies()) == [9, 0, 1]

    in_virtual_time(program())
