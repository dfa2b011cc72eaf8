"""What becomes of an assignment: room, links, engines, trials, crashes, and the next one after each failure."""

import asyncio
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from edge_agent.disk import RealDisk
from edge_agent.install.model import Model
from hybrid.errors import DiskFull, EngineCrashed
from hybrid.fleet.messages import Assigned
from hybrid.fleet.rollback import Rollback, signed_rollback
from tests.install.box_lab import TRIAL, Box, Fleet, Made, Shelf, committed, live, make
from tests.install.settled import ended, good, install
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk

DOWNLOADS = Path("/data/downloads")


def test_a_first_version_goes_through_every_phase(fleet: Fleet, versions: list[Made]) -> None:
    box = install(Image(), Shelf(*versions), fleet, versions[0], committed("1"))
    assert box.phases == ["downloading", "verified", "warming", "trial", "committed"]
    assert box.reports[-1].artifact_digest == versions[0].digest
    assert box.reports[1].wanted_digest == versions[0].digest
    assert list(box.disk.names(DOWNLOADS)) == []


def test_only_what_is_not_here_travels(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    shelf = Shelf(*versions)
    install(with_one.copy(), shelf, fleet, versions[1], committed("2"))
    assert shelf.n_sent_bytes == len(versions[1].files["model.onnx"])


def test_a_broken_download_goes_on_from_where_it_broke(fleet: Fleet, versions: list[Made]) -> None:
    shelf = Shelf(*versions)
    shelf.cut_every_bytes = 2000
    box = install(Image(), shelf, fleet, versions[0], committed("1"))
    assert shelf.n_sent_bytes == sum(map(len, versions[0].files.values()))
    assert box.phases[-1] == "committed"


def test_a_file_that_stands_under_two_names_is_two_files(fleet: Fleet) -> None:
    blob = Random(1).randbytes(4000)
    made = make({"model.onnx": blob, "copy/of.bin": blob}, key=fleet.publisher)
    again = make({"name.onnx": blob, "b.bin": b"new"}, key=fleet.publisher, version="2", sequence=2)
    image, shelf = Image(), Shelf(made, again)
    install(image, shelf, fleet, made, committed("1"))
    assert shelf.n_sent_bytes == 4000
    install(image, shelf, fleet, again, committed("2"))
    assert shelf.n_sent_bytes == 4003


# -- room


def test_without_room_nothing_is_fetched_and_it_is_tried_again(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    image.capacity_bytes = image.used_bytes + 3000
    box = install(image, shelf, fleet, versions[2], ended("deferred"), within_s=60.0)
    assert (box.told().phase, box.told().code) == ("deferred", "disk_full")
    assert shelf.n_sent_bytes == 0
    assert box.host.version() == "1"

    def room(box: Box) -> None:
        good(box)
        image.capacity_bytes += 20_000

    box = install(image, shelf, fleet, versions[2], committed("3"), prepare=room)
    assert box.host.version() == "3"


def test_room_that_comes_back_is_noticed_without_a_restart(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    image.capacity_bytes = image.used_bytes + 3000

    def until(box: Box) -> bool:
        if box.told().phase == "deferred":
            image.capacity_bytes = 1 << 30
        return committed("3")(box)

    assert install(image, shelf, fleet, versions[2], until).host.version() == "3"


def test_a_disk_that_fills_up_in_the_middle_gets_its_room_back(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)

    def fill_up() -> None:
        image.capacity_bytes = min(image.capacity_bytes, image.used_bytes + 500)

    shelf.on_block = fill_up
    box = install(image, shelf, fleet, versions[2], ended("deferred"), within_s=60.0)
    assert box.told().code == "disk_full"
    assert list(box.disk.names(DOWNLOADS)) == []
    assert box.host.version() == "1"


async def test_without_room_for_one_model_what_came_of_more_important_ones_stays(
    tmp_path: Path, versions: list[Made]
) -> None:
    box = Box(RealDisk(), Shelf(*versions), None, data=tmp_path)
    means, models = box.install._means, box.install._models
    for name, priority, sha256 in (("full", 5, "a" * 64), ("above", 7, "b" * 64), ("below", 3, "c" * 64)):
        models[name] = Model(means, name)
        models[name].assigned = replace(versions[0].assigned(), name=name, priority=priority)
        models[name].slots = replace(models[name].slots, phase="downloading")
        models[name].files = frozenset({sha256})
        box.disk.append(tmp_path / "downloads" / f"{sha256}.part", b"what came so far")
    await box.install._without_room(models["full"], DiskFull("no room"))
    assert list(box.disk.names(tmp_path / "downloads")) == [f"{'b' * 64}.part"]
    assert models["full"].slots.phase == "deferred"


def test_a_small_disk_gives_up_the_version_before_the_last_good_one(fleet: Fleet) -> None:
    """Room for two versions and a bit: the third takes the place of the first, the second answers all the time."""
    made = [
        make({"model.onnx": Random(n).randbytes(40_000)}, key=fleet.publisher, version=str(n), sequence=n)
        for n in (1, 2, 3)
    ]
    image, shelf = Image(capacity_bytes=110_000), Shelf(*made)
    for number in range(3):
        box = install(image, shelf, fleet, made[number], committed(str(number + 1)), seed=number)
        assert box.host.version() == str(number + 1)
    assert box.host.history == ["2", "3"]


def test_a_full_disk_at_the_start_keeps_no_model_from_answering(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    install(image, shelf, fleet, versions[0], committed("1"), stops=False)
    image.capacity_bytes = image.used_bytes
    box = live(image, shelf, fleet.trust(), until=lambda box: box.install.begun.is_set())
    assert box.host.version() == "1"


# -- assignments


def test_an_assignment_that_changes_in_mid_download_is_taken_up_at_once(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    shelf, changed = Shelf(*versions), []

    def until(box: Box) -> bool:
        if box.told().phase == "downloading" and not changed:
            changed.append(True)
            box.install.assign([versions[2].assigned(trial=TRIAL)])
        return committed("3")(box)

    shelf.cut_every_bytes = 1000
    box = install(with_one.copy(), shelf, fleet, versions[1], until)
    assert changed
    assert box.host.history == ["1", "3"]
    assert list(box.disk.names(DOWNLOADS)) == []


@pytest.mark.parametrize(
    "field", [{"name": "../../etc"}, {"name": ""}, {"name": "a/b"}, {"version": "../1"}, {"artifact_digest": "../../x"}]
)
def test_an_assignment_whose_words_could_be_paths_is_left_out(
    with_one: Image, fleet: Fleet, versions: list[Made], field: dict[str, str]
) -> None:
    image, shelf, codes = with_one.copy(), Shelf(*versions), []
    evil = replace(versions[1].assigned(trial=TRIAL, rollout="r"), **field)

    def until(box: Box) -> bool:
        codes.extend(problem.code for problem in box.install.problems())
        return False

    good_one = versions[0].assigned(trial=TRIAL) if "name" in field else evil
    box = live(image, shelf, fleet.trust(), good_one, evil, until=until, prepare=good, within_s=20.0)
    assert "bad_message" in codes
    assert box.host.version() == ("1" if "name" in field else "")
    assert set(box.disk.names(Path("/"))) == {"data"}
    assert set(box.disk.names(Path("/data/models"))) == {"net"}


def test_back_to_the_last_good_version_needs_no_signature_and_no_network(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    install(image, shelf, fleet, versions[1], committed("2"))
    shelf.is_down = True
    box = install(image, shelf, fleet, versions[0], committed("1"))
    assert box.host.history == ["2", "1"]


def test_an_older_version_comes_back_with_a_publishers_word_only(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    for number in (1, 2):
        install(image, shelf, fleet, versions[number], committed(str(number + 1)), seed=number)
    box = install(image, shelf, fleet, versions[0], ended("failed"), within_s=60.0)
    assert (box.told().code, box.host.history) == ("version_replayed", ["3"])
    word = signed_rollback(Rollback(name="net", artifact_digest=versions[0].digest, below=3), fleet.publisher)
    assigned = versions[0].assigned(trial=TRIAL, rollback=word, rollout="back")
    box = live(image, shelf, fleet.trust(), assigned, until=committed("1"), prepare=good)
    assert box.host.history == ["3", "1"]


def test_a_removed_model_leaves_its_sequence_and_nothing_else(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    install(image, shelf, fleet, versions[1], committed("2"))
    other = make({"model.onnx": b"x"}, key=fleet.publisher, name="other")
    shelf.made.append(other)
    box = live(
        image, shelf, fleet.trust(), other.assigned(trial=TRIAL),
        until=lambda box: box.told("other").phase == "committed" and box.host.version("net") == "", prepare=good,
    )  # fmt: skip
    disk = SimulatedDisk(image, Random(0))
    assert set(disk.names(Path("/data/models/net"))) == {"slots.json", "base.json", "base.sig"}
    assert box.host.history[:1] == ["2"]
    box = install(image, shelf, fleet, versions[0], ended("failed"), within_s=60.0)
    assert box.told().code == "version_replayed"


def test_keys_that_come_later_are_enough(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    old = fleet.trust(publishers=[fleet.other])

    def until(box: Box) -> bool:
        if box.told().code == "forbidden":
            box.trust = fleet.trust()
            box.install.hurry("forbidden")
        return committed("2")(box)

    box = live(image, shelf, old, versions[1].assigned(trial=TRIAL), until=until, prepare=good)
    assert "failed forbidden" in box.phases
    assert box.host.version() == "2"


def test_a_revoked_signer_loses_the_trial_and_is_told_of_what_is_committed(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf, told = with_one.copy(), Shelf(*versions), []

    def until(box: Box) -> bool:
        if box.told().phase == "trial":
            box.trust = fleet.trust(publishers=[fleet.other])
            told.extend(problem.code for problem in box.install.problems())
        return box.told().phase == "rolled_back"

    box = install(image, shelf, fleet, versions[1], until, prepare=lambda box: None, within_s=30.0)
    assert (box.told().code, box.host.history) == ("forbidden", ["1", "2", "1"])
    assert "forbidden" in told


# -- what lasts


@pytest.mark.parametrize("damage", [b"", b"\0" * 300, b"{", b'{"name":"net","schema":1,"answers":"a"}'])
def test_a_damaged_record_is_set_aside_and_made_anew(
    with_one: Image, fleet: Fleet, versions: list[Made], damage: bytes
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    install(image, shelf, fleet, versions[1], committed("2"))
    disk = SimulatedDisk(image, Random(0))
    path = Path("/data/models/net/slots.json")
    disk.remove(path)
    disk.append(path, damage)
    shelf.is_down = True
    offline = live(image, shelf, fleet.trust(), until=committed("2"), prepare=good)
    assert offline.host.history == ["1", "2"]
    assert any(name.startswith("slots.json.corrupt-") for name in offline.disk.names(path.parent))
    with_sequence = install(image, shelf, fleet, versions[0], committed("1"))
    assert with_sequence.host.version() == "1"


def test_a_version_that_failed_does_not_come_back_with_a_damaged_record(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    install(
        image, shelf, fleet, versions[1], ended("rolled_back"),
        prepare=lambda box: box.host.fails_runs.add(versions[1].digest), within_s=60.0,
    )  # fmt: skip
    disk = SimulatedDisk(image, Random(0))
    disk.remove(Path("/data/models/net/slots.json"))
    box = live(image, shelf, fleet.trust(), until=committed("1"), prepare=good, within_s=100.0)
    assert box.host.history == ["1"]


def test_a_start_without_gateway_and_without_assignments_answers(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    shelf = Shelf(*versions)
    shelf.is_down = True
    box = live(with_one.copy(), shelf, fleet.trust(), until=lambda box: box.install.begun.is_set())
    assert box.host.version() == "1"
    assert [assigned.artifact_digest for assigned in box.install.kept()] == [versions[0].digest]


@pytest.mark.parametrize("mode", ["safe", "bare"])
def test_after_a_crash_loop_less_is_done_until_it_holds_out(
    with_one: Image, fleet: Fleet, versions: list[Made], mode: str
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)

    def less(box: Box) -> None:
        good(box)
        box.install.mode = mode

    box = install(image, shelf, fleet, versions[1], lambda box: False, prepare=less, within_s=30.0)
    assert box.host.history == (["1"] if mode == "safe" else [])
    assert shelf.n_manifests == 0


def test_a_rebuilt_record_with_one_version_lets_it_answer_whatever_comes_next(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    """The next assignment comes in the moment of its proof, and fails: the only good version goes on answering."""
    image, shelf = with_one.copy(), Shelf(*versions)
    SimulatedDisk(image, Random(0)).remove(Path("/data/models/net/slots.json"))

    def fail(box: Box) -> None:
        def rehearse(folder: Path) -> None:
            if box.host.version() == "1":
                raise EngineCrashed("ended by signal SIGSEGV")

        good(box)
        box.rehearsal = rehearse

    assigned = []

    def until(box: Box) -> bool:
        if box.host.version() == "1" and not assigned:
            assigned.append(True)
            box.install.assign([versions[1].assigned(trial=TRIAL)])
        return box.told().phase == "failed"

    box = live(image, shelf, fleet.trust(), until=until, prepare=fail, within_s=60.0)
    assert assigned
    assert box.host.history == ["1"]


def test_the_slot_that_is_gone_back_to_is_read_again_first(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    """Bits of the old slot flip while the new version is on trial: nothing damaged is opened."""
    image, shelf, flipped = with_one.copy(), Shelf(*versions), []

    def until(box: Box) -> bool:
        if box.told().phase == "trial" and not flipped:
            flipped.append(image.flip_bits(Path("/data/models/net/a/model.onnx"), Random(4)))
            box.host.fails_runs.add(versions[1].digest)
        return box.told().phase in ("failed", "rolled_back", "downloading") and bool(flipped)

    box = install(image, shelf, fleet, versions[1], until, prepare=lambda box: None, within_s=60.0)
    assert flipped
    assert box.host.history[:2] == ["1", "2"]
    assert "1" not in box.host.history[2:]


@pytest.mark.parametrize("what", ["stop", "resume"])
async def test_an_assignment_that_comes_meanwhile_breaks_neither_stop_nor_resumption(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(RealDisk(), Shelf(), None, data=tmp_path, look_s=0.002)
    one, other = (Assigned(name=name, version="1", artifact_digest="0" * 64) for name in ("one", "another"))
    work = asyncio.create_task(box.install.run())
    await box.install.begun.wait()
    box.install.assign([one])
    models = box.install._models
    assert await box.wait(lambda: "one" in models and models["one"].n_failures > 0, 10.0)

    async def comes(model: Model, *_: object, **__: object) -> None:
        if model.name == "one":
            box.install.assign([one, other])
            assert await box.wait(lambda: "another" in models, 10.0)

    monkeypatch.setattr(Model, "keep_counts" if what == "stop" else "begin", comes)
    await getattr(box.install, what)()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
