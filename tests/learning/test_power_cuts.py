"""Power cuts at every operation of the disk: an update and what is left over of it change together or not at all."""

from hashlib import sha256
from pathlib import Path
from random import Random

import msgspec
import pytest

from edge_agent.learning.records import CampaignNote, Waiting
from edge_agent.learning.store import LearningStore
from edge_agent.outbox.place import Place
from edge_agent.samples.vault import Vault
from hybrid.errors import DiskFull
from hybrid.federated.layout import Layout
from hybrid.federated.messages import Terms
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.simulated_sqlite import connecting
from tests.reliability.virtual_loop import PowerCut

FOLDER = Path("/data/learning")
N_LIVES = 12
TERMS = Terms(model="net", artifact_digest="d" * 64, variant="v", layout=Layout(names=("w",), shapes=((2,),)))


def content(word: str, rng: Random) -> bytes:
    """A vector that says which task it is of."""
    return word.encode() + rng.randbytes(rng.choice([40, 3000, 50_000]))


def waiting_of(word: str, update: bytes) -> Waiting:
    digest = sha256(update).hexdigest()
    return Waiting(task=word, campaign="c", step=1, form="int8", sha256=digest, n_bytes=len(update))


class History:
    """What the store promised: the update that waits, and what was settled.

    Attributes:
        promised: the update of the last `keep` that returned, or of the one that a cut ended.
        tried: what the cut one would have kept.
        owed: what counted, and is to be said with the next transaction.
    """

    def __init__(self) -> None:
        self.n = 0
        self.kept: dict[str, bytes] | None = None
        self.tried: list[dict[str, bytes] | None] = []
        self.settled: list[str] = []
        self.owed: list[str] = []


def check(store: LearningStore, history: History) -> None:
    """What is there is one whole state: the promised one, or the one that the cut was about."""
    possible = [*history.tried, history.kept]
    update = store.update()
    found = None
    if store.waiting is not None:
        assert update is not None
        assert sha256(update).hexdigest() == store.waiting.sha256
        residual = store.vector("c", "residual")
        assert residual is not None
        found = {"update": update, "residual": residual}
    assert found in possible, "neither what was promised nor what was being done"
    assert store.n_begun_anew == 0, "a power cut alone never damages the store"
    if found in history.tried:
        history.settled += history.owed
    history.owed = []
    assert set(history.settled) <= set(store.done)
    n_accepted = store.notes["c"].n_accepted if "c" in store.notes else 0
    assert n_accepted == len(store.done), "an update was counted twice, or not at all"
    history.kept, history.tried = found, []


def live(store: LearningStore, history: History, rng: Random) -> None:
    """One more thing done."""
    note = store.notes.get("c") or CampaignNote(id="c", terms=TERMS)
    if store.waiting is None:
        history.n += 1
        word = f"{history.n:05d}"
        wanted = {"update": content(word, rng), "residual": content("r" + word, rng)}
        history.tried = [wanted]
        vectors = {"residual": wanted["residual"], "view": content("v", rng)}
        store.keep(note, vectors, (waiting_of(word, wanted["update"]), wanted["update"]))
        history.kept, history.tried = wanted, []
        history.settled += history.owed
        history.owed = []
        return
    task = store.waiting.task
    note = msgspec.structs.replace(note, n_accepted=note.n_accepted + 1)
    if rng.random() < 0.5:
        assert store.settle_with_next("accepted", note)
        assert store.waiting is None
        assert task in store.done
        history.owed = [task]
        if rng.random() < 0.3:
            history.tried = [None]
            store.pay()
            history.kept, history.tried, history.owed = None, [], []
            history.settled.append(task)
        return
    history.tried = [history.kept] if history.kept else []
    after = history.kept
    history.kept = None
    store.settle("accepted", note, {}, {})
    assert after is not None
    history.tried = []
    history.settled.append(task)


@pytest.mark.parametrize("seed", range(8))
def test_whole_or_not_at_all(seed: int) -> None:
    """Of 96 lives each ends in a cut; every second one loses only the process."""
    rng = Random(f"cuts {seed}")
    image, history = Image(), History()
    n_cuts = 0
    for life in range(N_LIVES):
        disk = SimulatedDisk(image, Random(f"disk {seed} {life}"))
        try:
            with connecting(disk) as connect:
                vault = Vault([("file", b"k" * 32)])
                store = LearningStore(Place(folder=FOLDER, disk=disk, connect=connect, vault=vault, wall_s=lambda: 0.0))
                store.open("gateway")
                check(store, history)
                disk.cut_after = rng.randrange(1, 90)
                while True:
                    live(store, history, rng)
        except PowerCut:
            n_cuts += 1
        if life % 2 == 0:
            image.cut_power(rng)
    assert n_cuts == N_LIVES
    assert len(history.settled) > 5


def test_a_disk_without_room_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LearningStore(Place(folder=tmp_path))
    store.open("gateway")
    history, rng = History(), Random(1)
    live(store, history, rng)
    task = store.waiting.task if store.waiting is not None else ""

    def full(*_: object) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(store._files, "write", full)
    note = store.notes["c"]
    with pytest.raises(DiskFull):
        store.settle("stale", note, {"residual": b"x" * 50_000}, {})
    assert store.waiting is not None
    monkeypatch.undo()
    store.close()
    store.open("gateway")
    assert store.waiting is not None
    assert store.waiting.task == task
    assert store.update() == (history.kept or {})["update"]
    store.close()


def test_only_so_many_campaigns(tmp_path: Path) -> None:
    store = LearningStore(Place(folder=tmp_path))
    store.open("gateway")
    for n in range(40):
        store.keep(CampaignNote(id=f"c{n}", terms=TERMS, is_over=n == 39), {"view": b"v" * 40_000})
        if n == 20:
            store.end(["c20"])
    assert len(store.notes) == 32
    assert "c20" not in store.notes, "those that are over leave first"
    assert len(list((tmp_path / "vectors").iterdir())) == 1, "all views are the same bytes here"
    store.close()
    store.open("gateway")
    assert len(store.notes) == 32
    store.close()
