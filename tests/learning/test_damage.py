"""A learning.db with flipped bytes: it is read, or set aside and begun anew, and never keeps the part from working."""

from pathlib import Path
from random import Random

import msgspec

from edge_agent.learning.records import CampaignNote
from edge_agent.learning.store import LearningStore
from edge_agent.outbox.place import Place
from tests.learning.lab import Box, at_work, made
from tests.learning.test_faults import settled
from tests.learning.test_power_cuts import TERMS, waiting_of
from tests.outbox.lab import until


def kept_in(folder: Path) -> None:
    """Two campaigns, a settled task, an update that waits."""
    store = LearningStore(Place(folder=folder))
    store.open("gateway")
    first = CampaignNote(id="c", terms=TERMS, step=3, last="an update counted")
    store.keep(first, {"view": b"v" * 700, "residual": b"r" * 700}, (waiting_of("one", b"u" * 300), b"u" * 300))
    store.settle("accepted", first, {}, {"net": b"{}"})
    store.keep(msgspec.structs.replace(first, id="d"), {"view": b"w" * 700})
    store.keep(first, {}, (waiting_of("two", b"w" * 300), b"w" * 300))
    store.close()


def test_flipped_bytes_cost_what_was_learned_at_most(tmp_path: Path) -> None:
    kept_in(tmp_path)
    path = tmp_path / "learning.db"
    assert not path.with_name("learning.db-wal").exists()
    sound, rng = path.read_bytes(), Random(3)
    n_anew = 0
    for _ in range(150):
        damaged = bytearray(sound)
        at = rng.randrange(100, len(damaged))
        for place in range(at, min(at + rng.choice((1, 30)), len(damaged))):
            damaged[place] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        store = LearningStore(Place(folder=tmp_path))
        store.open("gateway")
        store.update()
        for campaign in store.notes:
            store.vector(campaign, "view")
        store.account("net")
        store.keep(CampaignNote(id="e", terms=TERMS), {"view": b"x" * 700})
        assert store.vector("e", "view") == b"x" * 700
        n_anew += store.n_begun_anew
        store.close()
        for left in tmp_path.glob("learning.db*"):
            left.unlink()
    assert 0 < n_anew < 150


async def test_a_damaged_database_is_begun_anew(tmp_path: Path) -> None:
    artifact, desk = made()
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await until(lambda: settled(box))
        path = tmp_path / "box" / "learning" / "learning.db"
        path.write_bytes(b"\xff" * len(path.read_bytes()))
        desk.most_steps = 2
        box.started()
        async with at_work(box.learning):
            await until(lambda: settled(box))
            assert [problem.code for problem in box.learning.problems()] == ["learning_begun_anew"]
    assert desk.step == 2
    assert list(path.parent.glob("learning.db.corrupt-*"))
