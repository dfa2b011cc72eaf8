"""Following the gateway: kept for starts without a network, jittered, and never a reason to lose what there is."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from edge_agent.disk import RealDisk
from edge_agent.follow.desired import Desired, DesiredFile
from edge_agent.follow.follow import STARTING_S, UNREADY_WAIT_S, WAIT_S, Follow, Leader
from edge_agent.follow.imports import TRUST, Imported, Imports, combined
from edge_agent.install.sealed import sealed
from hybrid.errors import ConnectionLost, CorruptContent, DiskFull, Forbidden, HybridError, Overloaded, StorageError
from hybrid.fleet.messages import Assigned, Health, StateAnswer, StateCall
from tests.install.box_lab import DATA, TRIAL, Box, Fleet, Made, Shelf
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.virtual_loop import Node, VirtualLoop


class Gateway:
    """The state call of a gateway, and when it was made."""

    def __init__(self, answer: StateAnswer | None = None) -> None:
        self.answer = answer or StateAnswer(generation="g0", poll_after_s=10.0)
        self.error: HybridError | None = None
        self.calls: list[StateCall] = []
        self.times: list[float] = []
        self.silence_s = 0.0

    async def state(self, call: StateCall) -> StateAnswer:
        self.calls.append(call)
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.silence_s)
        if self.error is not None:
            raise self.error
        if call.known == self.answer.generation:
            await asyncio.sleep(call.wait_s)
        return self.answer


class Life:
    """A box that follows, for one life."""

    def __init__(self, box: Box, gateway: Gateway | None, takes: Callable[[bytes], None]) -> None:
        self.box = box
        box.host.n_good_a_look = 1

        async def take(bundle: bytes) -> None:
            takes(bundle)

        self.health: Health | None = None
        leader = Leader(
            calls=lambda: gateway,  # type: ignore[arg-type,return-value]
            epoch=lambda: "e" * 32,
            run="r" * 32,
            trust_sequence=lambda: -1,
            take_trust=take,
            health=lambda: self.health,
        )
        self.follow = Follow(DATA, box.disk, leader=leader, install=box.install, rng=box.rng, now_s=lambda: box.clock_s)


def live(
    image: Image,
    shelf: Shelf,
    fleet: Fleet,
    gateway: Gateway | None,
    until: Callable[[Life], bool],
    *,
    within_s: float = 1000.0,
    seed: int = 0,
    takes: Callable[[bytes], None] = lambda bundle: None,
) -> Life:
    loop, lives = VirtualLoop(seed), []
    node = Node("box", 500.0)

    async def program() -> None:
        box = Box(SimulatedDisk(image, Random(seed)), shelf, fleet.trust(), rng=Random(seed))
        life = Life(box, gateway, takes)
        lives.append(life)
        tasks = [asyncio.ensure_future(box.install.run()), asyncio.ensure_future(life.follow.run())]
        await box.wait(lambda: until(life), within_s)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await box.install.stop()

    async def harness() -> None:
        task = loop.start(node, program())
        await asyncio.wait([task])
        task.result()

    loop.run(harness())
    return lives[0]


def wants(generation: str, *models: Assigned, **other: object) -> StateAnswer:
    return StateAnswer(generation=generation, models=models, poll_after_s=10.0, **other)


def answers(version: str) -> Callable[[Life], bool]:
    return lambda life: life.box.host.version() == version and life.box.told().phase == "committed"


def test_a_box_that_was_not_ready_tells_soon_that_it_is(fleet: Fleet) -> None:
    """It begins to follow before it serves; a poll that is held would let people see `not ready` for minutes."""
    gateway = Gateway()

    def told(life: Life) -> bool:
        life.health = Health(ready=len(gateway.calls) > 1)
        return len(gateway.calls) == 4

    live(Image(), Shelf(), fleet, gateway, told)
    assert [call.health.ready for call in gateway.calls] == [False, False, True, True]
    assert gateway.times[2] - gateway.times[0] <= UNREADY_WAIT_S + 2 * 10.0
    assert [call.wait_s for call in gateway.calls] == [UNREADY_WAIT_S, UNREADY_WAIT_S, WAIT_S, WAIT_S]


def test_a_box_that_stays_unready_asks_no_more_often_than_others(fleet: Fleet) -> None:
    """Its link may cost by the byte, and it may stay so for weeks."""
    gateway = Gateway()

    def went_on(life: Life) -> bool:
        life.health = Health(ready=False)
        return len(gateway.calls) > 4 and gateway.calls[-3].wait_s == WAIT_S

    live(Image(), Shelf(), fleet, gateway, went_on, within_s=3000.0)
    n_early = [call.wait_s for call in gateway.calls].index(WAIT_S)
    assert [call.wait_s for call in gateway.calls] == n_early * [UNREADY_WAIT_S] + (len(gateway.calls) - n_early) * [
        WAIT_S
    ]
    assert gateway.times[n_early - 1] - gateway.times[0] < STARTING_S <= gateway.times[n_early] - gateway.times[0] + 1.0
    assert gateway.times[-1] - gateway.times[-2] >= WAIT_S


def test_what_the_gateway_wants_is_installed_told_and_kept(fleet: Fleet, versions: list[Made]) -> None:
    image, gateway = Image(), Gateway(wants("g1", versions[0].assigned(trial=TRIAL, priority=7)))
    life = live(
        image, Shelf(*versions), fleet, gateway, lambda life: answers("1")(life) and gateway.calls[-1].installed != ()
    )
    assert gateway.calls[0].known == ""
    assert gateway.calls[-1].known == "g1"
    assert gateway.calls[-1].installed[0].artifact_digest == versions[0].digest
    assert life.box.host.answering["net"].priority == 7
    kept = DesiredFile(DATA, life.box.disk, lambda: 0.0).load()
    assert kept is not None
    assert (kept.generation, kept.models[0].version) == ("g1", "1")


def test_a_start_without_a_gateway_goes_on_with_what_was_wanted_last(fleet: Fleet, versions: list[Made]) -> None:
    """The gateway is gone before the version was fetched; the link to its files comes back, the gateway does not."""
    image, shelf = Image(), Shelf(*versions)
    shelf.is_down = True
    gateway = Gateway(wants("g1", versions[0].assigned(trial=TRIAL)))
    live(image, shelf, fleet, gateway, lambda life: life.box.told().phase == "downloading", within_s=50.0)
    shelf.is_down = False
    gateway.error = ConnectionLost("gone")
    life = live(image, shelf, fleet, gateway, answers("1"))
    assert life.box.host.version() == "1"
    life = live(image, shelf, fleet, None, answers("1"))
    assert life.box.host.version() == "1"


@pytest.mark.parametrize(
    "content", [None, b"", b"\0" * 50, b'{"schema":7}', sealed(b'{"schema":7}'), sealed(b'{"models":[{"name":1}]}')]
)
def test_a_lost_or_damaged_desired_state_takes_nothing_away(
    fleet: Fleet, versions: list[Made], content: bytes | None
) -> None:
    image, shelf = Image(), Shelf(*versions)
    live(image, shelf, fleet, Gateway(wants("g1", versions[0].assigned(trial=TRIAL))), answers("1"))
    disk = SimulatedDisk(image, Random(0))
    disk.remove(DATA / "desired.json")
    if content is not None:
        disk.append(DATA / "desired.json", content)
    shelf.is_down = True
    life = live(image, shelf, fleet, None, lambda life: False, within_s=100.0)
    assert life.box.host.version() == "1"
    aside = [name for name in life.box.disk.names(DATA) if name.startswith("desired.json.corrupt-")]
    assert len(aside) == (content is not None)


def test_a_flipped_bit_in_the_desired_state_is_never_obeyed(fleet: Fleet, versions: list[Made]) -> None:
    """A name that became another one would take the model away."""
    image, shelf = Image(), Shelf(*versions)
    live(image, shelf, fleet, Gateway(wants("g1", versions[0].assigned(trial=TRIAL))), answers("1"))
    disk = SimulatedDisk(image, Random(0))
    content = disk.read(DATA / "desired.json")
    shelf.is_down = True
    for at in range(0, len(content), 17):
        rotten = image.copy()
        disk = SimulatedDisk(rotten, Random(0))
        disk.remove(DATA / "desired.json")
        disk.append(DATA / "desired.json", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        life = live(rotten, shelf, fleet, None, lambda life: life.box.install.begun.is_set(), within_s=5.0)
        assert life.box.host.version() == "1", at
        assert any(".corrupt-" in name for name in life.box.disk.names(DATA)), at


def test_one_that_is_not_admitted_keeps_what_it_has(fleet: Fleet, versions: list[Made]) -> None:
    image, shelf = Image(), Shelf(*versions)
    live(image, shelf, fleet, Gateway(wants("g1", versions[0].assigned(trial=TRIAL))), answers("1"))
    gateway = Gateway(wants("g2", admission="quarantined"))
    life = live(image, shelf, fleet, gateway, lambda life: len(gateway.calls) > 5)
    assert life.box.host.version() == "1"
    gateway = Gateway(wants("g3"))
    life = live(image, shelf, fleet, gateway, lambda life: life.box.host.version() == "")
    assert life.box.host.version() == ""


def test_pauses_are_random_and_double_after_failures(fleet: Fleet, versions: list[Made]) -> None:
    gateway = Gateway()
    gateway.error = ConnectionLost("gone")
    live(Image(), Shelf(*versions), fleet, gateway, lambda life: len(gateway.calls) >= 40, within_s=5000.0, seed=3)
    pauses = [after - before for before, after in zip(gateway.times, gateway.times[1:], strict=False)]
    assert max(pauses[:3]) <= 4.0
    assert max(pauses) <= 60.0
    late = pauses[8:]
    assert max(late) > 40.0
    assert min(late) < 12.0
    assert 20.0 < sum(late) / len(late) < 40.0


def test_an_overloaded_gateway_is_left_alone_as_long_as_it_asks(fleet: Fleet, versions: list[Made]) -> None:
    gateway = Gateway()
    gateway.error = Overloaded("full", retry_after_s=100.0)
    live(Image(), Shelf(*versions), fleet, gateway, lambda life: len(gateway.calls) >= 4)
    pauses = [after - before for before, after in zip(gateway.times, gateway.times[1:], strict=False)]
    assert min(pauses) >= 100.0


def test_a_gateway_that_says_nothing_is_given_up_on(fleet: Fleet, versions: list[Made]) -> None:
    gateway = Gateway()
    gateway.silence_s = 1e6
    live(Image(), Shelf(*versions), fleet, gateway, lambda life: len(gateway.calls) >= 3)
    assert len(gateway.calls) >= 3


def test_a_trust_bundle_that_is_refused_changes_nothing(fleet: Fleet, versions: list[Made]) -> None:
    taken: list[bytes] = []

    def takes(bundle: bytes) -> None:
        taken.append(bundle)
        raise Forbidden("another root")

    gateway = Gateway(wants("g1", versions[0].assigned(trial=TRIAL), trust=b"bundle"))
    life = live(Image(), Shelf(*versions), fleet, gateway, answers("1"), takes=takes)
    assert taken
    assert life.box.host.version() == "1"


def imported(made: Made, after: str, order: int) -> Imported:
    return Imported(assigned=made.assigned(), after=after, order=order)


def test_an_import_counts_until_the_gateway_says_something_newer(versions: list[Made]) -> None:
    one, two, three = (made.assigned() for made in versions)
    assert combined([], "", [imported(versions[0], "", 1)]) == ([one], [imported(versions[0], "", 1)])
    assert combined([one], "g1", [imported(versions[1], "g1", 1)])[0] == [two]
    assert combined([one], "g2", [imported(versions[1], "g1", 1)]) == ([one], [])
    assert combined([], "g2", [imported(versions[1], "g1", 1)])[0] == [two]
    latest = [imported(versions[1], "g1", 1), imported(versions[2], "g1", 2)]
    assert combined([one], "g1", latest)[0] == [three]


def test_desired_states_of_another_schema_are_set_aside(tmp_path: Path) -> None:
    from edge_agent.disk import RealDisk

    file = DesiredFile(tmp_path, RealDisk(), lambda: 5.0)
    assert file.load() is None
    file.save(Desired(generation="g"))
    assert file.load() == Desired(generation="g")
    (tmp_path / "desired.json").write_text("[]")
    assert file.load() is None
    assert (tmp_path / "desired.json.corrupt-5").exists()


class Assigning:
    """An installation that notes what is assigned."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.assigned: list[list[str]] = []

    def hurry(self, code: str = "") -> None:
        """Nothing waits here."""

    def assign(self, models: list[Assigned]) -> None:
        self.assigned.append([assigned.version for assigned in models])

    def installed(self) -> tuple[()]:
        return ()


