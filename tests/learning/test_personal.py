"""Personal layers answer: beside the version that came of their campaign, judged, made again, dropped, never seen."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.learning.personal import DAMAGED
from edge_agent.learning.records import CampaignNote
from hybrid.artifact.folder import Artifact
from hybrid.errors import EngineFailed, NotFound
from hybrid.federated.layout import Layout
from hybrid.federated.learning.labels import is_held_out
from tests.edge_agent.model_room import ask
from tests.learning.lab import CAMPAIGN, Desk, version_of
from tests.learning.nets import N_CLASSES, rows
from tests.learning.personal_lab import (
    TURN,
    answers_of,
    asked,
    digests,
    learned,
    lives,
    personal,
    settled,
    standing,
    with_personal_head,
)
from tests.outbox.lab import until


@pytest.fixture
async def home(tmp_path: Path) -> tuple[Artifact, Artifact, Desk]:
    """A campaign that is over on a box that took part, and the version that came of it, not installed yet."""
    artifact, desk = with_personal_head()
    async with lives(tmp_path, artifact, desk) as box:
        inputs = rows(4, 1)[0]
        await box.fill(80, turn=TURN)
        await until(lambda: desk.step == 2 and box.learning.store.waiting is None)
        desk.ended = (CAMPAIGN,)
        box.learning.wake()
        await until(lambda: box.learning.store.notes[CAMPAIGN].is_over)
        assert box.learning.store.vector(CAMPAIGN, "view") is None
        assert box.learning.store.vector(CAMPAIGN, "personal") is not None, "the version comes when all is over"
        assert box.answering.personal("net") is None, "the base answers as it was shipped while the campaign runs"
        np.testing.assert_allclose(await asked(box.room, inputs), answers_of(artifact, inputs), atol=1e-5)
    return artifact, learned(artifact, desk.steps[-1], tmp_path / "learned"), desk


async def test_the_version_that_came_home_answers_with_them(home: Any, tmp_path: Path) -> None:
    _, version, desk = home
    before = digests(version.folder)
    inputs, classes = rows(60, 77)
    async with lives(tmp_path, version, desk) as box:
        room = box.room
        await room.host.answer(version_of(version))
        await personal(box)
        copy, told = box.answering.personal("net"), standing(box)
        mine = await asked(room, inputs)
        np.testing.assert_allclose(mine, answers_of(version, inputs, copy.tensors), atol=1e-5)
        assert (mine.argmax(1) == (classes + TURN) % N_CLASSES).mean() > 0.9
        assert told.answers
        assert (told.version, told.step, told.why_not) == (f"1.r2-{CAMPAIGN}", 2, "")
        assert told.n_right > told.n_plain_right
        assert told.n == sum(map(is_held_out, await box.samples.labelled("net", 1000)))
        plain = await room.models.by_digest(version.manifest.model_digest)
        session = await room.executor.open_whole(plain)
        shipped = (await room.executor.compute(session, {"x": inputs}, None)).outputs[0]
        np.testing.assert_allclose(shipped, answers_of(version, inputs), atol=1e-5, err_msg="who asks by digest")
        golden = await room.host.run(version_of(version), {"x": inputs})
        np.testing.assert_allclose(golden["scores"], shipped, atol=1e-6, err_msg="golden outputs are the version's")
        assert room.host.runs("net").n_good == 1, "runs count for the version"
    assert digests(version.folder) == before, "an installed file is never written"
    assert all(len(content) < 40 for content in desk.updates.values()), "three offsets travel, nothing else"


async def test_a_kill_at_any_time_costs_nothing(home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service ends before and right after what was found is kept; the next life answers as it should."""
    _, version, desk = home
    inputs = rows(8, 3)[0]
    for end in ("before", "after"):
        async with lives(tmp_path, version, desk) as box:
            store = box.learning.store
            kept = store.keep

            def cut(*given: Any, end: str = end, kept: Any = kept) -> None:
                if end == "after":
                    kept(*given)
                raise OSError("the power is gone")

            monkeypatch.setattr(store, "keep", cut)
            await until(lambda: box.learning.status().why_not.startswith("the disk fails"))
            assert box.learning.status().n_judged >= 1
            if end == "before":  # after it the layers are there, and answer at the next look
                assert box.answering.personal("net") is None
                np.testing.assert_allclose(await asked(box.room, inputs), answers_of(version, inputs), atol=1e-5)
    found = []
    for _ in range(2):
        async with lives(tmp_path, version, desk) as box:
            await personal(box)
            assert box.learning.status().n_judged == 0, "what was kept is not found out anew"
            found.append(await asked(box.room, inputs))
    np.testing.assert_array_equal(found[0], found[1])


