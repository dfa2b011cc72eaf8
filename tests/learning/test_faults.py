"""What a box does when a task cannot be done, an update does not count, or the ground it stands on moves."""

import asyncio
import hashlib
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest

from edge_agent.living.thermal import Heat
from hybrid.artifact.digest import digest_of_files
from hybrid.artifact.folder import open_folder
from hybrid.artifact.manifest import FileEntry, canonical_bytes
from hybrid.artifact.trainable import trainable_artifact
from hybrid.errors import Conflict, ConnectionLost, DiskFull, NotAdmitted, Overloaded
from hybrid.federated.campaign import Coding
from hybrid.federated.coding.catalog import form
from hybrid.federated.messages import TaskAnswer, TaskCall, UpdateAnswer
from tests.learning.lab import CAMPAIGN, Box, at_work, made
from tests.learning.nets import model_file
from tests.outbox.lab import until


async def worked(box: Box, until_so: object, n_samples: int = 12) -> None:
    """The box learns until something is so; then all stops."""
    async with at_work(box.outbox, box.samples):
        await box.fill(n_samples)
        async with at_work(box.learning):
            await until(until_so)  # type: ignore[arg-type]


def settled(box: Box, n: int = 1) -> bool:
    """Whether so many updates came to an end."""
    note = box.learning.store.notes.get(CAMPAIGN)
    return note is not None and box.learning.store.waiting is None and note.n_accepted + note.n_lost >= n


@pytest.mark.parametrize(("state", "gate"), [("stale", ""), ("closed", ""), ("rejected", "rate")])
@pytest.mark.parametrize("up", ["int8", "top-k"])
async def test_what_did_not_count_is_owed_as_far_as_it_was_before(
    tmp_path: Path, state: str, gate: str, up: Literal["int8", "top-k"]
) -> None:
    """The residual takes back what top-k said; int8 leaves what it rounded: the next training finds the rest anew."""
    artifact, desk = made(coding=Coding(up=up, share=0.5))
    desk.judge = lambda call: UpdateAnswer(state=state, gate=gate, reason="too late")  # type: ignore[arg-type]
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk)
    left: dict[str, np.ndarray] = {}

    def seen() -> bool:
        if not settled(box):
            return False
        left["residual"] = np.frombuffer(box.learning.store.vector(CAMPAIGN, "residual") or b"", "<f4")
        return True

    await worked(box, seen)
    content = form(up, 0.5).decode(desk.calls[0].content, desk.layout)
    largest = float(np.abs(content).max())
    assert largest > 0
    if up == "int8":
        assert np.abs(left["residual"]).max() <= 1.01 * largest / 127
    else:
        said = content != 0
        np.testing.assert_allclose(left["residual"][said], content[said], atol=1.01 * largest / 127)
    assert not desk.updates
    assert box.learning.store.notes[CAMPAIGN].last.startswith(f"an update was {state}")


async def test_a_refused_norm_is_not_said_again(tmp_path: Path) -> None:
    artifact, desk = made()
    desk.judge = lambda call: UpdateAnswer(state="rejected", gate="norm", reason="too long")
    box = Box(tmp_path / "box", artifact, desk)
    found: list[bytes | None] = []

    def seen() -> bool:
        if settled(box):
            found.append(box.learning.store.vector(CAMPAIGN, "residual"))
        return bool(found)

    await worked(box, seen)
    assert found == [None]


async def test_other_bytes_under_the_same_task_are_dropped(tmp_path: Path) -> None:
    """As after a disk that was set back: the gateway has another update of this task."""
    artifact, desk = made()

    def judge(call: object) -> UpdateAnswer:
        raise Conflict("another content stands under this task")

    desk.judge = judge
    box = Box(tmp_path / "box", artifact, desk)
    await worked(box, lambda: settled(box))
    assert box.learning.store.done["t-0"] == "conflict"
    assert len([call for call in desk.calls if call.task == "t-0"]) == 1


async def test_a_campaign_that_ended_meanwhile(tmp_path: Path) -> None:
    artifact, desk = made()
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk)
    desk.ended = (CAMPAIGN,)
    await worked(box, lambda: any(note.is_over for note in box.learning.store.notes.values()))
    note = box.learning.store.notes[CAMPAIGN]
    assert note.n_accepted == 1
    assert note.step == -1
    assert list((tmp_path / "box" / "learning").glob("vectors/*")) == []
    desk.kind, desk.most_steps, desk.salt, desk.ended = "evaluate", 2, "e", ()
    box.started()
    await worked(box, lambda: any(note.n_evaluated for note in box.learning.store.notes.values()))
    assert box.learning.store.notes[CAMPAIGN].is_over, "its result is judged, its rounds are over all the same"


