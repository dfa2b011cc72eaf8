"""Who waits, and for what: pauses that end, callers who share a ticket, outcomes that are gone."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from cloud_gateway.fleet.intake.store import Allowance, IngestLimits
from edge_agent.outbox.deferred import Answered, Failed, Waiting
from edge_agent.outbox.store import OutboxStore
from edge_agent.samples.vault import Vault
from hybrid.errors import StorageError
from tests.outbox.lab import Gateway, in_virtual_time, outbox_of, running, until
from tests.outbox.test_deferred import Doubling, asked, deferred_of
from tests.outbox.test_samples import DIGEST, arrays, samples_of


def test_a_held_stream_that_may_not_travel_any_more_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    batch = OutboxStore.batch

    async def program() -> None:
        limits = IngestLimits()
        limits.by_kind["result"] = Allowance(n_items=0, n_bytes=100, drops=False)
        gateway = Gateway(tmp_path / "gateway", limits=limits)
        least = [4]
        outbox = outbox_of(tmp_path / "box", gateway.lane(), least_important=lambda: least[0])
        async with running(outbox):
            await outbox.put("result", b"too many")
            await until(lambda: outbox.sender.status()["held"])
            least[0] = 1  # the link is metered now
            monkeypatch.setattr(OutboxStore, "batch", lambda *all_, **more: looks.append(1) or batch(*all_, **more))
            await asyncio.sleep(6000.0)

    in_virtual_time(program())
    assert len(looks) < 20


def test_all_who_wait_for_one_ticket_are_told_at_once(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway", Doubling())
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane)
        part = deferred_of(outbox, lane)
        async with running(outbox, part):  # the gateway computes later
            ticket = await part.take(asked("one"))
            patient = asyncio.create_task(part.outcome(ticket, 60.0))
            assert isinstance(await part.outcome(ticket, 1.0), Waiting)
            loop = asyncio.get_running_loop()
            begun_s = loop.time()
            async with running(gateway.ingest, gateway.deferrals):
                assert isinstance(await patient, Answered)
            assert loop.time() - begun_s < 20.0

    in_virtual_time(program())


def test_a_lost_outcome_does_not_keep_back_the_others(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway", Doubling())
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane)
        part = deferred_of(outbox, None)
        async with running(outbox, part, gateway.ingest, gateway.deferrals):
            large, small = await part.take(asked("large", 500_000)), await part.take(asked("small"))
            await until(lambda: done(gateway) == 2)
            for path in (tmp_path / "gateway" / "boxes").rglob("*/blobs/*/*"):
                path.unlink()
            part.calls = lane
            part._woken.set()
            assert isinstance(await part.outcome(small, 60.0), Answered)
            lost = await part.outcome(large, 60.0)
            assert isinstance(lost, Failed)
            assert lost.code == StorageError.code

    in_virtual_time(program())


def test_a_sample_that_the_outbox_cannot_take_now_is_brought_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        vault = Vault([("file", Random(1).randbytes(32))])
        outbox = outbox_of(tmp_path / "box", gateway.lane(), vault=vault)
        samples = samples_of(tmp_path / "samples", outbox, "upload", vault=vault)
        refusals = [StorageError("the disk of the outbox fails")]
        put = outbox.put

        async def refusing(*all_: object, **more: object) -> object:
            if refusals:
                raise refusals.pop()
            return await put(*all_, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(outbox, "put", refusing)
        async with running(outbox, samples):
            await samples.put(DIGEST, "", arrays(), {}, model="pets")
            await until(lambda: gateway.bodies(stream="sample"), within_s=300.0)
        assert not refusals

    in_virtual_time(program())


def done(gateway: Gateway) -> int:
    with gateway.ingest.store.database.reading() as db:
        return int(db.execute("SELECT count(*) FROM deferral WHERE is_done = 1").fetchone()[0])
