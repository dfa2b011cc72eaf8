"""What rounds learned comes to boxes whose base is on trial, was tried in another slot, or was never there."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from cloud_gateway.fleet.assignments import Terms
from cloud_gateway.fleet.steering.status import fleet_status
from edge_agent.install.preparing import base_words
from edge_agent.status_commands import _waiting
from hybrid.errors import NotFound
from hybrid.fleet.messages import Trial
from tests.install.box_lab import Fleet, Made, Shelf, committed, live, make
from tests.install.settled import ended, install
from tests.install.test_with_rollouts import Field, run, state_of
from tests.reliability.page_cache import Image

LEARNED = "2.r7-k3p9w2xa"
BODY = Random(9).randbytes(3000)


class Forgetful(Shelf):
    """A gateway that has no papers of some versions any more."""

    forgotten: tuple[str, ...] = ()

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        if version in self.forgotten:
            raise NotFound(f"no {name}:{version}")
        return await super().manifest(name, version)


def published(fleet: Fleet, number: int) -> Made:
    files = {"model.onnx": BODY, "head.bin": bytes([number]) * 100}
    return make(files, key=fleet.publisher, version=str(number), sequence=number, trainable=("head.bin",))


@pytest.fixture(scope="module")
def base(fleet: Fleet) -> Made:
    return published(fleet, 2)


@pytest.fixture(scope="module")
def learned(fleet: Fleet, base: Made) -> Made:
    return make(
        {"model.onnx": BODY, "head.bin": b"wiser" * 20}, key=fleet.rounds, version=LEARNED, sequence=9,
        base=base.digest, trainable=("head.bin",),
    )  # fmt: skip


def test_a_box_with_nothing_else_keeps_its_base_until_the_trial_is_over(
    fleet: Fleet, base: Made, learned: Made
) -> None:
    """It answers all the while, says why it waits, and takes what was learned then; also over a restart."""
    image, shelf = Image(), Shelf(base, learned)
    on_trial = install(image, shelf, fleet, base, ended("trial"), prepare=lambda box: None)
    assert on_trial.host.version() == "2"

    waiting = install(image, shelf, fleet, learned, ended("deferred"), prepare=lambda box: None)
    told = waiting.told()
    assert (told.version, told.wanted_digest, told.code) == ("2", learned.digest, "")
    assert "waits until 2" in told.detail
    assert set(waiting.host.history) == {"2"}

    after = live(image, shelf, fleet.trust(), until=lambda box: box.told().phase == "deferred")  # nobody says it again
    assert after.told().wanted_digest == learned.digest
    last = install(image, shelf, fleet, learned, committed(LEARNED))
    assert last.host.history == ["2", LEARNED]
    assert not any(report.code for report in last.reports)


def test_what_waits_is_not_kept_waiting_by_a_trial_without_end(fleet: Fleet, base: Made, learned: Made) -> None:
    image, shelf = Image(), Shelf(base, learned)
    endless = base.assigned(trial=Trial(n_good=1000, most_s=1e6))
    live(image, shelf, fleet.trust(), endless, until=ended("trial"), prepare=lambda box: None)
    assert (
        install(image, shelf, fleet, learned, committed(LEARNED), prepare=lambda box: None, within_s=120.0)
        .told()
        .version
        == LEARNED
    )


def test_a_base_on_trial_in_the_other_slot_is_base_enough(fleet: Fleet, base: Made, learned: Made) -> None:
    """The box has a good version to go back to: it does so at once, and the base's papers are kept."""
    image, first = Image(), published(fleet, 1)
    shelf = Forgetful(first, base, learned)
    install(image, shelf, fleet, first, committed("1"))
    install(image, shelf, fleet, base, ended("trial"), prepare=lambda box: None)
    shelf.forgotten = ("2",)
    box = install(image, shelf, fleet, learned, committed(LEARNED))
    assert "" not in box.host.history
    assert "failed forbidden" not in box.phases


def test_a_box_that_came_later_fetches_the_papers_of_a_base_that_it_never_had(
    fleet: Fleet, base: Made, learned: Made
) -> None:
    image, shelf = Image(), Forgetful(base, learned)
    box = install(image, shelf, fleet, learned, committed(LEARNED))
    assert box.host.history == [LEARNED]
    assert shelf.n_sent_bytes == sum(map(len, learned.files.values()))
    more = make(
        {"model.onnx": BODY, "head.bin": b"wisest" * 20}, key=fleet.rounds, version=f"{LEARNED}.r3-abcdefgh",
        sequence=10, base=base.digest, trainable=("head.bin",),
    )  # fmt: skip
    shelf.made.append(more)
    shelf.forgotten = ("2",)
    assert install(image, shelf, fleet, more, committed(more.manifest.version)).host.version() == more.manifest.version