async def test_a_lease_that_ends_is_given_up(tmp_path: Path) -> None:
    """Somebody asks all the time; the task is given up at its end, and the gateway is told."""
    artifact, desk = made()
    desk.lease_s = 0.3
    box = Box(tmp_path / "box", artifact, desk)
    box.yielding.came()
    await worked(box, lambda: desk.refused)
    assert desk.refused == ["t-0"]
    assert not desk.calls
    assert box.learning.status().n_given_up == 1


async def test_another_version_answers(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    other = trainable_artifact(
        model_file(tmp_path / "net.onnx", seed=8), tmp_path / "other", name="net", head="features", version="2"
    )
    box.answers(other)
    await worked(box, lambda: desk.refused)
    assert desk.refused == ["t-0"]
    assert not desk.calls


async def test_a_version_that_was_learned_from_the_base(tmp_path: Path) -> None:
    """Its head is not the base's: the view is fetched whole, and training goes on from there."""
    artifact, desk = made()
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk)
    learned = tmp_path / "learned"
    learned.mkdir()
    for path in artifact.folder.rglob("*"):
        target = learned / path.relative_to(artifact.folder)
        target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    head = np.frombuffer((learned / "head.bin").read_bytes(), "<f4") + np.float32(0.5)
    (learned / "head.bin").write_bytes(head.astype("<f4").tobytes())
    entry = FileEntry(sha256=hashlib.sha256(head.tobytes()).hexdigest(), size=head.nbytes)
    files = {**artifact.manifest.files, "head.bin": entry}
    manifest = msgspec.structs.replace(artifact.manifest, version="1.r3-x", base=artifact.digest, files=files)
    manifest = msgspec.structs.replace(manifest, model_digest=digest_of_files(manifest.model_files))
    (learned / "manifest.json").write_bytes(canonical_bytes(manifest))
    box.answers(open_folder(learned))
    await worked(box, lambda: desk.step == 1)
    assert desk.n_fetched == 1
    assert not desk.refused


async def test_a_damaged_view_is_fetched_again(tmp_path: Path) -> None:
    artifact, desk = made()
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await until(lambda: settled(box))
        box.started()
        box.learning.store.open("gateway")
        with box.learning.store._database.writing() as db:
            db.execute("UPDATE vector SET sealed = x'00'")
        box.learning.store.close()
        desk.steps.append(desk.steps[-1] + np.float32(0.25))
        desk.most_steps = 3
        async with at_work(box.learning):
            await until(lambda: settled(box, 2))
    assert desk.step == 3


