"""A simulated campaign: a gateway's rounds and a crowd of virtual boxes on one virtual clock, until it is over."""

import asyncio
import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import msgspec
import numpy as np

from cloud_gateway.blobs import BlobStore
from cloud_gateway.fleet.intake.blobs import FleetBlobs
from cloud_gateway.rounds.course.papers import KEY_FILE
from cloud_gateway.rounds.evaluation import LABELS, features_of
from cloud_gateway.rounds.messages import CampaignView, CampaignWish
from cloud_gateway.rounds.neighbours import Neighbours
from cloud_gateway.rounds.service import FOLDER, Rounds
from cloud_gateway.rounds.simulation.box import Learner, VirtualBox
from cloud_gateway.rounds.simulation.masked import SimulatedKey
from cloud_gateway.rounds.simulation.model import OneModel, head_of
from cloud_gateway.rounds.simulation.samples import divided
from cloud_gateway.rounds.simulation.settings import Fleet, attackers, machines
from cloud_gateway.rounds.simulation.virtual_loop import VirtualLoop
from hybrid.artifact.folder import Artifact
from hybrid.federated.box.work import Learnable
from hybrid.federated.campaign import Campaign, Promotion
from hybrid.federated.learning.body import Body
from hybrid.federated.learning.examples import Examples
from hybrid.federated.messages import Offer
from hybrid.fleet.messages import Admission

_EPOCH_S: Final = 1_700_000_000.0
"""What the simulated gateway's calendar says at the beginning."""
_LOOK_S: Final = 60.0
_STARTS_WITHIN_S: Final = 1.0
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (a folder of its own below it)


class Box(NamedTuple):
    """A box of the registry."""

    id: str
    name: str
    tags: dict[str, str]
    admission: Admission = "admitted"