async def test_forgotten_for_good(home: Any, tmp_path: Path) -> None:
    _, version, desk = home
    inputs = rows(8, 3)[0]
    async with lives(tmp_path, version, desk) as box:
        await personal(box)
        with pytest.raises(NotFound, match="keeps no personal layers of 'other'"):
            await box.learning.personal.forget("other")
        copy = box.answering.personal("net")
        assert await box.learning.personal.forget("net") == [CAMPAIGN]
        np.testing.assert_allclose(await asked(box.room, inputs), answers_of(version, inputs), atol=1e-5)
        assert box.room.executor.sessions.peek((copy.digest,)) is None
        assert [box.learning.store.vector(CAMPAIGN, name) for name in ("personal", "fitted")] == [None, None]
    async with lives(tmp_path, version, desk) as box:
        await until(lambda: box.learning.store.notes and desk.asked)
        note = box.learning.store.notes[CAMPAIGN]
        await asyncio.to_thread(
            box.learning.store.keep, msgspec.structs.replace(note, is_forgotten=False), {"personal": b"x" * 144}
        )
        assert box.learning.store.vector(CAMPAIGN, "personal") is None, "a task that was under way brings nothing back"
        assert box.answering.personal("net") is None


async def test_what_answers_worse_is_not_used(home: Any, tmp_path: Path) -> None:
    """Layers that say the contrary of what is right, and a plan by which no fitting mends them."""
    artifact, _, desk = home
    async with lives(tmp_path, artifact, desk) as box:
        await until(lambda: CAMPAIGN in box.learning.store.notes)
        note = box.learning.store.notes[CAMPAIGN]
        training = msgspec.structs.replace(note.terms.training, learning_rate=1e-9)
        note = msgspec.structs.replace(note, terms=msgspec.structs.replace(note.terms, training=training))
        good = np.frombuffer(box.learning.store.vector(CAMPAIGN, "personal") or b"", "<f4")
        box.learning.store.keep(note, {"personal": (-good).tobytes()})
    version = learned(artifact, desk.steps[-1], tmp_path / "again")
    async with lives(tmp_path, version, desk) as box:
        await settled(box)
        told = standing(box)
        assert (told.n_right, -told.loss) < (told.n_plain_right, -told.plain_loss)
        assert told.why_not == "the version answers better without them"
        assert (box.learning.status().n_judged, box.learning.status().n_worse) == (1, 1)
        assert box.answering.personal("net") is None
        assert not box.learning.problems()


def damage(folder: Path, *names: str) -> None:
    """One bit of each of these vectors flips."""
    with closing(sqlite3.connect(folder / "box" / "learning" / "learning.db")) as db, db:
        for name in names:
            (sealed,) = db.execute("SELECT sealed FROM vector WHERE name = ?", (name,)).fetchone()
            bad = bytes(sealed[:-1]) + bytes([sealed[-1] ^ 1])
            db.execute("UPDATE vector SET sealed = ? WHERE name = ?", (bad, name))


async def test_damaged_layers(home: Any, tmp_path: Path) -> None:
    """The fitted ones are made again from the campaign's; with those damaged too the version answers."""
    _, version, desk = home
    inputs = rows(8, 3)[0]
    async with lives(tmp_path, version, desk) as box:
        await personal(box)
        first = await asked(box.room, inputs)
    damage(tmp_path, "fitted")
    async with lives(tmp_path, version, desk, mode="off") as box:
        await until(box.learning.problems)
        (problem,) = box.learning.problems()
        assert (problem.code, problem.blocks) == ("personal_lost", False)
        np.testing.assert_allclose(await asked(box.room, inputs), answers_of(version, inputs), atol=1e-5)
        box.mode = "idle"
        box.learning.wake()
        await personal(box)
        assert not box.learning.problems()
        np.testing.assert_array_equal(await asked(box.room, inputs), first, "the same fitting gives the same layers")
    damage(tmp_path, "fitted", "personal")
    async with lives(tmp_path, version, desk) as box:
        await until(box.learning.problems)
        assert [one.code for one in box.learning.problems()] == ["personal_lost"]
        assert standing(box).why_not == DAMAGED
        np.testing.assert_allclose(await asked(box.room, inputs), answers_of(version, inputs), atol=1e-5)
        await box.learning.personal.forget(CAMPAIGN)
        assert not box.learning.problems()


