"""Deferred inference: kept while offline, computed once at the gateway, fetched after restarts; failures by name."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from shutil import copytree

import numpy as np
import pytest

from cloud_gateway.fleet.intake.outcomes import MOST_ATTEMPTS
from edge_agent.outbox.blob_files import Open
from edge_agent.outbox.deferred import Answered, Deferred, Failed, Waiting
from edge_agent.outbox.outbox import Outbox
from hybrid.errors import EngineFailed, NotFound, Overloaded, TooLarge
from hybrid.fleet.messages import OutcomesCall
from hybrid.fleet.packed import pack_request, unpack_request
from hybrid.wire.message import InferRequest, InferResponse
from hybrid.wire.tensor import Tensor
from tests.outbox.lab import BOX, Gateway, Lane, in_virtual_time, outbox_of, running, until


class Doubling:
    """A model at the gateway: counts its runs by request."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.before: Callable[[InferRequest], object] = lambda request: None

    async def __call__(self, request: InferRequest, receive_s: float) -> InferResponse:
        await asyncio.sleep(0.5)
        self.before(request)
        self.runs.append(request.id)
        array = request.inputs[0].to_array()
        return InferResponse(model_name=request.model_name, id=request.id, outputs=(Tensor.of("y", array * 2),))


def asked(name: str, size: int = 4) -> InferRequest:
    return InferRequest(model_name="large", id=name, inputs=(Tensor.of("x", np.full(size, 3.0, np.float32)),))


def deferred_of(outbox: Outbox, lane: Lane | None, seed: int = 5) -> Deferred:
    return Deferred(outbox, lane, vault=Open(), rng=Random(seed))


def test_asked_offline_answered_when_the_gateway_is_back(tmp_path: Path) -> None:
    async def program() -> None:
        model = Doubling()
        gateway = Gateway(tmp_path / "gateway", model)
        lane = gateway.lane()
        lane.is_up = False
        outbox = outbox_of(tmp_path / "box", lane)
        part = deferred_of(outbox, lane)
        async with running(outbox, part):
            small, large = await part.take(asked("small")), await part.take(asked("large", 1_500_000))
            found = await part.outcome(small)
            assert isinstance(found, Waiting)
            assert not found.is_sent
            await asyncio.sleep(100.0)
        lane.is_up = True
        outbox = outbox_of(tmp_path / "box", lane)
        part = deferred_of(outbox, lane)
        async with running(outbox, part, gateway.ingest, gateway.deferrals):
            await outbox.opened()
            for ticket, size in ((small, 4), (large, 1_500_000)):
                for _ in range(20):
                    found = await part.outcome(ticket, 60.0)
                    if not isinstance(found, Waiting):
                        break
                assert isinstance(found, Answered)
                (output,) = found.response.outputs
                assert np.array_equal(output.to_array(), np.full(size, 6.0, np.float32))
            await until(lambda: gateway_rows(gateway) == 0, within_s=300)
            assert not list((tmp_path / "gateway" / "boxes").rglob("*/blobs/*/*")), "nothing is left at the gateway"
            await part.forget(small)
            with pytest.raises(NotFound):
                await part.outcome(small)
        assert sorted(model.runs) == ["large", "small"]
        outbox = outbox_of(tmp_path / "box", None)
        part = deferred_of(outbox, None)
        async with running(outbox, part):
            await outbox.opened()
            assert isinstance(await part.outcome(large), Answered), "outcomes outlast restarts"

    in_virtual_time(program())


def gateway_rows(gateway: Gateway) -> int:
    with gateway.ingest.store.database.reading() as db:
        return db.execute("SELECT count(*) FROM deferral").fetchone()[0]


@pytest.mark.parametrize("seed", range(2))
def test_once_in_effect_on_a_bad_way_with_restarts_of_both(tmp_path: Path, seed: int) -> None:
    """Each request is answered, each outcome is that of its own request, none is computed again after it was kept."""

    async def program() -> None:
        rng = Random(seed)
        model = Doubling()
        tickets: dict[str, str] = {}
        for life in range(8):
            gateway = Gateway(tmp_path / "gateway", model)
            lane = gateway.lane()
            lane.doubles = True
            lane.loses_answer = lambda: rng.random() < 0.4
            outbox = outbox_of(tmp_path / "box", lane)
            part = deferred_of(outbox, lane, seed=100 * seed + life)
            async with running(outbox, part, gateway.ingest, gateway.deferrals):
                for n in range(3):
                    name = f"{life}.{n}"
                    tickets[name] = await part.take(asked(name, rng.choice([4, 60_000])))
                await asyncio.sleep(rng.uniform(0.0, 6.0))
            gateway.ingest.close()
        gateway = Gateway(tmp_path / "gateway", model)
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane)
        part = deferred_of(outbox, lane, seed=9999)
        async with running(outbox, part, gateway.ingest, gateway.deferrals):
            await outbox.opened()
            for name, ticket in tickets.items():
                for _ in range(30):
                    found = await part.outcome(ticket, 60.0)
                    if not isinstance(found, Waiting):
                        break
                assert isinstance(found, Answered), (name, found)
                assert found.response.id == name
            await until(lambda: gateway_rows(gateway) == 0, within_s=300)
        assert set(model.runs) == set(tickets)
        assert len(model.runs) <= len(tickets) + 8, "again only what a stop of the gateway cut off"

    in_virtual_time(program())


