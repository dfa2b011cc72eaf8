"""Which faults a seed draws, how often, and what each of them does to a world.

Design: swarm testing (Groce et al. 2012): a run that leaves most faults out finds what a run with all of them hides, so
each seed draws its own set. Every fault ends by itself or is ended by `heal`.
"""

from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from tests.reliability.box import MODEL
from tests.reliability.machine import DATA

if TYPE_CHECKING:
    from tests.reliability.world import World

Fault = Callable[["World", Random], Coroutine[Any, Any, None]]


async def _for(world: "World", rng: Random, least_s: float, most_s: float) -> None:
    await world.rest(rng.uniform(least_s, most_s))


async def link_lossy(world: "World", rng: Random) -> None:
    weather = rng.choice(world.boxes).link.weather
    weather.lost_ratio = rng.choice((0.05, 0.3, 0.8))
    await _for(world, rng, 5, 60)
    weather.lost_ratio = 0.0


async def link_doubling(world: "World", rng: Random) -> None:
    weather = rng.choice(world.boxes).link.weather
    weather.doubled_ratio = rng.choice((0.1, 0.6))
    await _for(world, rng, 5, 60)
    weather.doubled_ratio = 0.0


async def link_cut(world: "World", rng: Random) -> None:
    weather = rng.choice(world.boxes).link.weather
    way = rng.choice(("up", "down", "both"))
    weather.is_cut_up, weather.is_cut_down = way != "down", way != "up"
    await _for(world, rng, 1, 90)
    weather.is_cut_up = weather.is_cut_down = False


async def link_slow(world: "World", rng: Random) -> None:
    weather = rng.choice(world.boxes).link.weather
    weather.delay_s, weather.jitter_s, weather.bytes_per_s = (
        rng.uniform(0.1, 4),
        rng.uniform(0, 8),
        rng.choice((2e3, 1e5)),
    )
    await _for(world, rng, 5, 60)
    weather.delay_s, weather.jitter_s, weather.bytes_per_s = 0.02, 0.01, 5e6


async def gateway_killed(world: "World", rng: Random) -> None:
    world.gateway.end("kill")


async def gateway_power(world: "World", rng: Random) -> None:
    world.gateway.end("power")


async def gateway_cut_within(world: "World", rng: Random) -> None:
    world.gateway.cut_within(rng.randrange(60), rng.choice(("kill", "power")))


async def gateway_frozen(world: "World", rng: Random) -> None:
    node = world.gateway.node
    if node is None:
        return
    world.history.add("gateway", "frozen")
    world.loop.freeze(node)
    await _for(world, rng, 1, 60)
    world.loop.thaw(node)


async def box_killed(world: "World", rng: Random) -> None:
    rng.choice(world.boxes).end("kill")


async def box_power(world: "World", rng: Random) -> None:
    rng.choice(world.boxes).end("power")


async def box_cut_within(world: "World", rng: Random) -> None:
    rng.choice(world.boxes).cut_within(rng.randrange(200), rng.choice(("kill", "power", "power")))


async def disk_full(world: "World", rng: Random) -> None:
    box = rng.choice(world.boxes)
    box.image.capacity_bytes = box.image.used_bytes + rng.choice((0, 3000, 50_000))
    world.history.add("disk", "full")
    await _for(world, rng, 5, 60)
    box.image.capacity_bytes = 1 << 40


async def disk_failing(world: "World", rng: Random) -> None:
    box = rng.choice(world.boxes)
    disk = box.disk
    if disk is None:
        return
    disk.eio_ratio = rng.choice((0.02, 0.3))
    box.is_tainted = True
    world.history.add("disk", "failing")
    await _for(world, rng, 1, 20)
    disk.eio_ratio = 0.0


async def models_rot(world: "World", rng: Random) -> None:
    """Bits of a slot change while the box is off."""
    box = rng.choice(world.boxes)
    box.end("power")
    folder = DATA / "models" / MODEL / rng.choice("ab")
    names = ("model.onnx", "manifest.json", "golden/y.npy")
    box.image.flip_bits(folder / rng.choice(names), rng, rng.choice((1, 50)))
    box.has_committed = False  # the other slot may be empty
    world.history.add(box.name, "models rot")


async def outbox_rots(world: "World", rng: Random) -> None:
    """Bits of the outbox's database change while the box is off."""
    box = rng.choice(world.boxes)
    box.end("power")
    box.image.flip_bits(DATA / "outbox" / rng.choice(("outbox.db", "outbox.db-wal")), rng, rng.choice((1, 200)))
    box.is_rotten = True
    world.history.add(box.name, "outbox rots")


async def records_rot(world: "World", rng: Random) -> None:
    """Bits of small files change while the box is off."""
    box = rng.choice(world.boxes)
    box.end("power")
    for path in (DATA / "models" / MODEL / "slots.json", DATA / "desired.json", DATA / "running.json"):
        if rng.random() < 0.5:
            box.image.flip_bits(path, rng, rng.choice((1, 20)))
    box.has_committed = False  # which version was, nobody knows any more
    world.history.add(box.name, "records rot")


async def set_back(world: "World", rng: Random) -> None:
    """The box's disk is saved, and later put back as it was: an old image on an SD card."""
    box = rng.choice(world.boxes)
    if box.saved is None:
        box.saved = (world.loop.now_s, box.image.copy())
        return
    saved_s, image = box.saved
    box.saved = None
    box.end("power")
    image.capacity_bytes = box.image.capacity_bytes
    box.image = image
    box.rolled_back.append((saved_s, world.loop.now_s))
    box.has_committed = False
    world.history.add(box.name, "set back", to_s=saved_s)


async def clock_jumps(world: "World", rng: Random) -> None:
    machine = rng.choice((world.gateway, *world.boxes))
    machine.clock_error_s = rng.choice((-1.7e9, -3600.0, 3600.0, 30 * 86400.0, 0.0))
    world.history.add(machine.name, "clock jumps", by_s=machine.clock_error_s)


FAULTS: dict[str, Fault] = {
    "link lossy": link_lossy,
    "link doubling": link_doubling,
    "link cut": link_cut,
    "link slow": link_slow,
    "gateway killed": gateway_killed,
    "gateway power": gateway_power,
    "gateway cut within": gateway_cut_within,
    "gateway frozen": gateway_frozen,
    "box killed": box_killed,
    "box power": box_power,
    "box cut within": box_cut_within,
    "disk full": disk_full,
    "disk failing": disk_failing,
    "models rot": models_rot,
    "outbox rots": outbox_rots,
    "records rot": records_rot,
    "set back": set_back,
    "clock jumps": clock_jumps,
}


def draw(rng: Random) -> dict[str, float]:
    """This seed's faults, and how often each of them comes against the others."""
    share = rng.choice((0.1, 0.3, 0.6))
    return {name: rng.choice((1.0, 1.0, 4.0)) for name in FAULTS if rng.random() < share}
