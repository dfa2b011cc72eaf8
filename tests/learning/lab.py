"""A box that learns, beside a gateway that a test can make lose answers, forget, refuse and change its mind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

from edge_agent.learning.conditions import Conditions, Senses
from edge_agent.learning.learning import Learning
from edge_agent.learning.offers import Offers
from edge_agent.learning.personal import Personal
from edge_agent.learning.store import LearningStore
from edge_agent.learning.surroundings import Surroundings
from edge_agent.learning.yielding import Yielding
from edge_agent.living.thermal import Heat
from edge_agent.models.room import ModelRoom
from edge_agent.models.source import Answering
from edge_agent.models.version import ModelVersion
from edge_agent.outbox.place import Place
from edge_agent.samples.store import Samples
from edge_agent.samples.vault import Vault
from edge_agent.trust.identity import BoxKey
from hybrid.artifact.folder import Artifact
from hybrid.errors import ConnectionLost, HybridError
from hybrid.federated.aggregation.mean import RunningMean
from hybrid.federated.box.work import wire_layout
from hybrid.federated.calls import RoundCalls
from hybrid.federated.campaign import Coding, Training
from hybrid.federated.coding.catalog import form
from hybrid.federated.coding.versions import view_digest
from hybrid.federated.layout import Layout
from hybrid.federated.learning.head import Head, open_head
from hybrid.federated.messages import (
    EvaluationAnswer,
    EvaluationCall,
    SecureAnswer,
    SecureCall,
    Task,
    TaskAnswer,
    TaskCall,
    Terms,
    UpdateAnswer,
    UpdateCall,
    Weights,
)
from hybrid.fleet.sample import Sample, packed_arrays
from tests.learning.nets import N_CLASSES, N_FEATURES, N_INPUTS, kept_artifact, rows
from tests.outbox.lab import outbox_of

CAMPAIGN = "c4mp"


class Hasty(Random):
    """Draws pauses that nobody has to wait for."""

    def uniform(self, a: float, b: float) -> float:
        return min(b, 0.005)


def again(message: Any) -> Any:
    """A message as the other side reads it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


