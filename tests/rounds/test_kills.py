"""The gateway ends between any two writes: what was accepted counts once, and steps are the same to the last bit."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest

from cloud_gateway.rounds.course import closings
from cloud_gateway.rounds.kept.commits import Commits
from cloud_gateway.rounds.kept.steps import Steps
from hybrid.errors import HybridError
from hybrid.federated.campaign import Aggregation, Coding, Privacy
from hybrid.federated.messages import UpdateCall
from tests.rounds.lab import Box, Lab, running, until

N_BOXES, N_ROUNDS = 2, 2
ORDER = {"goal": N_BOXES, "rounds": N_ROUNDS, "coding": Coding(up="float32", down="int8")}
NOISE = {
    "aggregation": Aggregation(weights="uniform"),
    "privacy": Privacy(noise=1.0, clip=1.0),
}


class Cut(Exception):
    """The process ends here."""


class Power:
    """Ends the process at the n-th place where the disk is touched; nothing is written after that."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.n_places = 0
        self.cut_at = 0
        self.is_out = False
        commit, write = Commits._write, Steps.write
        patch.setattr(Commits, "_write", lambda own, works: self._pass(lambda: commit(own, works)))
        patch.setattr(Steps, "write", lambda own, made: self._pass(lambda: write(own, made)))

    def _pass(self, work):
        self._place()
        found = work()
        self._place()
        return found

    def _place(self) -> None:
        self.n_places += 1
        self.is_out |= self.n_places == self.cut_at
        if self.is_out:
            raise Cut

    def on(self, cut_at: int = 0) -> None:
        self.n_places, self.cut_at, self.is_out = 0, cut_at, False


class Drawing:
    """In place of `secrets`: seeds of noise that can be told apart."""

    def __init__(self, drawn: list[int]) -> None:
        self._drawn = drawn

    def token_bytes(self, n: int) -> bytes:
        self._drawn.append(n)
        return bytes([len(self._drawn)]) * n


def vector(box: int, step: int) -> np.ndarray:
    return np.random.default_rng([box, step]).normal(size=4810).astype(np.float32) * np.float32(0.001)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Folders of campaigns that have just begun, with and without noise."""
    found = {}
    for name, more in (("plain", {}), ("noise", NOISE)):
        folder = tmp_path_factory.mktemp(name)
        lab = Lab(folder, n_boxes=N_BOXES)
        found[name] = (folder, asyncio.run(lab.create(**ORDER, **more)))
        lab.close()
    return found


async def drive(lab: Lab, campaign: str, pending: dict[int, UpdateCall]) -> None:
    """Boxes one after the other, each as a sound one: the same bytes until there is an answer that is final."""
    boxes = [Box(lab, at) for at in range(N_BOXES)]
    while campaign in lab.desk.courses:
        await asyncio.sleep(0.001)
        course = lab.desk.courses.get(campaign)
        if course is None:
            return
        step = course.row.step
        for at, box in enumerate(boxes):
            if at not in pending:
                task = await box.task()
                if task is None:
                    continue
                pending[at] = box.update(task, vector(at, task.weights.step), n_samples=1)
            answer = await box.send(pending[at])
            assert answer.state == "accepted", answer
            del pending[at]
        await until(lambda own=course, before=step: own.row.step > before or own.has_ended or lab.power_is_out())
        if lab.power_is_out():
            raise Cut


async def lived(folder: Path, campaign: str, power: Power, pending: dict[int, UpdateCall]) -> Lab | None:
    """One life of the process: to the end of the campaign, or until the power is cut."""
    lab = Lab(folder, n_boxes=N_BOXES)
    lab.power_is_out = lambda: power.is_out
    try:
        async with running(lab):
            await drive(lab, campaign, pending)
        return lab
    except (HybridError, Cut):
        assert power.is_out
        lab.close()
        return None


def steps_of(folder: Path, campaign: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "rounds" / campaign / "steps").glob("*.step"))]


def whole(begun: tuple[Path, str], folder: Path, power: Power) -> tuple[list[bytes], int]:
    shutil.copytree(begun[0], folder)
    power.on()
    lab = asyncio.run(lived(folder, begun[1], power, {}))
    assert lab is not None
    lab.close()
    return steps_of(folder, begun[1]), power.n_places


def test_every_cut_leads_to_the_same_bits(begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    power = Power(monkeypatch)
    monkeypatch.setattr(closings, "AGAIN_S", 0.01)
    folder, campaign = begun["plain"]
    wanted, n_places = whole((folder, campaign), tmp_path / "whole", power)
    assert len(wanted) == N_ROUNDS + 1
    assert n_places >= 2 * (N_BOXES + 3) * N_ROUNDS
    for cut_at in range(1, n_places + 1):
        place = tmp_path / str(cut_at)
        shutil.copytree(folder, place)
        power.on(cut_at)
        pending: dict[int, UpdateCall] = {}
        lab = asyncio.run(lived(place, campaign, power, pending))
        if lab is None:
            power.on()
            lab = asyncio.run(lived(place, campaign, power, pending))
        assert lab is not None
        rows = lab.rounds._store.received(campaign)
        assert sorted((row.step, row.box_id) for row in rows) == sorted({(row.step, row.box_id) for row in rows})
        assert {row.outcome for row in rows} == {"counted"}, cut_at
        assert len(rows) == N_BOXES * N_ROUNDS, cut_at
        assert steps_of(place, campaign) == wanted, cut_at
        lab.close()


def test_noise_is_drawn_once_and_each_box_charged_once(begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    power = Power(monkeypatch)
    monkeypatch.setattr(closings, "AGAIN_S", 0.01)
    drawn = []
    monkeypatch.setattr(closings, "secrets", Drawing(drawn))
    folder, campaign = begun["noise"]
    _, n_places = whole((folder, campaign), tmp_path / "whole", power)
    assert len(drawn) == N_ROUNDS
    first_close = 2 * N_BOXES + 1
    for cut_at in range(first_close, first_close + 5):
        drawn.clear()
        place = tmp_path / str(cut_at)
        shutil.copytree(folder, place)
        power.on(cut_at)
        pending: dict[int, UpdateCall] = {}
        assert asyncio.run(lived(place, campaign, power, pending)) is None
        is_chosen = cut_at > first_close
        assert len(drawn) == 1
        power.on()
        lab = asyncio.run(lived(place, campaign, power, pending))
        assert lab is not None
        assert len(drawn) == N_ROUNDS + (0 if is_chosen else 1)
        costs = [lab.rounds.campaigns._spent_on(lab.rounds.campaigns.row(campaign).order)]
        assert set(costs[0].values()) == {2.0}
        lab.close()
    assert n_places > first_close + 6