async def test_a_copy_that_fails_leaves_no_request_without_an_answer(home: Any, tmp_path: Path) -> None:
    _, version, desk = home
    inputs = rows(8, 3)[0]
    async with lives(tmp_path, version, desk) as box:
        await personal(box)
        room, copy = box.room, box.answering.personal("net")

        class Broken:
            def run(self, *_: Any) -> Any:
                raise RuntimeError("no")

        room.executor.sessions.peek((copy.digest,))._session = Broken()
        computed = await ask(room, "net", {"x": inputs})
        np.testing.assert_allclose(computed.outputs[0], answers_of(version, inputs), atol=1e-5)
        assert computed.place.fallback.startswith(EngineFailed.code)
        assert computed.place.model_digest == version.manifest.model_digest
        box.learning.wake()
        await personal(box, False)
        assert [one.code for one in box.learning.problems()] == ["personal_failed"]
        np.testing.assert_allclose(await asked(room, inputs), answers_of(version, inputs), atol=1e-5)
        assert room.host.runs("net").n_errors == 0
        note = box.learning.store.notes[CAMPAIGN]
        other = Layout(names=("head",), shapes=((N_CLASSES, 12),))
        judged = msgspec.structs.replace(note.judged, layout=other, digest="5" * 64)
        await asyncio.to_thread(box.learning.store.keep, msgspec.structs.replace(note, judged=judged), {})
        box.learning.wake()
        await until(lambda: "dimensions do not match" in "".join(one.what for one in box.learning.problems()))
        assert box.answering.personal("net") is None, "layers of another shape are refused where they are opened"


async def test_other_versions_answer_plainly(home: Any, tmp_path: Path) -> None:
    """On trial, of another campaign, a publisher's next one: each as it was shipped, and no session is left behind."""
    artifact, version, desk = home
    inputs = rows(8, 3)[0]
    async with lives(tmp_path, version, desk, why_not="the version is on trial") as box:
        await until(lambda: desk.asked)
        n_asked = len(desk.asked)
        box.learning.wake()
        await until(lambda: len(desk.asked) > n_asked)
        assert box.answering.personal("net") is None
        box.why_not = ""
        box.learning.wake()
        await personal(box)
        for n, other in enumerate((learned(artifact, desk.steps[-1], tmp_path / "other", "0th3r"), artifact)):
            copy = box.answering.personal("net")
            await box.room.host.answer(version_of(other))
            np.testing.assert_allclose(await asked(box.room, inputs), answers_of(other, inputs), atol=1e-5)
            assert box.answering.personal("net") is None
            assert box.room.executor.sessions.peek((copy.digest,)) is None
            await box.room.host.answer(version_of(version))  # taken back
            await personal(box)
            assert box.learning.status().n_judged == 1, f"judged once, taken back {n + 1} times"


async def test_a_variant_of_another_head_answers_plainly(home: Any, tmp_path: Path) -> None:
    _, version, desk = home
    async with lives(tmp_path, version, desk, mode="off") as box:
        await until(lambda: CAMPAIGN in box.learning.store.notes)
        (one,) = box.learning._offers.candidates()
        store, part = box.learning.store, box.learning.personal
        assert part._origin(one).note is store.notes[CAMPAIGN]
        note = store.notes[CAMPAIGN]
        terms = msgspec.structs.replace(note.terms, variant="another")
        store.keep(msgspec.structs.replace(note, terms=terms), {})
        assert part._origin(one) is None


