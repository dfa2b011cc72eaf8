"""What an admitted box, a gateway that was taken over, or a device on a box's own port may try against the others."""

import asyncio
import math
import time
from collections.abc import Coroutine
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud_gateway.fleet.assignments import Terms
from cloud_gateway.fleet.intake.blobs import FleetBlobs
from cloud_gateway.fleet.intake.listing import Listing
from cloud_gateway.fleet.intake.outcomes import MOST_POLLS_OF_A_BOX
from hybrid.artifact.chunk_messages import IndexAnswer, IndexCall, compress, digest_of
from hybrid.artifact.chunks import Chunk, ChunkIndex, encode
from hybrid.errors import HybridError, OutboxFull, Overloaded
from hybrid.fleet.messages import Health, IngestAnswer, IngestCall, Installed, OutcomesCall, StateCall
from hybrid.transport.client import acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests.chunks.making import Update, layered, retrained, saved
from tests.edge_agent.model_room import version
from tests.edge_agent.test_onward import KEY
from tests.edge_agent.test_onward import _infer as infer_over_http
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway
from tests.outbox.lab import Gateway, in_virtual_time, outbox_of, running, until
from tests.outbox.test_ingest import call, item
from tests.rollouts.fleet_making import NEW, OLD, Boxes, box, told
from tests.rollouts.test_steering import Place, plan
from tests.small_models import mlp


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, Boxes(*(box(i) for i in range(10))))


def heard(*installed: Installed, **fields: object) -> StateCall:
    """A call as it comes out of the JSON of a box that writes what it likes."""
    made = {"known": "", "epoch": "e", "run": "r"} | fields
    call = msgspec.json.encode(made | {"installed": [msgspec.to_builtins(one) for one in installed]})
    return msgspec.json.decode(call, type=StateCall)


@pytest.mark.parametrize(
    "words",
    [
        {"trust_sequence": 10**30},
        {"trust_sequence": -(10**30)},
        {"installed_counts": 10**30},
        {"installed_counts": -(10**30)},
    ],
)
async def test_numbers_of_one_box_do_not_keep_the_fleet_from_being_written(place: Place, words: dict[str, int]) -> None:
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    await steering.start(plan())
    rogue, *others = [one.id for one in place.boxes.all()]
    n = words.pop("installed_counts", 0)
    one = told(NEW, n_good=n, n_errors=n, n_crashes=n)
    raw = msgspec.json.decode(msgspec.json.encode(one), type=Installed)
    await steering.state(rogue, heard(raw, **words))
    await steering.take_report(others[0], told(), 1, 1.0)
    await steering.assign("other", "1", {}, Terms(), "me")
    steering.close()
    again = place.open()
    assert {one.model for one in again.ledger.assignments} == {"detector", "other"}
    again.close()