async def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked while there is no room; where it ends in the middle, the task is given up, nothing is sent."""
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    store = box.learning.store
    keep = store.keep

    def full(*_: object) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(store, "keep", full)
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await until(lambda: desk.refused)
            assert not desk.calls
            monkeypatch.setattr(store, "keep", keep)
            desk.salt = "b"
            desk.refused.clear()
            await until(lambda: desk.step >= 1)
    monkeypatch.setattr(type(box.place.disk), "free_bytes", lambda *_: 1 << 20)
    why = await box.learning._conditions.look()
    assert why == "1 MB are free on the disk, 64 MB are wanted"


async def test_another_gateway_is_not_told_of_the_last_one(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    desk.loses = lambda: True
    await worked(box, lambda: desk.n_update_calls)
    desk.loses = lambda: False
    n_before = desk.n_update_calls
    box.gateway = "another"
    box.samples = Box(tmp_path / "again", artifact, desk).samples
    box.started()
    async with at_work(box.learning):
        await until(lambda: box.learning._opened == "another")
        assert box.learning.store.waiting is None
        assert not box.learning.store.notes
    assert desk.n_update_calls == n_before


async def test_a_revoked_box_waits_and_loses_nothing(tmp_path: Path) -> None:
    artifact, desk = made()
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk)

    def revoked(_: object) -> UpdateAnswer:
        desk.error = NotAdmitted("this box is revoked")
        raise desk.error

    judge, desk.judge = desk.judge, revoked
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await until(lambda: box.learning._patience.n_failures >= 3)
            assert box.learning.status().waiting_bytes > 0
            assert "revoked" in box.learning.status().why_not
            desk.error, desk.judge = None, judge
            await until(lambda: desk.step == 1)


async def test_a_gateway_that_is_away(tmp_path: Path) -> None:
    artifact, desk = made()
    desk.error = ConnectionLost("nobody is there")
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await until(lambda: box.learning._patience.n_failures >= 3)
            desk.error = Overloaded("this service is shutting down")
            await until(lambda: box.learning.status().why_not == "its gateway says: this service is shutting down")
            desk.error = None
            await until(lambda: desk.step == 3)


def _mains(box: Box) -> None:
    box.senses["on_battery"] = lambda: True
    box.senses["battery_ratio"] = lambda: 0.4


def _hot(box: Box) -> None:
    box.senses["heat"] = lambda: Heat(celsius=93.0, limit_celsius=100.0)


def _slow(box: Box) -> None:
    box.senses["heat"] = lambda: Heat(clock_ratio=0.6)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_mains, "this box runs on its battery, 40% full; it learns on mains or above half"),
        (_hot, "this box is hot: 93 °C of 100"),
        (_slow, "this box is held at 60% of its clock, for heat or power"),
    ],
)
async def test_what_keeps_a_box_from_learning(tmp_path: Path, change: object, why: str) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    change(box)  # type: ignore[operator]
    await worked(box, lambda: box.learning.status().why_not == why)
    assert not desk.asked


async def test_nothing_to_learn_from(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    await worked(box, lambda: "no labelled samples of net" in box.learning.status().why_not, n_samples=0)
    box.answering.remove("net")
    box.learning.wake()
    assert not desk.asked


async def test_a_half_full_battery_is_enough_and_is_told(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    box.senses |= {"on_battery": lambda: True, "battery_ratio": lambda: 0.51}
    box.is_metered = True
    await worked(box, lambda: desk.step >= 1 and box.learning.store.notes)
    condition = desk.asked[0].condition
    assert (condition.is_on_mains, condition.is_metered, condition.is_well) == (False, True, True)
    assert box.learning.store.notes[CAMPAIGN].is_metered, "the campaign gave a task to a metered box"


async def test_an_update_waits_for_a_link_that_costs_nothing(tmp_path: Path) -> None:
    """The task came while the link was not metered: whether the campaign would pay for it nobody said."""
    artifact, desk = made()
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk)
    task = desk.task

    async def metered_from_now_on(call: object) -> object:
        answer = await task(call)  # type: ignore[arg-type]
        box.is_metered = True
        return answer

    desk.task = metered_from_now_on  # type: ignore[method-assign, assignment]
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await until(lambda: "not metered" in box.learning.status().why_not)
            assert not desk.calls
            box.is_metered = False
            box.learning.wake()
            await until(lambda: desk.step == 1)


async def test_switched_off(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    box.mode = "off"
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await asyncio.sleep(0.05)
            assert not desk.asked
            assert box.learning.status().mode == "off"
            box.mode = "idle"
            box.learning.wake()
            await until(lambda: desk.step == 3)


async def test_privacy_is_spent_once_and_never_beyond_the_budget(tmp_path: Path) -> None:
    """Noise 2: each update that counts costs mu squared of 1/4; an epsilon of 4 pays for three of them."""
    artifact, desk = made(is_uniform=True, noise=2.0, delta=1e-5, max_epsilon=4.0)
    desk.clip, desk.most_steps = 0.5, 9
    desk.loses = lambda: desk.n_update_calls % 2 == 1
    box = Box(tmp_path / "box", artifact, desk)
    await worked(box, lambda: desk.refused)
    note = box.learning.store.notes[CAMPAIGN]
    from hybrid.federated.privacy.accountant import epsilon_for

    assert note.n_accepted == desk.step == int(epsilon_steps(4.0))
    assert note.epsilon == pytest.approx(epsilon_for(desk.step / 4, 1e-5))
    assert note.epsilon <= 4.0 < epsilon_for((desk.step + 1) / 4, 1e-5)
    assert all(call.n_samples == 1 and call.loss_before == call.loss_after == 0 for call in desk.calls)
    for call in desk.calls:
        said = form(call.form).decode(call.content, desk.layout).astype(np.float64)
        assert np.linalg.norm(said) <= 0.5


def epsilon_steps(epsilon: float) -> int:
    """Updates that an epsilon pays for at noise 2."""
    from hybrid.federated.privacy.accountant import budget_of, cost_of, fits

    return max(n for n in range(1, 100) if fits(cost_of(2.0, n), budget_of(epsilon, 1e-5)))


async def test_news_end_a_poll(tmp_path: Path) -> None:
    """Twice the labels, or another model: the gateway is told at once, though it holds the poll for minutes."""
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)

    async def held(call: TaskCall) -> TaskAnswer:
        desk.asked.append(call)
        await asyncio.Event().wait()
        raise AssertionError

    desk.task = held  # type: ignore[method-assign]
    async with at_work(box.outbox, box.samples):
        await box.fill(8)
        async with at_work(box.learning):
            await until(lambda: len(desk.asked) == 1)
            (first,) = desk.asked[0].offers
            for _ in range(first.n_samples):
                assert len(desk.asked) == 1
                await box.samples.put("d" * 64, "", {"x": np.zeros((1, 16), np.float32)}, {}, 1, model="net")
            await until(lambda: len(desk.asked) == 2)
            assert desk.asked[1].offers[0].n_samples > first.n_samples
            box.answering.remove("net")
            box.learning.wake()
            await until(lambda: "no model on this box" in box.learning.status().why_not)