async def test_a_box_that_took_no_part_fits_layers_of_its_own(home: Any, tmp_path: Path) -> None:
    """Told plainly while it has no samples; with some it fits, judges, keeps and forgets as boxes that took part do."""
    artifact, _, desk = home
    version = learned(artifact, desk.steps[-1], tmp_path / "told", training=desk.terms.training)
    inputs, classes = rows(60, 77)
    n_updates = len(desk.updates)
    async with lives(tmp_path / "new", version, desk) as box:
        await until(lambda: standing(box) is not None)
        told = standing(box)
        assert (told.answers, told.step) == (False, 2)
        assert told.why_not == "this box took no part and has no labelled samples to fit any to"
        assert not box.learning.store.notes
        few = await box.fill(8, turn=TURN)
        await until(lambda: standing(box) is not None and "kept apart" in standing(box).why_not)
        n_apart = sum(map(is_held_out, few))
        assert standing(box).why_not == f"{n_apart} labelled samples are kept apart to judge them on, 5 are wanted"
        assert box.answering.personal("net") is None, "so few may be of one class: layers that know no other"
        await box.fill(80, turn=TURN)
        await personal(box)
        told, mine = standing(box), await asked(box.room, inputs)
        assert told.answers
        assert told.n_right > told.n_plain_right
        assert (mine.argmax(1) == (classes + TURN) % N_CLASSES).mean() > 0.9
        assert len(desk.updates) == n_updates
    async with lives(tmp_path / "new", version, desk) as box:
        await personal(box)
        np.testing.assert_array_equal(await asked(box.room, inputs), mine)
        assert box.learning.status().n_judged == 0, "what was kept is not found out anew"
        assert await box.learning.personal.forget("net") == [CAMPAIGN]
        n_asked = len(desk.asked)
        box.learning.wake()
        await until(lambda: len(desk.asked) > n_asked)
        assert box.answering.personal("net") is None, "who forgot wants none that are fitted anew"


async def test_an_update_that_waits_goes_before_fitting(tmp_path: Path) -> None:
    """To fit layers may stand still for minutes on a box that is asked without a pause; an update would grow stale."""
    artifact, desk = with_personal_head()
    desk.loses = lambda: True
    async with lives(tmp_path, artifact, desk) as box:
        await box.fill(80, turn=TURN)
        await until(lambda: desk.n_update_calls)
    version = learned(artifact, desk.steps[-1], tmp_path / "learned")
    desk.loses, n_before = (lambda: False), desk.n_update_calls
    async with lives(tmp_path, version, desk) as box:
        box.yielding.asked(True)
        await until(lambda: desk.n_update_calls > n_before)
        assert desk.calls[-1].content == desk.calls[0].content
        assert box.learning.status().n_judged == 0
        box.yielding.asked(False)
        await personal(box)


async def test_a_plan_that_cannot_be_followed(home: Any, tmp_path: Path) -> None:
    artifact, _, desk = home
    training = msgspec.structs.replace(desk.terms.training, personal=("nothing-like-it",))
    version = learned(artifact, desk.steps[-1], tmp_path / "told", training=training)
    async with lives(tmp_path / "new", version, desk) as box:
        await box.fill(40)
        await until(lambda: standing(box) is not None and "nothing-like-it" in standing(box).why_not)
        assert box.answering.personal("net") is None


async def test_a_candidate_is_tried_with_layers_that_the_box_would_fit(home: Any, tmp_path: Path) -> None:
    """On a box that took no part, too; not on one whose person wants none."""
    artifact, _, desk = home
    desk.kind, desk.ended = "evaluate", ()
    for n, is_forgotten in enumerate((False, True)):
        desk.salt, desk.most_steps = f"e{n}", 3
        async with lives(tmp_path / f"new{n}", artifact, desk) as box:
            if is_forgotten:
                await until(lambda box=box: box.learning._opened)
                box.learning.store.keep(CampaignNote(id=CAMPAIGN, terms=desk.terms, is_forgotten=True), {})
            await box.fill(60, turn=TURN)
            await until(lambda n=n: len(desk.counts) > n)
        gained = desk.counts[-1].n_right - desk.counts[-1].n_base_right
        assert (gained >= desk.counts[-1].n // 3) != is_forgotten


async def test_a_candidate_is_held_against_what_answers(home: Any, tmp_path: Path) -> None:
    """What answers now has personal layers, and so would the candidate: fitted to it, on samples of no training."""
    _, version, desk = home
    async with lives(tmp_path, version, desk) as box:
        await personal(box)
        told = standing(box)
        desk.kind, desk.most_steps, desk.salt, desk.ended = "evaluate", 3, "e", ()
        box.learning.wake()
        await until(lambda: desk.counts)
        (counts,) = desk.counts
        assert (counts.n, counts.n_base_right) == (told.n, told.n_right), "personal layers answer now"
        assert counts.n_right >= told.n_plain_right + counts.n // 3, "and would then"
        assert counts.n_right - counts.n_base_right == counts.n_won - counts.n_lost
