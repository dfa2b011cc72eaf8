"""What must be true when a history is over: P3 and P4 over every put, P2 and P5 over every model."""

from typing import TYPE_CHECKING

from tests.reliability.box import Box, Put
from tests.reliability.machine import DATA
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.simulated_sqlite import connecting

if TYPE_CHECKING:
    from tests.reliability.world import World


def check_end(world: "World", converged_s: float | None) -> None:
    """Look at everything once more."""
    history = world.history
    history.add("CHECK", "converged", after_s=converged_s)
    if converged_s is None:
        history.breach("P5", "not as it should be, long after the last fault: " + "; ".join(map(_state, world.boxes)))
        return
    stored = stored_items(world)
    for box in world.boxes:
        _check_box(world, box, stored)


def _state(box: Box) -> str:
    if box.outbox is None or box.install is None:
        return f"{box.name} is down"
    told = [(one.version, one.phase, one.code) for one in box.install.installed()]
    return f"{box.name} has {told}, outbox {box.outbox.status()}"


def stored_items(world: "World") -> list[tuple[str, str, str, int, str]]:
    """What the gateway holds: box, kind, stream, seq, word; in the order in which it was stored."""
    clone = world.gateway.image.copy()
    found = []
    with connecting(SimulatedDisk(clone, world.rng)) as connect:
        rows = connect(DATA / "ingest.db").execute("SELECT box, kind, stream, seq, blob, body FROM item ORDER BY id")
        for box, kind, stream, seq, blob, body in rows:
            content = world.gateway.blobs.read(box, blob) if blob else bytes(body)
            word = content.partition(b"\0")[0].decode(errors="replace")
            found.append((box, kind, stream, seq, word))
    return found


def _check_box(world: "World", box: Box, stored: list[tuple[str, str, str, int, str]]) -> None:
    history = world.history
    mine = [row for row in stored if row[0] == box.name]
    words = [row[4] for row in mine]
    twice = sorted({word for word in words if words.count(word) > 1 and word.startswith(box.name)})
    if twice:
        history.breach("P4", f"stored twice: {twice[:5]}")
    there = set(words)
    lost = [put for put in box.puts if put.is_kept and put.word not in there and not _is_excused(box, put)]
    for put in lost:
        if put.kind in ("result", "deferred"):
            history.breach("P3", f"acknowledged and lost: {put}")
    _check_droppable(world, box, [put for put in lost if put.kind == "sample"])
    by_stream: dict[str, list[str]] = {}
    for row in mine:
        by_stream.setdefault(row[2], []).append(row[4])
    for stream, order in by_stream.items():
        wanted = [put.word for put in box.puts if put.is_kept and put.stream == stream and put.word in set(order)]
        got = [word for word in order if word in set(wanted)]
        if got != wanted and not box.rolled_back and not box.is_rotten:
            history.breach("P3", f"stream {stream} out of order: {_first_difference(got, wanted)}")


def _is_excused(box: Box, put: Put) -> bool:
    """Whether no software could have kept it: the bits changed, or the disk was set back to before."""
    return box.is_rotten or any(to_s <= put.kept_s <= at_s for to_s, at_s in box.rolled_back)


def _check_droppable(world: "World", box: Box, lost: list[Put]) -> None:
    """Samples may leave when room is short, and are counted then."""
    assert box.outbox is not None
    if box.rolled_back or box.is_rotten:
        return
    count = box.outbox.store.ledger.counts["sample"]
    if len(lost) > count.n_dropped + count.n_lost:
        world.history.breach("P3", f"{box.name}: {len(lost)} samples are gone, {count} were counted: {lost[:2]}")


def _first_difference(got: list[str], wanted: list[str]) -> str:
    for n, (one, other) in enumerate(zip(got, wanted, strict=False)):
        if one != other:
            return f"at {n} {one} stands where {other} should"
    return f"{len(got)} of {len(wanted)}"
