"""A campaign with personal layers, the version that comes of it, and lives of a service that answers with it."""

import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_agent.models.room import ModelRoom
from hybrid.artifact.folder import Artifact, open_folder
from hybrid.artifact.names import MANIFEST_NAME
from hybrid.federated.campaign import Training
from hybrid.federated.candidate import candidate
from hybrid.federated.layout import Layout
from hybrid.federated.learning.head import open_head
from tests.edge_agent.model_room import ask, model_room
from tests.learning.lab import CAMPAIGN, Box, Desk, at_work, made
from tests.learning.nets import N_CLASSES, N_INPUTS
from tests.outbox.lab import until

TURN = 1
"""On the box of these tests class 0 is called 1, and so on: what is personal is worth much here."""


def with_personal_head() -> tuple[Artifact, Desk]:
    """A campaign in which the offsets travel and the rest of the head never leaves."""
    artifact, desk = made()
    training = Training(epochs=3, learning_rate=0.3, personal=("head",))
    desk.terms = msgspec.structs.replace(
        desk.terms, layout=Layout(names=("offset",), shapes=((N_CLASSES,),)), training=training
    )
    desk.steps = [desk.head.arrays["offset"].copy()]
    desk.control = np.zeros_like(desk.steps[0])
    desk.most_steps = 2
    return artifact, desk


def learned(
    base: Artifact, offsets: np.ndarray, folder: Path, campaign: str = CAMPAIGN, training: Training | None = None
) -> Artifact:
    """The version that comes home; with a plan it tells boxes that took no part how to fit layers of their own."""
    made_of = candidate(
        base, "original", {"offset": offsets}, version=f"1.r2-{campaign}", sequence=2, campaign=campaign,
        training=training,
    )  # fmt: skip
    shutil.copytree(base.folder, folder)
    for name, content in made_of.files.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST_NAME).write_bytes(made_of.manifest_bytes)
    return open_folder(folder)


def answers_of(artifact: Artifact, inputs: np.ndarray, tensors: Any = ()) -> np.ndarray:
    """What an artifact answers, in numpy; with other tensors in place of its own."""
    head = open_head(artifact.folder, artifact.manifest, "original")
    body = next(one for one in head.model.graph.initializer if one.name == "body")
    features = np.maximum(inputs @ np.frombuffer(body.raw_data, "<f4").reshape(N_INPUTS, -1), 0)
    return head.program.answer({**head.arrays, **dict(tensors)}, features)


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


async def asked(room: ModelRoom, inputs: np.ndarray) -> np.ndarray:
    return (await ask(room, "net", {"x": inputs})).outputs[0]


@asynccontextmanager
async def lives(folder: Path, artifact: Artifact, desk: Desk, **settings: Any) -> AsyncIterator[Box]:
    """One life of the service: its engine, samples and learning over a folder; it ends without a word."""
    async with model_room(folder / "room") as room:
        box = Box(folder / "box", artifact, desk, room=room)
        for name, value in settings.items():
            setattr(box, name, value)
        room.answering.on_change = box.learning.wake
        room.compute.on_personal_failure = box.learning.personal.failed  # type: ignore[union-attr]
        async with at_work(box.outbox, box.samples, box.learning):
            yield box


def standing(box: Box) -> Any:
    """What is said of the personal layers of the one campaign; None where nothing is."""
    found = [one for one in box.learning.status().personal if one.campaign == CAMPAIGN]
    return found[0] if found else None


async def personal(box: Box, wanted: bool = True) -> None:
    """Requests are answered with a copy, or plainly."""

    def is_so() -> bool:
        copy, loaded = box.answering.personal("net"), box.room.models.opened("net", "")
        digest = copy.digest if copy is not None else box.answering.named("net").model_digest
        return (copy is not None) == wanted and loaded is not None and loaded.model.model_digest == digest

    await until(is_so)


async def settled(box: Box) -> None:
    """The version that answers was looked at."""
    await until(lambda: standing(box) is not None and (standing(box).answers or standing(box).why_not))