def test_no_base_that_is_older_than_what_a_publisher_brought_here(fleet: Fleet, base: Made, learned: Made) -> None:
    """A rounds key cannot lead a box back to the body of an old version: not by a base that has to be fetched."""
    image = Image()
    shelf = Shelf(published(fleet, 3), published(fleet, 4), base, learned)
    for newer in shelf.made[:2]:
        install(image, shelf, fleet, newer, committed(newer.manifest.version))
    box = install(image, shelf, fleet, learned, ended("failed"))
    assert (box.host.version(), box.told().code) == ("4", "version_replayed")


def test_without_its_base_anywhere_it_is_refused(fleet: Fleet, base: Made, learned: Made) -> None:
    forged = make(base.files, key=fleet.other, version="2", sequence=2, trainable=("head.bin",))
    for shelf in (Shelf(learned), Shelf(forged, learned)):
        box = install(Image(), shelf, fleet, learned, ended("failed"))
        assert box.told().code == "forbidden"
        assert ("not trusted" if len(shelf.made) > 1 else "is not here") in box.told().detail


@pytest.mark.parametrize("is_waiting", [True, False])
def test_a_power_cut_at_any_operation_leads_to_what_was_learned(
    fleet: Fleet, base: Made, learned: Made, is_waiting: bool
) -> None:
    """On a box that fetches the papers of its base, and on one whose base is on trial: that answers over every cut."""
    shelf, trust, first = Shelf(base, learned), fleet.trust(), Image()
    if is_waiting:
        install(first, shelf, fleet, base, ended("trial"), prepare=lambda box: None)
    for cut_after in range(int(is_waiting), 10_000, 2):
        image = first.copy()
        box = install(image, shelf, fleet, learned, committed(LEARNED), cut_after=cut_after, seed=cut_after)
        if not box.disk.is_dead:
            break
        image.cut_power(Random(cut_after))
        after = live(image, shelf, trust, until=lambda box: box.install.begun.is_set(), seed=cut_after)
        assert after.host.version() in (("2", LEARNED) if is_waiting else ("", LEARNED)), cut_after
        again = install(image, shelf, fleet, learned, committed(LEARNED), seed=cut_after)
        assert (again.host.version(), again.told().phase) == (LEARNED, "committed"), (cut_after, again.phases)
    assert cut_after > 40


def test_the_words_of_a_base() -> None:
    assert base_words(LEARNED) == ("2",)
    assert base_words(f"{LEARNED}.r3-abcdefgh") == ("2", LEARNED)
    assert base_words("2.r7") == base_words("3") == ()


def test_a_rollout_of_what_was_learned_waits_for_bases_on_trial_and_completes(
    tmp_path: Path, fleet: Fleet, base: Made, learned: Made
) -> None:
    """Boxes that have nothing but a base on trial: none of them fails, none is without a model for a moment."""

    async def story(field: Field) -> None:
        rollout = await field.steering.start(field.plan())
        while not any(found.told().phase == "deferred" for found in field.boxes):  # noqa: ASYNC110 (nobody's event)
            await asyncio.sleep(5.0)
        await asyncio.sleep(30.0)
        found = await fleet_status(field.steering, 1.7e9, selector={}, only_trouble=False, limit=0)
        shown = {row.version: row.phases for row in found.versions}
        assert shown["2"] == {"trial": len(field.boxes)}
        assert set(shown[LEARNED]) == {"deferred"}, "named by its rollout, though no box has it yet"
        await field.until(lambda found: found.host.version() == LEARNED, 20_000.0)
        await field.until(lambda found: state_of(field, rollout) == "completed", 20_000.0)
        for found in field.boxes:
            assert found.host.history == ["2", LEARNED]
            assert not [report.code for report in found.reports if report.code]
        waited = [found for found in field.boxes if "deferred" in [report.phase for report in found.reports]]
        assert waited, "no box was offered it while its base was on trial"

    slow = Terms(report_within_s=600.0, trial=Trial(n_good=10_000, most_s=500.0))
    run(tmp_path, fleet, [base, learned], story, first=slow, begun=lambda found: found.told().phase == "trial")


def test_the_status_says_why_a_version_waits() -> None:
    waiting = {"net": {"phase": "deferred", "code": "", "detail": "2.r7-k3p9w2xa waits until 2"}}
    assert _waiting(waiting) == ["net: 2.r7-k3p9w2xa waits until 2"]
    assert (
        _waiting({"net": {"phase": "deferred", "code": "disk_full", "detail": "no room"}}) == []
    )  # a problem tells it
    assert _waiting({"net": {"phase": "trial", "code": "", "detail": ""}}) == []