@pytest.mark.parametrize("time_s", [1e308, 1e-308, math.inf, math.nan, -1.0])
@pytest.mark.parametrize("count", [0, 10**18, 2**64 - 1])
async def test_figures_of_one_box_do_not_stop_the_looks_at_a_rollout(
    place: Place, time_s: float, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    ids = [one.id for one in place.boxes.all()]
    for key in ids:
        await steering.take_report(key, told(OLD, n_good=1000, p50_s=0.01), 1, 1.0)
    await steering.start(plan(stages=(1.0,), soak_s=1.0))
    for number, key in enumerate(ids):
        wild = told(NEW, n_good=count or 2000, n_errors=count, n_crashes=count, p50_s=time_s, p95_s=time_s)
        await steering.take_report(key, wild if number < 3 else told(NEW, n_good=50, p50_s=0.01), 2, 2.0)
    began_s = asyncio.get_running_loop().time()
    for _ in range(4):
        steering.ledger.advance(60.0)
    assert asyncio.get_running_loop().time() - began_s < 1.0
    await steering.assign("other", "1", {}, Terms(), "me")
    steering.close()
    place.open().close()


async def test_words_of_one_box_are_cut_to_what_is_worth_keeping(place: Place) -> None:
    steering = place.open()
    rogue = place.boxes.all()[0].id
    long = "x" * 100_000
    one = Installed(name=long, version=long, artifact_digest=long, wanted_digest=long, rollout=long, detail=long)
    await steering.state(
        rogue, heard(one, known=long, run=long, health=msgspec.to_builtins(Health(ready=True, problems=(long,))))
    )
    await steering.take_report(rogue, one, 1, 1.0)
    assert len(msgspec.msgpack.encode(steering.ledger.states[rogue])) < 8192
    steering.close()


@pytest.mark.parametrize("seq", [2**64 - 1, 2**62, -1, -(2**63)])
def test_an_acknowledgement_of_the_impossible_does_not_stop_an_outbox(tmp_path: Path, seq: int) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        is_wild = [True]
        take = lane.ingest

        async def answer(call: IngestCall) -> IngestAnswer:
            sound = await take(call)
            return IngestAnswer(acked=dict.fromkeys(sound.acked, seq)) if is_wild else sound

        lane.ingest = answer  # type: ignore[method-assign]
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            await outbox.put("result", b"first")
            await asyncio.sleep(5.0)
            is_wild.clear()
            await outbox.put("result", b"second")
            await until(lambda: gateway.bodies() == [b"first", b"second"], within_s=300.0)

    in_virtual_time(program())


async def test_one_box_cannot_take_all_places_of_those_that_wait_for_outcomes(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    waits = OutcomesCall(epoch="e" * 32, wait_s=300.0)
    async with asyncio.TaskGroup() as group:
        polls = [group.create_task(_refused(gateway.deferrals.outcomes("ab" * 16, waits))) for _ in range(100)]
        other = group.create_task(_refused(gateway.deferrals.outcomes("cd" * 16, waits)))
        await asyncio.sleep(0.5)
        gateway.deferrals.release()
    assert sum(poll.result() for poll in polls) == 100 - MOST_POLLS_OF_A_BOX
    assert not other.result()


async def _refused(call: Coroutine[object, object, object]) -> bool:
    try:
        await call
    except Overloaded:
        return True
    return False


async def test_an_age_that_cannot_be_tells_nothing(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    for seq, age_s in enumerate((math.inf, math.nan, 1e308, -math.inf)):
        await gateway.ingest.ingest("ab" * 16, call(item(seq, age_s=age_s)))
    listed = Listing(gateway.ingest.store).list("result", box="", after=0, limit=10)
    assert [one.made_s for one in listed] == [None] * 4


async def test_an_index_of_tiny_chunks_does_not_cut_up_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = layered(100)
    update = Update(tmp_path, saved(old, tmp_path / "old"), saved(retrained(old, 3)[0], tmp_path / "new"))

    async def tiny(call: IndexCall) -> IndexAnswer:
        size = update.calls.files[call.file.sha256].stat().st_size
        chunk = Chunk(offset=0, size=size, name=b"", glue=bytes(size))
        made = encode(ChunkIndex(size=size, piece_bytes=1, chunks=(chunk,)))
        return IndexAnswer(body=compress(made), digest=digest_of(made), dictionary=b"")

    monkeypatch.setattr(update.calls, "chunk_index", tiny)
    await update.run()
    assert update.calls.n_blob_calls == 1


def test_a_box_cannot_fill_the_disk_with_files_that_nothing_names(tmp_path: Path) -> None:
    blobs = FleetBlobs(tmp_path, most_box_bytes=1 << 20)
    blobs.store("ab" * 16)
    n_taken = 0
    with pytest.raises(Overloaded):
        for _ in range(1000):
            blobs.check_room("ab" * 16, 10_000)
            n_taken += 1
    assert 50 < n_taken < 105
    blobs.check_room("cd" * 16, 10_000)


def test_programs_on_a_box_cannot_use_up_its_streams(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        outbox = outbox_of(tmp_path / "box", gateway.lane())
        async with running(outbox):
            await outbox.opened()
            for start in range(0, 500, 50):
                await asyncio.gather(*(outbox.put("result", b"x", stream=f"result/{start + n}") for n in range(50)))
            with pytest.raises(OutboxFull):
                await outbox.put("result", b"x", stream="result/more")
            await outbox.put("result", b"x", stream="result/7")
            await outbox.put("report", b"x")

    in_virtual_time(program())


def test_inputs_stay_on_a_box_that_is_told_to_keep_them(tmp_path: Path) -> None:
    model = mlp(tmp_path / "mlp.onnx")
    with LiveGateway(tmp_path / "gateway", "--no-auth") as gateway:
        gateway.push(model, "mlp")
        with LiveAgent(tmp_path / "box", {}, "--keep-inputs-here", gateway=gateway.url) as agent:
            for headers in ({}, {"Hybrid-Defer": "always"}, {"Hybrid-Defer": "offline"}):
                status, reply = infer_over_http(agent.url, **headers)
                assert status in (403, 404), reply
                assert "ticket" not in reply
                assert "outputs" not in reply
            for _ in range(10):  # by then the box knows what its gateway holds
                with pytest.raises(HybridError):
                    whole_request(agent.url, model)
                time.sleep(0.1)


def whole_request(url: str, model: Path) -> object:
    """A device's message by digest, for a model that only the gateway of that box holds."""
    client = acquire(url, None, trust=Trust())
    try:
        inputs = (Tensor.of("x", np.zeros((1, 64), np.float32)),)
        request = InferRequest(model_digest=version(model).model_digest, shape_key=KEY, inputs=inputs)
        return client.infer(request, stall_s=5.0, timeout_s=10.0).result(15)
    finally:
        release(client)
