"""Personal layers on a box that took no part, where they cannot be fitted at once: tried anew in time, and told why."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.learning.personal import Personal
from edge_agent.learning.records import CampaignNote
from hybrid.errors import Cancelled, DataUnfit
from tests.edge_agent.model_room import model_room
from tests.learning.lab import CAMPAIGN, Box, at_work
from tests.learning.nets import N_FEATURES
from tests.learning.personal_lab import TURN, learned, with_personal_head


class Looks:
    """A box whose learning does nothing by itself: each look at its personal layers is one of the test's."""

    def __init__(self, box: Box) -> None:
        self.box, self.now_s, self.n_fits = box, 0.0, 0
        self.part = Personal(
            box.learning.store, box.answering, box.room.host, offers=box.learning._offers,
            why_not=lambda _: box.why_not, wall_s=box.place.wall_s, now_s=lambda: self.now_s,
        )  # fmt: skip
        box.learning.personal = self.part
        self.part.n_left_out = box.learning._n_left_out
        self.ends: tuple[float, Exception] = (0.0, DataUnfit("one label is of no kind"))

    async def fits(self, *_: Any) -> Any:
        """A fitting that comes to nothing."""
        self.n_fits += 1
        took_s, error = self.ends
        self.now_s += took_s
        raise error

    async def look(self, fit: Any = None) -> str:
        """One look; what is told afterwards."""
        await self.part.look(self.box.learning._offers.candidates(), fit)
        (told,) = self.part.status() or (None,)
        return told.why_not if told is not None else ""


@pytest.fixture
async def looks(tmp_path: Path) -> AsyncIterator[Looks]:
    artifact, desk = with_personal_head()
    version = learned(artifact, desk.steps[-1], tmp_path / "told", training=desk.terms.training)
    async with model_room(tmp_path / "room") as room, _at_rest(Box(tmp_path / "box", version, desk, room=room)) as box:
        yield Looks(box)


@asynccontextmanager
async def _at_rest(box: Box) -> AsyncIterator[Box]:
    box.learning.store.open("gateway")
    try:
        async with at_work(box.outbox, box.samples):
            yield box
            await box.learning._tasks.close()
    finally:
        box.learning.store.close()


async def _filled(looks: Looks, n: int) -> Sequence[str]:
    return await looks.box.fill(n, turn=TURN)


async def test_what_could_not_be_fitted_is_tried_anew(looks: Looks) -> None:
    """With twice the samples, with another label of one that was there, and where the version came back."""
    ids = await _filled(looks, 4)
    assert await looks.look(looks.fits) == await looks.look(looks.fits) == "one label is of no kind"
    await _filled(looks, 3)
    await looks.look(looks.fits)
    assert looks.n_fits == 1, "seven samples are not twice four"
    await _filled(looks, 1)
    await looks.look(looks.fits)
    assert looks.n_fits == 2
    looks.box.learning.relabelled("another")
    await looks.look(looks.fits)
    assert looks.n_fits == 2
    looks.box.learning.relabelled(ids[0])
    await looks.look(looks.fits)
    assert looks.n_fits == 3, "the label that was wrong may be right now"
    await looks.part.look([], None)
    await looks.look(looks.fits)
    assert looks.n_fits == 4


async def test_a_fitting_that_was_given_up_holds_no_task_up(looks: Looks) -> None:
    """One that stands still ends after ten minutes; the next hour's looks go on to the tasks at once."""
    await _filled(looks, 8)
    looks.ends = (600.0, Cancelled("the lease ended"))
    for _ in range(3):
        assert await looks.look(looks.fits) == "fitting them was given up; it is tried again later"
    assert looks.n_fits == 1
    looks.now_s += 3599.0
    await looks.look(looks.fits)
    assert looks.n_fits == 1
    looks.now_s += 1.0
    await looks.look(looks.fits)
    assert looks.n_fits == 2


async def test_it_is_told_what_fitting_waits_for(looks: Looks) -> None:
    assert await looks.look() == "this box took no part and has no labelled samples to fit any to"
    await _filled(looks, 8)
    assert await looks.look() == "this box took no part; layers of its own are fitted when it may learn"
    looks.box.why_not = "the version is on trial"
    assert await looks.look(looks.fits) == "the version is on trial"
    assert not looks.n_fits


async def test_too_little_memory_is_told_as_that(looks: Looks) -> None:
    """Three of the samples that are kept apart find room: more labels would change nothing."""
    tasks = looks.box.learning._tasks
    tasks._around = replace(tasks._around, feature_bytes=5 * 3 * 4 * N_FEATURES)
    await _filled(looks, 80)
    told = await looks.look(tasks.fitted)
    n_left_out = looks.box.learning.status().n_left_out
    assert n_left_out > 60
    assert told == (
        "3 labelled samples are kept apart to judge them on, 5 are wanted; "
        f"{n_left_out} find no room: more with --learn-memory-bytes"
    )


@pytest.mark.parametrize(
    "what", [{"is_over": True}, {"is_over": True, "is_forgotten": True}, {"is_over": True, "loss_before": 1.0}]
)
async def test_another_variant_than_layers_were_tried_with(looks: Looks, what: dict[str, Any]) -> None:
    """A box that took no part begins anew; not where a person wants none, or where the other one was trained."""
    store, tasks = looks.box.learning.store, looks.box.learning._tasks
    terms = msgspec.structs.replace(looks.box.desk.terms, variant="another")
    store.keep(CampaignNote(id=CAMPAIGN, terms=terms, n_evaluated=2, **what), {})
    await _filled(looks, 80)
    for _ in range(2):
        await looks.look(tasks.fitted)
        assert looks.part.n_judged == (what == {"is_over": True}), "judged once"
    assert (looks.box.answering.personal("net") is not None) == (what == {"is_over": True})
    note = store.notes[CAMPAIGN]
    assert (note.terms.variant == "original") == (what == {"is_over": True})
    assert note.n_evaluated == 2
