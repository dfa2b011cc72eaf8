"""From box to gateway, nothing twice: lost answers, doubled calls, old images, refusals, restarts, priorities."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from cloud_gateway.fleet.intake.store import Allowance, IngestLimits
from edge_agent.outbox.policy import KindLimits, OutboxLimits
from hybrid.fleet.messages import IngestAnswer, IngestCall
from tests.outbox.lab import BOX, Gateway, Lane, in_virtual_time, outbox_of, running, sequence, until


def test_what_is_put_arrives_once_and_in_order(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            for n in range(30):
                await outbox.put("result", b"%d:x" % n)
            await outbox.put("telemetry", b"0:t")
            await outbox.flush()
            await until(lambda: not outbox.store.ledger.n_items)
        assert sequence(gateway.bodies(stream="result")) == list(range(30))
        assert gateway.bodies(stream="telemetry") == [b"0:t"]

    in_virtual_time(program())


def test_a_bad_way_changes_nothing_but_the_time(tmp_path: Path) -> None:
    """Half of the answers are lost, every call arrives twice, the link goes and comes, the agent is started anew."""

    async def program() -> None:
        rng = Random(7)
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        lane.doubles = True
        lane.loses_answer = lambda: rng.random() < 0.5
        n = 0
        for _ in range(6):
            outbox = outbox_of(tmp_path / "box", lane)
            async with running(outbox):
                for _ in range(40):
                    stream = rng.choice(["result/a", "result/b"])
                    await outbox.put(
                        "result", b"%d:%s" % (n, rng.randbytes(rng.choice([3, 300, 120_000]))), stream=stream
                    )
                    n += 1
                    lane.is_up = rng.random() < 0.8
        lane.is_up, lane.doubles, lane.loses_answer = True, False, lambda: False
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            await until(lambda: outbox.store.ledger.epoch and not outbox.store.ledger.n_items, within_s=3600)
        assert sorted(sequence(gateway.bodies())) == list(range(n))
        for stream in ("result/a", "result/b"):
            found = sequence(gateway.bodies(stream=stream))
            assert found == sorted(found)

    in_virtual_time(program())


def test_ten_thousand_items_keep_their_order_per_stream(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        outbox = outbox_of(tmp_path / "box", None)
        async with running(outbox):
            for start in range(0, 10_000, 50):
                for n in range(start, start + 50):
                    pending = outbox.put("result", b"%d:" % n, stream=f"result/{n % 7}")
                    outbox_tasks.append(pending)
                await gather_all(outbox_tasks)
            outbox.sender.calls = gateway.lane()
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items, within_s=3600)
        for k in range(7):
            assert sequence(gateway.bodies(stream=f"result/{k}")) == list(range(k, 10_000, 7))

    outbox_tasks: list = []
    in_virtual_time(program())


async def gather_all(pending: list) -> None:
    await asyncio.gather(*pending)
    pending.clear()


def test_the_most_important_travel_first(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", None)
        async with running(outbox):
            await outbox.put("telemetry", b"1:t")
            await outbox.flush()
            await outbox.put("sample", b"2:s" + bytes(200_000))
            await outbox.put("result", b"3:r")
            await outbox.put("report", b"4:p")
            outbox.sender.calls = lane
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items)
        assert sequence([body for body in gateway.bodies() if body]) == [4, 3, 2, 1]

    in_virtual_time(program())


def test_a_metered_link_carries_what_is_important_only(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        least = [2]
        outbox = outbox_of(tmp_path / "box", gateway.lane(), least_important=lambda: least[0])
        async with running(outbox):
            await outbox.put("sample", b"1:s")
            await outbox.put("result", b"2:r")
            await until(lambda: outbox.store.ledger.n_items == 1)
            assert sequence(gateway.bodies()) == [2]
            least[0] = 4
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items)

    in_virtual_time(program())


def test_newer_reports_take_the_place_of_unsent_ones(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        outbox = outbox_of(tmp_path / "box", None)
        async with running(outbox):
            for n in range(5):
                await outbox.put("report", b"%d:a" % n, about="a")
                await outbox.put("report", b"%d:b" % (10 + n), about="b")
            outbox.sender.calls = gateway.lane()
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items)
            assert outbox.store.ledger.counts["report"].n_replaced == 8
        assert sequence(gateway.bodies()) == [4, 14]

    in_virtual_time(program())


def test_a_box_set_back_to_an_old_image_draws_a_new_epoch(tmp_path: Path) -> None:
    """Numbers that were used before for other things: nothing new is mistaken for it, nothing old arrives twice."""
    from shutil import copytree

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", None)
        async with running(outbox):
            for n in range(5):
                await outbox.put("result", b"%d:waiting" % n)
        copytree(tmp_path / "box", tmp_path / "image")
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            for n in range(5, 10):
                await outbox.put("result", b"%d:first life" % n)
            await until(lambda: not outbox.store.ledger.n_items)
        first_epoch = outbox.store.ledger.epoch
        outbox = outbox_of(tmp_path / "image", lane, seed=2)
        async with running(outbox):
            for n in range(10, 15):
                await outbox.put("result", b"%d:second life" % n)
            await until(lambda: not outbox.store.ledger.n_items)
            assert outbox.store.ledger.epoch != first_epoch
        assert sequence(gateway.bodies()) == list(range(15))

    in_virtual_time(program())


def test_another_installation_numbers_anew_and_what_it_inherited_counts_once(tmp_path: Path) -> None:
    """A cloned card: both clones bring what waited on it, the gateway stores it once; what each makes is its own."""
    from shutil import copytree

    from edge_agent.outbox.outbox import Outbox
    from edge_agent.outbox.place import Place

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        first = Outbox(Place(folder=tmp_path / "one"), calls=None, rng=Random(1), installation="e1")
        async with running(first):
            for n in range(4):
                await first.put("result", b"%d:waiting" % n)
        copytree(tmp_path / "one", tmp_path / "two")
        for name, number in (("one", 100), ("two", 200)):
            box = Outbox(Place(folder=tmp_path / name), calls=lane, rng=Random(number), installation=f"on {name}")
            async with running(box):
                await box.put("result", b"%d:own" % number)
                await until(lambda box=box: not box.store.ledger.n_items)
        assert sequence(gateway.bodies()) == [0, 1, 2, 3, 100, 200]

    in_virtual_time(program())


def test_a_gateway_that_forgot_is_told_from_where_it_knows(tmp_path: Path) -> None:
    """A gateway restored from an old copy: the box is not stuck before a gap that nobody can fill."""

    async def program() -> None:
        first = Gateway(tmp_path / "first")
        outbox = outbox_of(tmp_path / "box", first.lane())
        async with running(outbox):
            for n in range(5):
                await outbox.put("result", b"%d:" % n)
            await until(lambda: not outbox.store.ledger.n_items)
            second = Gateway(tmp_path / "second")
            outbox.sender.calls = second.lane()
            await outbox.put("result", b"5:")
            await until(lambda: not outbox.store.ledger.n_items, within_s=300)
        assert sequence(second.bodies()) == [5]

    in_virtual_time(program())


def test_what_the_gateway_will_never_take_leaves_and_is_counted(tmp_path: Path) -> None:
    async def program() -> None:
        limits = IngestLimits(by_kind={"result": Allowance(n_items=100, n_bytes=1000, drops=False)})
        gateway = Gateway(tmp_path / "gateway", limits=limits)
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            await outbox.put("result", b"0:")
            await outbox.put("result", b"1:" + bytes(2000))
            await outbox.put("result", b"2:")
            await until(lambda: not outbox.store.ledger.n_items)
            assert outbox.store.ledger.counts["result"].n_refused == 1
        assert sequence(gateway.bodies()) == [0, 2]

    in_virtual_time(program())


def test_a_full_shelf_at_the_gateway_holds_one_stream_and_nothing_else(tmp_path: Path) -> None:
    async def program() -> None:
        limits = IngestLimits()
        limits.by_kind["result"] = Allowance(n_items=3, n_bytes=1000, drops=False)
        gateway = Gateway(tmp_path / "gateway", limits=limits)
        outbox = outbox_of(tmp_path / "box", gateway.lane())
        async with running(outbox):
            for n in range(6):
                await outbox.put("result", b"%d:" % n)
            await outbox.put("sample", b"9:")
            await until(lambda: outbox.store.ledger.n_items == 3)
            assert sequence(gateway.bodies()) == [0, 1, 2, 9]
            assert (BOX, "result") in gateway.quotas
            assert outbox.sender.status()["held"] == {"result": "quota"}
            limits.by_kind["result"] = Allowance(n_items=100, n_bytes=1000, drops=False)
            await until(lambda: not outbox.store.ledger.n_items, within_s=300)
        assert sequence(gateway.bodies()) == [0, 1, 2, 9, 3, 4, 5]

    in_virtual_time(program())


def test_a_restart_while_offline_loses_nothing(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        lane.is_up = False
        for life in range(5):
            outbox = outbox_of(tmp_path / "box", lane)
            async with running(outbox):
                for n in range(4):
                    await outbox.put("result", b"%d:" % (4 * life + n))
                await outbox.put("telemetry", b"%d:" % (100 + life))
        lane.is_up = True
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            await until(lambda: outbox.store.ledger.epoch and not outbox.store.ledger.n_items, within_s=200)
        assert sequence(gateway.bodies(stream="result")) == list(range(20))
        assert sequence(gateway.bodies(stream="telemetry")) == list(range(100, 105)), "an orderly stop flushes"
        assert [item.age_s for call in lane.calls for item in call.items] == [-1.0] * 25

    in_virtual_time(program())


def test_calls_stay_within_four_mebibytes(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", None, limits=OutboxLimits(group_s=0.001))
        async with running(outbox):
            for n in range(120):
                await outbox.put("result", b"%d:" % n + bytes(90_000))
            outbox.sender.calls = lane
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items)
        sizes = [sum(len(item.body) for item in call.items) for call in lane.calls]
        assert max(sizes) <= 4 << 20
        assert len(sizes) < 5
        assert sequence(gateway.bodies()) == list(range(120))

    in_virtual_time(program())


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0, -1.7e9])
def test_the_calendar_decides_nothing(tmp_path: Path, jump_s: float) -> None:
    """Ages follow the clock that only runs forward: a calendar that jumps drops nothing and dates nothing."""

    async def program() -> None:
        wall = [1.7e9]
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", None, wall_s=lambda: wall[0])
        async with running(outbox):
            await outbox.put("sample", b"0:")
            await asyncio.sleep(50.0)
            wall[0] += jump_s
            await asyncio.sleep(50.0)
            await asyncio.to_thread(outbox.store.tidy, outbox.now_s())
            outbox.sender.calls = lane
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items)
        assert lane.calls[0].items[0].age_s == pytest.approx(100.0, abs=1.0)

    in_virtual_time(program())


class Slow(Lane):
    """A way on which each call takes its time."""

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        answer = await super().ingest(call)
        await asyncio.sleep(5.0)
        return answer


def test_what_took_the_place_of_a_travelling_item_is_not_taken_for_it(tmp_path: Path) -> None:
    """A report is replaced, telemetry is dropped, while it travels: what has its row now is sent as well."""

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        limits = OutboxLimits()
        limits.kinds["telemetry"] = KindLimits(n_bytes=1000, n_items=1)
        outbox = outbox_of(tmp_path / "box", Slow(gateway.ingest, gateway.deferrals), limits=limits)
        async with running(outbox):
            await outbox.put("report", b"0:old", about="m")
            await asyncio.sleep(1.0)
            await outbox.put("report", b"1:new", about="m")
            await until(lambda: not outbox.store.ledger.n_items, within_s=60)
            assert sequence(gateway.bodies()) == [0, 1]
            await outbox.put("telemetry", b"2:old")
            await outbox.flush()
            await asyncio.sleep(1.0)
            await outbox.put("telemetry", b"3:new")
            await outbox.put("result", b"4:")
            await until(lambda: not outbox.store.ledger.n_items, within_s=60)
        assert sequence(gateway.bodies()) == [0, 1, 2, 4, 3]

    in_virtual_time(program())