def test_failures_are_told_by_name_and_passing_ones_are_waited_out(tmp_path: Path) -> None:
    async def program() -> None:
        model = Doubling()
        n_busy = [3]

        def before(request: InferRequest) -> None:
            if request.id == "unknown":
                raise NotFound("there is no model 'large' on this gateway")
            if request.id == "breaks":
                raise ValueError("a fault of ours, with an input in it: 3.0")
            if request.id == "busy" and n_busy[0]:
                n_busy[0] -= 1
                raise Overloaded("later", retry_after_s=1.0)

        model.before = before
        gateway = Gateway(tmp_path / "gateway", model)
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane)
        part = deferred_of(outbox, lane)
        async with running(outbox, part, gateway.ingest, gateway.deferrals):
            tickets = {name: await part.take(asked(name)) for name in ("unknown", "breaks", "busy")}
            await outbox.put("deferred", b"\xff" * 40, ticket="f" * 32)
            found = {}
            for name, ticket in {**tickets, "garbage": "f" * 32}.items():
                for _ in range(10):
                    found[name] = await part.outcome(ticket, 60.0)
                    if not isinstance(found[name], Waiting):
                        break
            assert found["unknown"] == Failed(code="not_found", detail="there is no model 'large' on this gateway")
            assert isinstance(found["breaks"], Failed)
            assert found["breaks"].code == EngineFailed.code
            assert "3.0" not in found["breaks"].detail, "no input in what is told"
            assert isinstance(found["busy"], Answered)
            assert isinstance(found["garbage"], Failed)
            assert found["garbage"].code == "bad_message"

    in_virtual_time(program())


def test_a_request_that_ends_the_gateway_does_so_three_times_at_most(tmp_path: Path) -> None:
    """Each life of the gateway ends while it computes; the request is given up, the one behind it is computed."""

    class Killed(BaseException):
        pass

    async def program() -> None:
        model = Doubling()

        def before(request: InferRequest) -> None:
            if request.id == "poison":
                raise Killed

        model.before = before
        outbox = outbox_of(tmp_path / "box", None)
        part = deferred_of(outbox, None)
        async with running(outbox, part):
            await outbox.opened()
            poison, good = await part.take(asked("poison")), await part.take(asked("good"))
        n_ends = 0
        while True:
            gateway = Gateway(tmp_path / "gateway", model)
            lane = gateway.lane()
            outbox = outbox_of(tmp_path / "box", lane)
            part = deferred_of(outbox, lane)
            try:
                async with running(outbox, part, gateway.ingest, gateway.deferrals):
                    await outbox.opened()
                    found = Waiting(is_sent=False, waits_s=0.0)
                    while isinstance(found, Waiting):
                        found = await part.outcome(good, 60.0)
                    told = await part.outcome(poison, 60.0)
                break
            except BaseExceptionGroup as group:
                assert group.subgroup(Killed) is not None
                n_ends += 1
                assert n_ends <= MOST_ATTEMPTS
            finally:
                gateway.ingest.close()
        assert n_ends == MOST_ATTEMPTS
        assert isinstance(found, Answered)
        assert isinstance(told, Failed)
        assert told.code == EngineFailed.code

    in_virtual_time(program())


def test_boxes_take_turns(tmp_path: Path) -> None:
    async def program() -> None:
        model = Doubling()
        gateway = Gateway(tmp_path / "gateway", model)
        boxes = ["0" * 32, "1" * 32, "2" * 32]
        for n, box in enumerate(boxes):
            outbox = outbox_of(tmp_path / box, gateway.lane(box))
            async with running(outbox):
                for k in range(5):
                    await outbox.put("deferred", pack_request(asked(f"{n}.{k}")))
                await until(lambda outbox=outbox: not outbox.store.ledger.n_items)
        async with running(gateway.deferrals):
            await until(lambda: len(model.runs) == 15, within_s=60)
        for start in range(0, 15, 3):
            assert {name[0] for name in model.runs[start : start + 3]} == {"0", "1", "2"}

    in_virtual_time(program())