class Crowd:
    """The registry of simulated boxes; a `BoxDirectory`."""

    def __init__(self, boxes: list[Box]) -> None:
        self._boxes = {box.id: box for box in boxes}
        self._all = tuple(boxes)

    def all(self) -> tuple[Box, ...]:
        """Every box."""
        return self._all

    def find(self, box_id: str) -> Box | None:
        """One box."""
        return self._boxes.get(box_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is learned from and measured with.

    Attributes:
        artifact: the base.
        inputs, labels: of all boxes together; inputs by name.
        test_inputs, test_labels: the gateway's evaluation set.
    """

    artifact: Artifact
    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    test_inputs: dict[str, np.ndarray]
    test_labels: np.ndarray


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        campaign: as the gateway tells it.
        fleet: as it was ordered.
        seconds: virtual, until it was over.
        n_bytes_up, n_bytes_down: messages of all boxes; HTTP and TLS are not counted.
        n_calls: of all boxes.
        n_dropped: tasks in the middle of which a box fell over.
        train_s: that all boxes trained, virtual.
        outcomes: of updates, as boxes were told.
        failures: tasks that boxes could not do, and calls that were refused, by the error.
        n_attackers, attackers_outcomes: how many boxes attack, and the same of theirs alone.
        boxes_by_machine, updates_by_machine: how many of each kind, and how many of their updates were accepted.
        alarms: that the gateway raised.
    """

    campaign: CampaignView
    fleet: Fleet
    seconds: float = 0.0
    n_bytes_up: int
    n_bytes_down: int
    n_calls: int
    n_dropped: int
    train_s: float
    outcomes: dict[str, int]
    failures: dict[str, int] = {}
    n_attackers: int = 0
    attackers_outcomes: dict[str, int] = {}
    boxes_by_machine: dict[str, int]
    updates_by_machine: dict[str, int]
    alarms: tuple[str, ...] = ()


def simulate(order: Campaign, fleet: Fleet, material: Material, told: Callable[[CampaignView], None]) -> Outcome:
    """Run a campaign to its end, or as long as the fleet says.

    Args:
        order: its model is the material's.
        fleet: of boxes.
        material: of model and samples.
        told: called after each round.

    Raises:
        HybridError: what a gateway answers to such an order, or settings that cannot be.
    """
    fleet.check()
    in_memory = _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else None  # nothing of it need survive
    with tempfile.TemporaryDirectory(prefix="hybrid-rounds-", dir=in_memory) as folder:
        loop = VirtualLoop()
        try:
            asyncio.set_event_loop(loop)
            return loop.run_until_complete(_run(Path(folder), order, fleet, material, told))
        finally:
            _end(loop)
            asyncio.set_event_loop(None)
            loop.close()


def _end(loop: VirtualLoop) -> None:
    """What a Ctrl-C left in the middle ends as it would have, so that files are closed before their folder goes."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


async def _run(
    folder: Path, order: Campaign, fleet: Fleet, material: Material, told: Callable[[CampaignView], None]
) -> Outcome:
    loop = asyncio.get_running_loop()
    variant, _ = head_of(material.artifact, order.variant)
    order = msgspec.structs.replace(order, variant=variant, promotion=Promotion(policy="none"))
    learners = _learners(order, fleet, material)
    boxes = [_box(at, fleet.seed, learner) for at, learner in enumerate(learners)]
    blobs, alarms = FleetBlobs(folder), Counter[str]()
    _fixed_key(folder, fleet.seed)
    rounds = Rounds(
        folder,
        Neighbours(
            library=OneModel(material.artifact),
            files=BlobStore(folder),
            boxes=Crowd(boxes),
            blobs=blobs,
            raise_alarm=lambda kind, _box_id, text: alarms.update([f"{kind}: {text}"]),
        ),
        clock_s=loop.time,
        wall_s=lambda: _EPOCH_S + loop.time(),
    )
    rounds.campaigns._rng.seed(fleet.seed)  # noqa: SLF001 (names of campaigns, so that a seed repeats a run)
    crowd = [
        VirtualBox(box.id, learner, rounds.desk, blobs.put, fleet.seed)
        for box, learner in zip(boxes, learners, strict=True)
    ]
    working: list[asyncio.Task[None]] = []
    try:
        working.append(loop.create_task(rounds.run()))
        evaluation = rounds.sets.put(_packed(material)).sha256
        course = await rounds.create(CampaignWish(order=order, evaluation=evaluation), "simulation")
        working += [loop.create_task(box.live(_STARTS_WITHIN_S)) for box in crowd]
        view = await _watched(rounds, course.id, fleet.most_s, working, told)
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        rounds.close()
    found = _outcome(view, fleet, crowd, learners)
    return msgspec.structs.replace(found, seconds=loop.time(), alarms=tuple(alarms))


async def _watched(
    rounds: Rounds,
    campaign: str,
    most_s: float,
    working: list["asyncio.Task[None]"],
    told: Callable[[CampaignView], None],
) -> CampaignView:
    """The campaign once it is over; a fault of a box or of the gateway is raised here."""
    view, loop = await rounds.public.shown(campaign), asyncio.get_running_loop()
    while True:
        step, left_s = view.step, most_s - loop.time()
        if left_s <= 0.0:
            await rounds.order("stop", campaign)
        view = await rounds.public.shown(campaign, since=view.serial, wait_s=max(0.0, min(_LOOK_S, left_s)))
        for task in working:
            if task.done():
                task.result()
        if view.step != step or view.state != "running":
            told(view)
        if view.state == "running":
            continue
        if left_s <= 0.0:
            view = msgspec.structs.replace(
                view, reason=f"the {most_s / 3600.0:g} virtual hours that it may take are over"
            )
        return view


def _box(at: int, seed: int, learner: Learner) -> Box:
    digest = hashlib.sha256(f"{seed} box {at}".encode()).hexdigest()
    return Box(id=digest[:32] if learner.key is None else learner.key.box_id, name=f"box-{at}", tags={"n": str(at)})


def _fixed_key(folder: Path, seed: int) -> None:
    """Names of tasks seed what boxes draw: with a key of the seed's, a run can be repeated."""
    (folder / FOLDER).mkdir(parents=True)
    path = folder / FOLDER / KEY_FILE
    path.write_bytes(Random(f"{seed} key").randbytes(32))  # noqa: S311 (it guards nothing)
    path.chmod(0o600)


def _learners(order: Campaign, fleet: Fleet, material: Material) -> list[Learner]:
    """What each box has."""
    artifact = material.artifact
    shares = divided(
        material.labels, fleet.boxes, fleet.split, alpha=fleet.alpha, n_shards=fleet.shards, seed=fleet.seed
    )
    _, head = head_of(artifact, order.variant)
    features = features_of(Body(head), material.inputs)
    learnable, bad = Learnable.of(head), attackers(fleet)
    return [
        Learner(
            learnable=learnable,
            examples=Examples(features[indices], material.labels[indices]),
            offer=Offer(
                model=artifact.manifest.name,
                artifact_digest=artifact.digest,
                variant=order.variant,
                n_samples=len(indices),
            ),
            machine=machine,
            drops_ratio=fleet.drops_ratio,
            away_ratio=fleet.away_ratio,
            attack=fleet.attack if at in bad else None,
            key=SimulatedKey(Random(f"{fleet.seed} key {at}")) if order.privacy.secure else None,  # noqa: S311 (guards nothing)
        )
        for at, (indices, machine) in enumerate(zip(shares, machines(fleet, head.layout.n_elements), strict=True))
    ]


def _packed(material: Material) -> bytes:
    packed = BytesIO()
    np.savez(packed, **material.test_inputs, **{LABELS: material.test_labels})  # type: ignore[arg-type]
    return packed.getvalue()


def _outcome(view: CampaignView, fleet: Fleet, crowd: list[VirtualBox], learners: list[Learner]) -> Outcome:
    outcomes: Counter[str] = Counter()
    attackers_outcomes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    updates: Counter[str] = Counter()
    for box, learner in zip(crowd, learners, strict=True):
        outcomes.update(box.traffic.outcomes)
        failures.update(box.traffic.failures)
        if learner.attack is not None:
            attackers_outcomes.update(box.traffic.outcomes)
        updates[learner.machine.name] += box.traffic.outcomes["accepted"]
    traffic = [box.traffic for box in crowd]
    return Outcome(
        campaign=view,
        fleet=fleet,
        n_bytes_up=sum(each.n_bytes_up for each in traffic),
        n_bytes_down=sum(each.n_bytes_down for each in traffic),
        n_calls=sum(each.n_calls for each in traffic),
        n_dropped=sum(each.n_dropped for each in traffic),
        train_s=sum(each.train_s for each in traffic),
        outcomes=dict(sorted(outcomes.items())),
        failures=dict(sorted(failures.items())),
        n_attackers=sum(learner.attack is not None for learner in learners),
        attackers_outcomes=dict(sorted(attackers_outcomes.items())),
        boxes_by_machine=dict(Counter(learner.machine.name for learner in learners)),
        updates_by_machine=dict(updates),
    )