class Desk:
    """`RoundCalls` of one box, by one campaign; every update counts and makes the next step.

    Attributes:
        updates: contents by task, in the order in which they were accepted first.
        n_update_calls: that arrived.
        loses: asked before each answer: it is lost.
        judge: what becomes of an update that arrived for the first time.
        most_steps: no further tasks from this step on.
    """

    def __init__(self, head: Head, artifact_digest: str, *, variant: str = "original", **terms: Any) -> None:
        self.head = head
        self.terms = Terms(
            model="net", artifact_digest=artifact_digest, variant=variant, layout=head.layout,
            **({"training": Training(epochs=3, learning_rate=0.3), "coding": Coding()} | terms),
        )  # fmt: skip
        self.steps = [head.vector.copy()]
        self.control = np.zeros_like(self.steps[0])
        self.updates: dict[str, bytes] = {}
        self.calls: list[UpdateCall] = []
        self.asked: list[TaskCall] = []
        self.counts: list[EvaluationCall] = []
        self.blobs: dict[str, bytes] = {}
        self.refused: list[str] = []
        self.n_update_calls = self.n_fetched = 0
        self.loses: Callable[[], bool] = lambda: False
        self.judge: Callable[[UpdateCall], UpdateAnswer] = lambda call: UpdateAnswer(state="accepted")
        self.most_steps = 3
        self.kind = "train"
        self.lease_s = 30.0
        self.clip = 0.0
        self.ended: tuple[str, ...] = ()
        self.error: HybridError | None = None
        self.salt = ""

    @property
    def step(self) -> int:
        """The newest."""
        return len(self.steps) - 1

    @property
    def layout(self) -> Layout:
        """Of updates."""
        return wire_layout(self.terms)

    async def task(self, call: TaskCall) -> TaskAnswer:
        call = again(call)
        self.asked.append(call)
        self._fail()
        return again(self._answer(call))

    async def weights(self, campaign: str, step: int, have: int) -> Weights:
        self._fail()
        self.n_fetched += 1
        vector = self.steps[step]
        return Weights(step=step, sha256=view_digest(vector), whole=vector.tobytes())

    async def update(self, call: UpdateCall) -> UpdateAnswer:
        call = again(call)
        self._fail()
        self.n_update_calls += 1
        self.calls.append(call)
        content = call.content or self.blobs[call.sha256]
        assert len(content) == call.n_bytes
        known = self.updates.get(call.task)
        answer = UpdateAnswer(state="accepted") if known is not None else self.judge(call)
        assert known in {None, content}, "the same task with other bytes"
        if known is None and answer.state == "accepted":
            self.updates[call.task] = content
            self._count(call, content)
        if self.loses():
            raise ConnectionLost("the answer was lost")
        if call.next is None:
            return again(answer)
        self.asked.append(call.next)
        return again(msgspec.structs.replace(answer, next=self._answer(call.next)))

    async def evaluation(self, call: EvaluationCall) -> EvaluationAnswer:
        self._fail()
        self.counts.append(again(call))
        if self.loses():
            raise ConnectionLost("the answer was lost")
        self.most_steps = self.step
        return EvaluationAnswer(state="accepted")

    async def secure(self, call: SecureCall) -> SecureAnswer:
        raise AssertionError("nothing is masked in this test")

    async def put_blob(self, digest: str, content: bytes) -> None:
        self._fail()
        assert sha256(content).hexdigest() == digest
        self.blobs[digest] = content

    def accuracy(self, n: int = 300) -> float:
        """Of the newest step, on rows that no box has."""
        inputs, classes = rows(n, 1234, self.head.model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
        body = {one.name: one for one in self.head.model.graph.initializer}
        mixed = np.maximum(inputs @ onnx_array(body["body"]), 0)
        arrays = self.head.layout.arrays(self.steps[-1])
        return float(((mixed @ arrays["head"] + arrays["offset"]).argmax(1) == classes).mean())

    def _count(self, call: UpdateCall, content: bytes) -> None:
        delta = form(call.form).decode(content, self.layout)
        n = self.terms.layout.n_elements
        mean = RunningMean(self.layout)
        mean.add(delta, 1.0, 1.0)
        self.steps.append((self.steps[-1] + mean.mean()[:n]).astype(np.float32))
        if self.terms.scaffold:
            self.control = self.control + delta[n:]

    def _answer(self, call: TaskCall) -> TaskAnswer:
        self.refused += call.refused
        if self.step >= self.most_steps:
            return TaskAnswer(poll_after_s=1.0, ended=self.ended)
        held = {one.campaign: one.step for one in call.held}
        step, vector = self.step, self.steps[-1]
        task = f"t{self.salt}-{step}"
        if task in call.refused or task in self.refused:
            return TaskAnswer(poll_after_s=1.0, ended=self.ended)
        is_base = step == 0 and CAMPAIGN not in held
        weights = Weights(
            step=step,
            sha256=view_digest(vector),
            whole=b"" if is_base or held.get(CAMPAIGN) == step else vector.tobytes(),
            control=self.control.astype("<f4").tobytes() if self.terms.scaffold else b"",
        )
        return TaskAnswer(
            task=Task(
                id=task, campaign=CAMPAIGN, kind=self.kind, weights=weights, lease_s=self.lease_s, clip=self.clip,
                terms=None if CAMPAIGN in held else self.terms,
            ),
            ended=self.ended,
        )  # fmt: skip

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


def onnx_array(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


class Box:
    """Samples, a model and the part that learns, over a folder."""

    def __init__(
        self,
        folder: Path,
        artifact: Artifact,
        desk: Desk | RoundCalls,
        key: BoxKey | None = None,
        room: ModelRoom | None = None,
        **more: Any,
    ) -> None:
        self.folder, self.artifact, self.desk = folder, artifact, desk
        self.gateway = "gateway"
        self.key = key
        self.mode = "idle"
        self.senses: dict[str, Any] = {
            "on_battery": lambda: False, "battery_ratio": lambda: None, "heat": Heat,
        }  # fmt: skip
        self.is_metered = self.is_away = False
        vault = Vault([("file", b"k" * 32)])
        self.place = Place(folder=folder / "learning", vault=vault, **more)
        self.outbox = outbox_of(folder / "outbox", None)
        self.samples = Samples(Place(folder=folder / "samples", vault=vault), self.outbox, rules=lambda _: "keep")
        self.room = room
        self.why_not = ""
        self.answering = Answering() if room is None else room.answering
        self.answers(artifact)
        self.yielding = Yielding(idle_s=0.05)
        self.learning = self.started()

    def answers(self, artifact: Artifact) -> None:
        """The model of this artifact answers from now on."""
        self.answering.put(version_of(artifact))

    def started(self) -> Learning:
        """The part, as a start of the agent makes it."""
        around = Surroundings(
            calls=self.desk,
            put_blob=getattr(self.desk, "put_blob", None),  # type: ignore[arg-type]
            gateway=lambda: self.gateway,
            epoch=lambda: "ab" * 16,
            samples=self.samples.shelf,
            rng=Hasty(1),
            key=lambda: self.key,
            is_away=lambda: self.is_away,
        )
        senses = Senses(**{name: (lambda name=name: self.senses[name]()) for name in self.senses})
        conditions = Conditions(self.place.folder, self.place.disk, is_metered=lambda: self.is_metered, senses=senses)
        store, offers = LearningStore(self.place), Offers(self.answering, self.samples.labelled)
        personal = None
        if self.room is not None:
            personal = Personal(
                store, self.answering, self.room.host, offers=offers, why_not=lambda _: self.why_not,
                wall_s=self.place.wall_s,
            )  # fmt: skip
        self.learning = Learning(
            store, around, offers=offers, conditions=conditions, yielding=self.yielding, mode=lambda: self.mode,
            personal=personal,
        )  # fmt: skip
        self.samples.on_label = self.learning.relabelled
        return self.learning

    async def fill(self, n: int, *, seed: int = 5, n_inputs: int = N_INPUTS, turn: int = 0) -> list[str]:
        """Keeps labelled samples; their ids. On this box every class may be called by another's name (`turn`)."""
        inputs, classes = rows(n, seed, n_inputs)
        classes = (classes + turn) % N_CLASSES
        await self.samples._ready.wait()
        shelf, digest = self.samples.shelf, self.artifact.manifest.model_digest
        found = []
        for row, right in zip(inputs, classes, strict=True):
            packed, nothing = packed_arrays({"x": row[None]}, {})
            found.append(
                Sample(
                    id=shelf.next_id(), model="net", model_digest=digest, variant="", made_s=0.0, label=str(right),
                    inputs=packed, output=nothing,
                )
            )  # fmt: skip
        await asyncio.to_thread(shelf.put, found, (), 0.0)
        for one in found:
            self.learning.relabelled(one.id)
        self.learning.wake()
        return [one.id for one in found]


def version_of(artifact: Artifact) -> ModelVersion:
    """An artifact as it is installed."""
    manifest = artifact.manifest
    return ModelVersion(
        name="net", version=manifest.version, model_digest=manifest.model_digest, artifact_digest=artifact.digest,
        path=artifact.folder / manifest.model_file, folder=artifact.folder, samples="keep",
    )  # fmt: skip


@asynccontextmanager
async def at_work(*parts: Any) -> AsyncIterator[None]:
    """The parts at work; ended in order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part.run()) for part in parts]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def made(n_features: int = N_FEATURES, **terms: Any) -> tuple[Artifact, Desk]:
    """A model and a desk that has a campaign for it."""
    artifact = kept_artifact(n_features)
    return artifact, Desk(open_head(artifact.folder, artifact.manifest, "original"), artifact.digest, **terms)
