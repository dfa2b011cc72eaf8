"""The gateway's end: what it acknowledges is on its disk, each thing once, in order, within bounds, for many boxes."""

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from cloud_gateway.fleet.intake.ingest import Ingest, Report
from cloud_gateway.fleet.intake.store import N_SEEN, Allowance, IngestLimits
from hybrid.errors import BadMessage, StorageError, TooLarge, VersionUnsupported
from hybrid.fleet.messages import IngestAnswer, IngestCall, Installed, Item
from tests.outbox.lab import BOX, Gateway, in_virtual_time, running, sequence, until
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.simulated_sqlite import connecting
from tests.reliability.virtual_loop import PowerCut

EPOCH = "e" * 32


def item(seq: int, body: bytes = b"", *, stream: str = "result", skipped: int = 0, **more: object) -> Item:
    body = body or b"%d:" % seq
    kind = stream.partition("/")[0]
    digest = sha256(body).hexdigest()
    return Item(stream=stream, seq=seq, kind=kind, digest=digest, skipped=skipped, body=body, **more)  # type: ignore[arg-type]


def call(*items: Item, epoch: str = EPOCH) -> IngestCall:
    return IngestCall(epoch=epoch, items=items)


def test_gaps_repetitions_and_another_order(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path)
        take = gateway.ingest.ingest
        assert (await take(BOX, call(item(0), item(1)))).acked == {"result": 1}
        answer = await take(BOX, call(item(3)))
        assert (answer.acked, answer.held) == ({"result": 1}, {"result": "gap"})
        answer = await take(BOX, call(item(3), item(2)))
        assert answer.acked == {"result": 1}, "what comes in another order waits for what is missing"
        assert (await take(BOX, call(item(1), item(2), item(3)))).acked == {"result": 3}
        assert (await take(BOX, call(item(9, skipped=5)))).acked == {"result": 9}
        assert (await take(BOX, call(item(0), item(2), item(9)))).acked == {"result": 9}
        assert (await take(BOX, call(item(12, skipped=1)))).held == {"result": "gap"}
        assert sequence(gateway.bodies()) == [0, 1, 2, 3, 9]

    in_virtual_time(program())


def test_another_thing_under_a_known_number_is_a_stale_epoch(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path)
        take = gateway.ingest.ingest
        await take(BOX, call(*(item(n) for n in range(10))))
        answer = await take(BOX, call(item(4), item(5), item(6, b"another"), item(7), item(10)))
        assert answer.stale_epoch
        assert answer.held == {"result": "stale_epoch"}
        assert answer.acked == {"result": 5}, "only what is the same is acknowledged, whatever else is here"
        assert len(gateway.bodies()) == 10

    in_virtual_time(program())


def test_numbers_are_known_for_ever_and_digests_for_a_thousand(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path)
        take = gateway.ingest.ingest
        for start in range(0, 1500, 500):
            await take(BOX, call(*(item(n) for n in range(start, start + 500))))
        with gateway.ingest.store.database.reading() as db:
            (n_seen,) = db.execute("SELECT count(*) FROM seen").fetchone()
        assert n_seen == N_SEEN
        assert (await take(BOX, call(item(600)))).acked == {"result": 1499}
        gateway.ingest.close()
        again = Gateway(tmp_path)
        assert (await again.ingest.ingest(BOX, call(item(501), item(1499)))).acked == {"result": 1499}
        answer = await again.ingest.ingest(BOX, call(item(3)))
        assert (answer.stale_epoch, answer.acked) == (True, {"result": 2}), "so far back only an old image sends"
        assert len(again.bodies()) == 1500

    in_virtual_time(program())


