"""Power cuts at every operation of the disk: what was acknowledged is there, once and in order, the store is sound."""

from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from edge_agent.outbox.place import Place
from edge_agent.outbox.policy import OutboxLimits
from edge_agent.outbox.records import Kept, NewItem
from edge_agent.outbox.store import OutboxStore
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.simulated_sqlite import connecting
from tests.reliability.virtual_loop import PowerCut

FOLDER = Path("/data/outbox")
N_LIVES = 24
N_SEEDS = 20


class History:
    """What the store promised, over all lives of one box."""

    def __init__(self) -> None:
        self.promised: dict[str, bytes] = {}
        self.sent: set[str] = set()
        self.n_words = 0

    def items(self, rng: Random) -> list[NewItem]:
        found = []
        for _ in range(rng.randrange(1, 6)):
            kind = rng.choice(["result", "result", "deferred", "telemetry", "report"])
            size = rng.choice([20, 300, 3000, 130_000])
            self.n_words += 1
            word = f"{self.n_words:06d}"
            body = word.encode() + rng.randbytes(size)
            ticket = word if kind == "deferred" else ""
            found.append(NewItem(kind=kind, stream=kind, body=body, ticket=ticket))
        return found


def store_on(disk: SimulatedDisk, connect: object, rng: Random) -> OutboxStore:
    place = Place(folder=FOLDER, disk=disk, connect=connect, wall_s=lambda: 0.0)
    return OutboxStore(place, limits=OutboxLimits(reserve_bytes=0), rng=rng)


def all_items(store: OutboxStore) -> dict[str, bytes]:
    """What would travel, by word; each body is what its digest says, each stream without a hole or a repetition."""
    found: dict[str, bytes] = {}
    numbers: dict[str, list[int]] = {}
    held: set[str] = set()
    while items := store.batch(least_important=4, held=held, now_s=0.0).items:
        stream = items[0].stream
        for item in items:
            if item.stream != stream:
                break
            body = store.read_file(item) if item.blob else item.body
            assert sha256(body).hexdigest() == item.digest
            found[body[:6].decode()] = body
            numbers.setdefault(stream, []).append(item.seq)
            store.ledger.settled[item.id] = (item.id, item.kind, stream, item.seq, "", 0, "")
    store.ledger.settled.clear()
    for stream, seqs in numbers.items():
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs))), (stream, seqs)
    return found


def one_life(disk: SimulatedDisk, history: History, rng: Random) -> None:
    """Opens the store, checks all that was promised, and works until the power goes."""
    with connecting(disk) as connect:
        store = store_on(disk, connect, rng)
        disk.cut_after = None
        store.open()
        check(store, history)
        disk.cut_after = rng.randrange(1, 120)
        for _ in range(40):
            work(store, history, rng)


def check(store: OutboxStore, history: History) -> None:
    there = all_items(store)
    missing = {word for word in history.promised if word not in there and word not in history.sent}
    assert not missing, f"acknowledged and gone: {sorted(missing)}"
    assert all(there[word] == body for word, body in history.promised.items() if word in there)
    with store.database.reading() as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        open_tickets = {ticket for (ticket,) in db.execute("SELECT ticket FROM tickets").fetchall()}
        waiting = {ticket for (ticket,) in db.execute("SELECT ticket FROM items WHERE kind = 'deferred'").fetchall()}
    assert waiting <= open_tickets, "a deferred request without its ticket"
    assert store.n_begun_anew == 0, "a power cut alone never damages the store"


def work(store: OutboxStore, history: History, rng: Random) -> None:
    kind = rng.randrange(10)
    if kind < 6:
        items = history.items(rng)
        kept = store.keep(items, 0.0)
        for item, one in zip(items, kept, strict=True):
            assert isinstance(one, Kept)
            history.promised[item.body[:6].decode()] = item.body
    elif kind < 9:
        batch = store.batch(least_important=4, held=(), now_s=0.0)
        bodies = [store.read_file(item) if item.blob else item.body for item in batch.items]
        history.sent |= {body[:6].decode() for body in bodies}
        store.settle(batch.items, {item.stream: item.seq for item in batch.items})
    else:
        store.tidy(0.0)


@pytest.mark.parametrize("seed", range(N_SEEDS))
def test_nothing_acknowledged_is_lost(seed: int) -> None:
    """480 cuts in all; every second one loses only the process, which tears nothing but forgets what was in memory."""
    rng = Random(f"cuts {seed}")
    image = Image()
    history = History()
    n_cuts = 0
    for life in range(N_LIVES):
        disk = SimulatedDisk(image, Random(f"disk {seed} {life}"))
        try:
            one_life(disk, history, rng)
        except PowerCut:
            n_cuts += 1
        if life % 2 == 0:
            image.cut_power(rng)
    assert n_cuts == N_LIVES, "every life was cut"
    assert len(history.promised) > 20


def test_the_trial_would_find_a_store_that_syncs_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """With synchronous=NORMAL the same cuts lose acknowledged items: the harness sees what it is there for."""
    from edge_agent.outbox import database

    careless = tuple(pragma.replace("FULL", "NORMAL") for pragma in database._PRAGMAS)
    monkeypatch.setattr(database, "_PRAGMAS", careless)
    with pytest.raises(AssertionError, match="acknowledged and gone"):
        for seed in range(N_SEEDS):
            test_nothing_acknowledged_is_lost(seed)


def test_the_trial_would_find_files_whose_folder_is_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SimulatedDisk.sync

    def careless(disk: SimulatedDisk, path: Path) -> None:
        if path.name != "blobs":
            real(disk, path)

    monkeypatch.setattr(SimulatedDisk, "sync", careless)
    with pytest.raises((AssertionError, OSError)):
        for seed in range(N_SEEDS):
            test_nothing_acknowledged_is_lost(seed)