def test_outcomes_of_a_box_set_back_find_their_tickets(tmp_path: Path) -> None:
    """Sent, then set back to before: the same request under a new number is the same request, and is answered."""

    async def program() -> None:
        model = Doubling()
        gateway = Gateway(tmp_path / "gateway", model)
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", None)
        part = deferred_of(outbox, None)
        async with running(outbox, part):
            await outbox.opened()
            ticket = await part.take(asked("first"))
        copytree(tmp_path / "box", tmp_path / "image")
        outbox = outbox_of(tmp_path / "box", lane)
        part = deferred_of(outbox, lane, seed=6)
        async with running(outbox, part):
            await outbox.opened()
            await part.take(asked("second"))
            await until(lambda: not outbox.store.ledger.n_items)
        outbox = outbox_of(tmp_path / "image", lane, seed=2)
        part = deferred_of(outbox, lane, seed=7)
        async with running(outbox, part, gateway.ingest, gateway.deferrals):
            await outbox.opened()
            third = await part.take(asked("third"))
            for one, name in ((ticket, "first"), (third, "third")):
                found = await part.outcome(one, 60.0)
                assert isinstance(found, Answered)
                assert found.response.id == name
        assert sorted(model.runs) == ["first", "second", "third"]

    in_virtual_time(program())


def test_a_box_sees_no_outcomes_of_another(tmp_path: Path) -> None:
    async def program() -> None:
        model = Doubling()
        gateway = Gateway(tmp_path / "gateway", model)
        outbox = outbox_of(tmp_path / "box", gateway.lane())
        async with running(outbox, gateway.deferrals):
            kept = await outbox.put("deferred", pack_request(asked("mine")))
            await until(lambda: model.runs, within_s=60)
            call = OutcomesCall(epoch=kept.epoch, received=((kept.stream, kept.seq),))
            assert (await gateway.deferrals.outcomes("cd" * 16, call)).outcomes == ()
            answer = await gateway.deferrals.outcomes(BOX, OutcomesCall(epoch=kept.epoch, wait_s=30.0))
            assert len(answer.outcomes) == 1

    in_virtual_time(program())


def test_a_request_beyond_the_wire_is_refused(tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "box", None)
        part = deferred_of(outbox, None)
        async with running(outbox, part):
            await outbox.opened()
            with pytest.raises(TooLarge):
                await part.take(asked("huge", 17_000_000))

    in_virtual_time(program())


def test_packed_messages_refuse_what_is_cut_or_changed() -> None:
    from hybrid.errors import HybridError

    content = pack_request(asked("x"))
    assert unpack_request(content).id == "x"
    for end in range(len(content)):
        with pytest.raises(HybridError):
            unpack_request(content[:end])
    rng = Random(1)
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            unpack_request(bytes(changed))
        except HybridError:
            continue


def test_a_gateway_that_stops_in_good_order_makes_no_attempt(tmp_path: Path) -> None:
    async def program() -> None:
        model = Doubling()
        gateway = Gateway(tmp_path / "gateway", model)
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane)
        part = deferred_of(outbox, lane)
        async with running(outbox, part, gateway.ingest):
            ticket = await part.take(asked("often"))
            await until(lambda: gateway_rows(gateway) == 1, within_s=100)
            for _ in range(2 * MOST_ATTEMPTS):  # updates and reboots of the gateway's machine
                async with running(gateway.deferrals):
                    await asyncio.sleep(0.25)
                assert model.runs == [], "each time it was stopped while it computed"
            async with running(gateway.deferrals):
                found = await part.outcome(ticket, 60.0)
            assert isinstance(found, Answered)

    in_virtual_time(program())


async def test_what_was_sent_stays_sent_while_its_item_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = outbox_of(tmp_path / "box", None)
    part = deferred_of(outbox, None)
    async with running(outbox, part):
        await outbox.opened()
        ticket = await part.take(asked("a"))
        store = outbox.store
        batch = store.batch(least_important=4, held=(), now_s=0.0)
        store.settle(batch.items, {})
        sound = store.sound

        def sound_and_a_commit(work: Callable[[], object]) -> object:
            found = sound(work)
            monkeypatch.undo()
            store.write(lambda _: None)  # as any other thread may make at this moment: settled items leave
            return found

        monkeypatch.setattr(store, "sound", sound_and_a_commit)
        found = await part.outcome(ticket)
        assert isinstance(found, Waiting)
        assert found.is_sent