def test_boxes_and_epochs_do_not_see_one_another(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path)
        boxes = [f"{n:032x}" for n in range(40)]
        calls = [(box, call(*(item(n, b"%d:%s" % (n, box.encode())) for n in range(20)))) for box in boxes]
        answers = await asyncio.gather(*(gateway.ingest.ingest(box, one) for box, one in calls))
        assert all(answer.acked == {"result": 19} for answer in answers)
        for box in boxes:
            assert gateway.bodies(box) == [b"%d:%s" % (n, box.encode()) for n in range(20)]
        assert (await gateway.ingest.ingest(boxes[0], call(item(0, b"x"), epoch="f" * 32))).acked == {"result": 0}

    in_virtual_time(program())


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (call(item(-1)), BadMessage),
        (call(item(3, skipped=4)), BadMessage),
        (call(item(1 << 62)), BadMessage),
        (call(Item(stream="results", seq=0, kind="result", digest="0" * 64)), BadMessage),
        (call(item(0, stream="result/" + "x" * 300)), BadMessage),
        (call(item(0), epoch=""), BadMessage),
        (call(item(0), epoch="../../etc"), BadMessage),
        (call(item(0, origin=(EPOCH, 0))), BadMessage),
        (call(item(0, origin=("f" * 32, -1))), BadMessage),
        (call(Item(stream="result", seq=0, kind="result", digest="no digest", body=b"x")), BadMessage),
        (call(item(0, bytes((1 << 20) + 1))), TooLarge),
        (call(*(item(n) for n in range(1025))), TooLarge),
        (call(*(item(n, bytes(1 << 20)) for n in range(6))), TooLarge),
        (IngestCall(epoch=EPOCH, items=(), protocol=99), VersionUnsupported),
    ],
    ids=lambda value: getattr(value, "__name__", "") if isinstance(value, type) else "",
)
def test_what_no_sound_box_sends_is_refused_whole(tmp_path: Path, broken: IngestCall, error: type[Exception]) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path)
        with pytest.raises(error):
            await gateway.ingest.ingest(BOX, broken)
        assert gateway.bodies() == []

    in_virtual_time(program())


def test_a_body_that_is_not_what_its_digest_says_is_asked_for_again(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path)
        good = item(0, b"content")
        bad = Item(stream="result", seq=0, kind="result", digest=good.digest, body=b"contemt")
        assert (await gateway.ingest.ingest(BOX, call(bad))).held == {"result": "digest"}
        assert (await gateway.ingest.ingest(BOX, call(good))).acked == {"result": 0}

    in_virtual_time(program())


def test_a_named_blob_that_is_not_here_is_not_acknowledged(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path)
        digest = sha256(b"large").hexdigest()
        named = Item(stream="result", seq=0, kind="result", digest=digest, blob_sha256=digest)
        answer = await gateway.ingest.ingest(BOX, call(named))
        assert (answer.acked, answer.held) == ({"result": -1}, {"result": "blob_missing"})
        gateway.ingest.store.blobs.put("cd" * 16, digest, b"large")
        assert (await gateway.ingest.ingest(BOX, call(named))).acked == {"result": -1}, "another box's does not count"
        gateway.ingest.store.blobs.put(BOX, digest, b"large")
        assert (await gateway.ingest.ingest(BOX, call(named))).acked == {"result": 0}
        assert gateway.bodies() == [b"large"]

    in_virtual_time(program())


def test_bounds_per_box_drop_telemetry_and_hold_results(tmp_path: Path) -> None:
    async def program() -> None:
        limits = IngestLimits(n_streams=3)
        limits.by_kind["telemetry"] = Allowance(n_items=5, n_bytes=1000, drops=True)
        limits.by_kind["result"] = Allowance(n_items=5, n_bytes=1000, drops=False)
        gateway = Gateway(tmp_path, limits=limits)
        take = gateway.ingest.ingest
        await take(BOX, call(*(item(n, stream="telemetry") for n in range(20))))
        assert sequence(gateway.bodies()) == [15, 16, 17, 18, 19]
        answer = await take(BOX, call(*(item(n) for n in range(8))))
        assert (answer.acked, answer.held) == ({"result": 4}, {"result": "quota"})
        assert gateway.quotas == [(BOX, "result")]
        assert (await take("cd" * 16, call(item(0)))).acked == {"result": 0}, "other boxes have their own share"
        await take(BOX, call(item(0, stream="sample")))
        answer = await take(BOX, call(item(0, stream="sample/more")))
        assert answer.held == {"sample/more": "quota"}, "numbers are kept for ever: streams are bounded"
        assert answer.acked == {"sample/more": -1}
        assert not gateway.bodies(stream="sample/more")

    in_virtual_time(program())


