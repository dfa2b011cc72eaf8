"""The power goes, or the process is killed, at every single operation of an installation on the disk."""

from random import Random

import pytest

from tests.install.box_lab import TRIAL, Box, Fleet, Made, Shelf, committed, live
from tests.reliability.page_cache import Image


def prepare(box: Box) -> None:
    box.host.n_good_a_look = 1


@pytest.fixture(scope="module")
def with_one(fleet: Fleet, versions: list[Made]) -> Image:
    """A disk on which version 1 is committed."""
    image = Image()
    box = live(
        image, Shelf(*versions), fleet.trust(), versions[0].assigned(trial=TRIAL), until=committed("1"), prepare=prepare
    )
    assert box.told().phase == "committed"
    return image


@pytest.mark.parametrize("loses_power", [True, False])
def test_at_every_operation_exactly_one_whole_version_answers(
    with_one: Image, fleet: Fleet, versions: list[Made], loses_power: bool
) -> None:
    trust, wanted = fleet.trust(), versions[1].assigned(trial=TRIAL)
    n_cuts, seen = 0, set()
    for cut_after in range(10_000):
        image, shelf = with_one.copy(), Shelf(*versions)
        rng = Random(f"{cut_after} {loses_power}")
        box = live(
            image, shelf, trust, wanted, until=committed("2"), cut_after=cut_after, prepare=prepare, seed=cut_after
        )
        if not box.disk.is_dead:
            break
        n_cuts += 1
        if loses_power:
            image.cut_power(rng)
        offline = Shelf(*versions)
        offline.is_down = True
        after = live(image, offline, trust, until=lambda box: box.install.begun.is_set(), seed=cut_after)
        assert after.host.version() in ("1", "2"), cut_after
        seen.add(after.host.version())
        again = live(image, shelf, trust, wanted, until=committed("2"), prepare=prepare, seed=cut_after)
        assert again.host.version() == "2", (cut_after, again.phases)
        assert again.told().phase == "committed", (cut_after, again.phases)
    assert n_cuts > 40
    assert seen == {"1", "2"}


def test_cuts_again_and_again_end_with_a_whole_version(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    """Ten lives that end anywhere, then one with peace: what is assigned answers, or the one before."""
    trust, wanted = fleet.trust(), versions[2].assigned(trial=TRIAL)
    for seed in range(4):
        rng, image = Random(f"again {seed}"), with_one.copy()
        shelf = Shelf(*versions)
        for _ in range(10):
            box = live(
                image,
                shelf,
                trust,
                wanted,
                until=committed("3"),
                cut_after=rng.randrange(60),
                prepare=prepare,
                seed=seed,
            )
            if box.install.begun.is_set():
                assert box.host.version() in ("1", "3")
            image.cut_power(rng)
        box = live(image, shelf, trust, wanted, until=committed("3"), prepare=prepare, seed=seed, within_s=200.0)
        assert box.host.version() in ("1", "3"), seed
        assert box.told().phase in ("committed", "rolled_back", "failed"), (seed, box.phases)