class SlowImports:
    """Imports whose first look takes until it is let go, and whose `failures` looks then fail."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_looks, self.failures = folder, 0, 0
        self.looks, self.goes_on = threading.Event(), threading.Event()

    def all(self) -> list[Imported]:
        self.n_looks += 1
        if self.n_looks == 1:
            self.looks.set()
            self.goes_on.wait(5)
        elif self.failures:
            self.failures -= 1
            raise StorageError("the disk refused")
        return []


def following(
    folder: Path, take_trust: Callable[[bytes], Awaitable[None]] | None = None
) -> tuple[Follow, Assigning, SlowImports]:
    take = take_trust or _refuse
    leader = Leader(calls=lambda: None, epoch=str, run="", trust_sequence=lambda: -1, take_trust=take)
    install = Assigning()
    follow = Follow(folder, RealDisk(), leader=leader, install=install, rng=Random(1), now_s=lambda: 0.0)  # type: ignore[arg-type]
    imports = SlowImports(folder / "imports")
    follow.imports = imports  # type: ignore[assignment]
    return follow, install, imports


async def _refuse(bundle: bytes) -> None:
    raise AssertionError


def _one(version: str) -> Assigned:
    return Assigned(name="net", version=version, artifact_digest=version * 64)


async def test_a_look_that_began_with_an_older_state_does_not_end_last(tmp_path: Path) -> None:
    follow, install, imports = following(tmp_path)
    follow.desired = Desired(generation="g1", models=(_one("1"),))
    slow = asyncio.create_task(follow._apply())
    await asyncio.to_thread(imports.looks.wait, 5)
    newer = asyncio.create_task(follow._take(wants("g2", _one("2"))))
    await asyncio.sleep(0.05)
    imports.goes_on.set()
    await asyncio.gather(slow, newer)
    assert install.assigned == [["1"], ["2"]]


async def test_a_state_that_could_not_be_handed_on_is_taken_again(tmp_path: Path) -> None:
    follow, install, imports = following(tmp_path)
    imports.n_looks, imports.failures = 1, 1
    with pytest.raises(StorageError):
        await follow._take(wants("g2", _one("2")))
    await follow._take(wants("g2", _one("2")))
    assert install.assigned == [["2"]]


async def test_imported_keys_wait_for_room_on_the_disk(tmp_path: Path) -> None:
    failures: list[HybridError] = []

    async def take(bundle: bytes) -> None:
        if failures:
            raise failures.pop()

    follow, _, imports = following(tmp_path, take)
    imports.n_looks = 1
    for found, stays in ((DiskFull("no room"), True), (CorruptContent("torn"), False), (None, False)):
        failures[:] = [] if found is None else [found]
        imports.folder.mkdir(exist_ok=True)
        (imports.folder / TRUST).write_bytes(b"bundle")
        await follow._apply()
        assert (imports.folder / TRUST).exists() == stays


def test_an_import_that_comes_between_two_looks_stays(tmp_path: Path) -> None:
    imports = Imports(tmp_path, RealDisk())
    assigned = _one("1")
    files = imports.folder / assigned.artifact_digest
    files.mkdir(parents=True)
    imports.clean([], [], [])  # its files are here, its record is not yet
    imports.add(assigned, "")
    assert files.is_dir()
    [imported] = imports.all()
    imports.clean([imported], [assigned.artifact_digest], [])
    imports.clean([imported], [assigned.artifact_digest], [])
    assert files.is_dir()
    assert imports.all() == [imported]
    for _ in range(2):
        imports.clean([], [], [])
    assert imports.all() == []
    assert not files.exists()