def test_the_same_sample_is_kept_once(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path)
        take = gateway.ingest.ingest
        await take(BOX, call(item(0, b"same", stream="sample"), item(1, b"same", stream="sample")))
        assert gateway.bodies() == [b"same"]

    in_virtual_time(program())


def test_reports_are_handed_on_in_order_at_least_once(tmp_path: Path) -> None:
    import msgspec

    async def program() -> None:
        gateway = Gateway(tmp_path)
        taken: list[tuple[str, str, int]] = []
        failures, n_groups = [2], [0]

        async def take(reports: Sequence[Report]) -> None:
            n_groups[0] += 1
            for box_id, report, item_id, _ in reports:
                if report.version == "3" and failures[0]:
                    failures[0] -= 1
                    raise StorageError("the disk does not take it now")
                taken.append((box_id, report.version, item_id))

        gateway.ingest.on_reports = take
        bodies = [msgspec.msgpack.encode(Installed(name="m", version=str(n), artifact_digest="")) for n in range(6)]
        bodies.insert(2, b"no report at all")
        async with running(gateway.ingest):
            await gateway.ingest.ingest(BOX, call(*(item(n, body, stream="report") for n, body in enumerate(bodies))))
            await until(lambda: taken and taken[-1][1] == "5", within_s=100)
        versions = [version for _, version, _ in taken]
        assert list(dict.fromkeys(versions)) == ["0", "1", "2", "3", "4", "5"]
        last: dict[int, str] = {}
        for _, version, item_id in taken:
            assert last.setdefault(item_id, version) == version
        assert gateway.bodies() == [], "what was handed on is not kept"
        assert n_groups[0] == 3, "those that came together are handed on together"

    in_virtual_time(program())


@pytest.mark.parametrize("seed", range(8))
def test_a_gateway_whose_power_is_cut_has_what_it_acknowledged(seed: int) -> None:
    """The box's side is played from the answers alone: what an answer acknowledged must be there in the next life."""
    rng = Random(f"gateway {seed}")
    image = Image()
    acknowledged = -1
    n_cuts = 0
    for life in range(12):
        disk = SimulatedDisk(image, Random(f"disk {seed} {life}"))
        with connecting(disk) as connect:
            try:
                acknowledged = _one_life(connect, disk, rng, acknowledged)
            except _Cut as cut:
                acknowledged = cut.acknowledged
                n_cuts += 1
        image.cut_power(rng)
    assert n_cuts > 6
    assert acknowledged > 20


class _Cut(Exception):
    def __init__(self, acknowledged: int) -> None:
        super().__init__()
        self.acknowledged = acknowledged


def _one_life(connect: object, disk: SimulatedDisk, rng: Random, acknowledged: int) -> int:
    try:
        ingest = Ingest(Path("/data/fleet"), connect=connect, blobs=None, wall_s=lambda: 0.0)  # type: ignore[arg-type]
        with ingest.store.database.reading() as db:
            seqs = [seq for (seq,) in db.execute("SELECT seq FROM item ORDER BY id").fetchall()]
        assert seqs == list(range(len(seqs)))
        assert len(seqs) > acknowledged, "acknowledged and gone"
        disk.cut_after = rng.randrange(1, 60)
        for _ in range(30):
            answer = _stored(ingest, acknowledged, rng.randrange(1, 5))
            acknowledged = answer.acked["result"]
    except PowerCut:
        raise _Cut(acknowledged) from None
    return acknowledged


def _stored(ingest: Ingest, acknowledged: int, n_items: int) -> IngestAnswer:
    items = [item(n) for n in range(acknowledged + 1, acknowledged + 1 + n_items)]
    return ingest.store.store([(BOX, call(*items))])[0].answer
