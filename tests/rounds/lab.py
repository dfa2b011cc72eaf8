"""Campaigns without a network: the gateway's rounds on a folder, boxes that train the reference task, or invent."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from cloud_gateway.blobs import BlobStore
from cloud_gateway.fleet.intake.blobs import FleetBlobs
from cloud_gateway.registry import Registry
from cloud_gateway.rounds.messages import CampaignView, CampaignWish
from cloud_gateway.rounds.neighbours import Neighbours
from cloud_gateway.rounds.service import Rounds
from hybrid.artifact.folder import Artifact, from_onnx, open_folder
from hybrid.artifact.golden_files import write_golden
from hybrid.artifact.manifest import canonical_bytes
from hybrid.artifact.signature import Signature, sign
from hybrid.artifact.trainable import Separated, declared
from hybrid.federated.box.views import view_of
from hybrid.federated.box.work import Learnable, Left, Work
from hybrid.federated.campaign import Campaign, Promotion
from hybrid.federated.layout import Layout
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import open_head
from hybrid.federated.messages import (
    EvaluationCall,
    Held,
    Offer,
    Task,
    TaskAnswer,
    TaskCall,
    Terms,
    UpdateAnswer,
    UpdateCall,
    encoded,
)
from tests.federated.learning_making import reference_model

MODEL = "digits"


def box_id(number: int) -> str:
    return hashlib.sha256(f"box {number}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class FakeBox:
    """What the registry of boxes says of one."""

    id: str
    name: str
    tags: dict[str, str] = field(default_factory=dict)
    admission: str = "admitted"


class Boxes:
    """Some admitted boxes."""

    def __init__(self, n_boxes: int) -> None:
        self.known = {box_id(at): FakeBox(box_id(at), f"box-{at}") for at in range(n_boxes)}

    def all(self):
        return tuple(self.known.values())

    def find(self, wanted: str):
        return self.known.get(wanted)


def artifact_in(folder: Path, *, version: str = "1", learns=("w1", "b1", "w2", "b2")) -> Artifact:
    """The reference task's model as an artifact whose weights, or some of them, can learn."""
    import onnxruntime

    path = reference_model(folder, learns=learns)
    feature = "image" if "w1" in learns else "hidden"
    apart = Separated(path=path, feature_tensor=feature, node="", head_file="head.bin", n_bytes=0)
    bare = declared(from_onnx(path, MODEL, version), apart)
    feeds = {"image": np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 64)}
    found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)
    golden, entries = write_golden(folder, feeds, {"probabilities": found[0]}, {"onnxruntime": 1e-4})
    manifest = msgspec.structs.replace(bare.manifest, golden=golden, files={**bare.manifest.files, **entries})
    data = canonical_bytes(manifest)
    (folder / "manifest.json").write_bytes(data)
    return Artifact(folder=folder, manifest=manifest, manifest_bytes=data)


def put_version(registry: Registry, blobs: BlobStore, artifact: Artifact, key: bytes | None = None) -> None:
    """What a push does."""
    for name, entry in artifact.manifest.files.items():
        if registry.find_blob(entry.sha256) is None:
            with blobs.begin(entry.sha256, offset=0, total_bytes=entry.size) as upload:
                upload.append(artifact.path_of(name).read_bytes())
                upload.finish()
    signature: Signature | None = sign(artifact.manifest_bytes, key) if key is not None else None
    registry.commit_version(artifact.manifest_bytes, signature)


class Lab:
    """A gateway's rounds on a folder; `close` and a new one on the same folder is a restart.

    Attributes:
        alarms: kinds of those that were raised.
        now_s: added to the loop's clock.
    """

    def __init__(
        self, folder: Path, *, n_boxes: int = 4, learns=("w1", "b1", "w2", "b2"), connect=None, **more
    ) -> None:
        self.folder = folder
        self.boxes = Boxes(n_boxes)
        self.alarms: list[str] = []
        self.later_s = 0.0
        self._learnable: Learnable | None = None
        self._blobs = BlobStore(folder)
        self.registry = Registry(folder, self._blobs)
        if not self.registry.list_versions():
            put_version(self.registry, self._blobs, artifact_in(folder / "made", learns=learns))
        record = self.registry.resolve(MODEL)
        self.digest = record.artifact_digest
        self.blobs = FleetBlobs(folder / "fleet")
        around = Neighbours(
            library=self.registry,
            files=self._blobs,
            boxes=self.boxes,
            blobs=self.blobs,
            raise_alarm=lambda kind, *_: self.alarms.append(kind),
            **more,
        )
        self.rounds = Rounds(folder, around, clock_s=self._clock_s, connect=connect)
        self.desk = self.rounds.desk

    def _clock_s(self) -> float:
        try:
            return asyncio.get_running_loop().time() + self.later_s
        except RuntimeError:
            return self.later_s

    def learnable(self) -> Learnable:
        if self._learnable is None:
            made = open_folder(self.folder / "made")
            self._learnable = Learnable.of(open_head(made.folder, made.manifest, made.manifest.variants[0].id))
        return self._learnable

    async def create(self, evaluation: str = "", **order: object) -> str:
        order = {
            "model": MODEL, "version": "", "variant": "", "goal": 4, "rounds": 3, "lease_s": 60.0,
            "promotion": Promotion(policy="none"),
        } | order  # fmt: skip
        course = await self.rounds.create(CampaignWish(order=Campaign(**order), evaluation=evaluation), "a person")
        return course.id

    async def shown(self, campaign: str) -> CampaignView:
        return await self.rounds.public.shown(campaign)

    def close(self) -> None:
        self.rounds.close()
        self.registry.close()


@asynccontextmanager
async def running(lab: Lab) -> AsyncIterator[Lab]:
    """Its work goes on."""
    task = asyncio.create_task(lab.rounds.run())
    try:
        yield lab
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(fact, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not fact():  # noqa: ASYNC110 (what is waited for is nobody's event)
            await asyncio.sleep(0.002)


class Box:
    """One box at the desk.

    Attributes:
        terms, views: of campaigns that it takes part in.
    """

    def __init__(self, lab: Lab, number: int, *, examples: Examples | None = None, n_samples: int = 100) -> None:
        self.lab, self.id, self.examples = lab, box_id(number), examples
        self.n_samples = n_samples if examples is None else len(examples)
        self.terms: dict[str, Terms] = {}
        self.views: dict[str, tuple[int, np.ndarray]] = {}
        self.left: dict[str, Left] = {}
        self.random = np.random.default_rng(number)

    def call(self, **more: object) -> TaskCall:
        held = tuple(Held(campaign=name, step=step) for name, (step, _) in self.views.items())
        offer = Offer(model=MODEL, artifact_digest=self.lab.digest, variant="original", n_samples=self.n_samples)
        return TaskCall(**({"epoch": "e", "offers": (offer,), "held": held} | more))

    async def task(self, **more: object) -> Task | None:
        """Ask, and come to the step's view."""
        answer = await self.lab.desk.task(self.id, self.call(**more))
        return await self.take(answer)

    async def take(self, answer: TaskAnswer) -> Task | None:
        answer = msgspec.msgpack.decode(encoded(answer), type=TaskAnswer)
        if answer.task is not None and answer.task.kind == "train":
            await self.begin(answer.task)
        return answer.task

    async def begin(self, task: Task) -> None:
        if task.terms is not None:
            self.terms[task.campaign] = task.terms
        terms, weights = self.terms[task.campaign], task.weights
        if weights.n_bytes:
            held = self.views[task.campaign][0] if task.campaign in self.views else -1
            weights = await self.lab.desk.weights(self.id, task.campaign, weights.step, held)
        base = (0, self.lab.learnable().shared(terms))
        view = view_of(weights, terms.layout, self.views.get(task.campaign, base), terms.coding.share)
        self.views[task.campaign] = (weights.step, view)

    def layout(self, campaign: str) -> Layout:
        return self.terms[campaign].layout

    def update(self, task: Task, vector: np.ndarray | None = None, **more: object) -> UpdateCall:
        """An invented update of this task, float32."""
        if vector is None:
            n_elements = self.layout(task.campaign).n_elements
            vector = self.random.normal(size=n_elements).astype(np.float32) * np.float32(0.01)
        content = vector.astype("<f4").tobytes()
        fields = {
            "epoch": "e", "task": task.id, "campaign": task.campaign, "step": task.weights.step, "form": "float32",
            "sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content), "content": content,
            "n_samples": self.n_samples,
        }  # fmt: skip
        return UpdateCall(**(fields | more))

    def learned(self, task: Task, **more: object) -> UpdateCall:
        """What training gives."""
        assert self.examples is not None
        work = Work(
            task=task,
            terms=self.terms[task.campaign],
            learnable=self.lab.learnable(),
            left=self.left.get(task.campaign, Left()),
        )
        made = work.learned(work.trained(self.views[task.campaign][1], self.examples, lambda: None))
        self.left[task.campaign] = made.left
        fields = {
            "epoch": "e", "task": task.id, "campaign": task.campaign, "step": task.weights.step, "form": made.form,
            "sha256": "", "n_bytes": len(made.content), "content": made.content, "n_samples": made.n_samples,
            "loss_before": made.loss_before, "is_below_clip": made.is_below_clip,
        }  # fmt: skip
        return UpdateCall(**(fields | more))

    async def send(self, call: UpdateCall) -> UpdateAnswer:
        return await self.lab.desk.update(self.id, msgspec.msgpack.decode(encoded(call), type=UpdateCall))

    async def evaluate(self, task: Task, *, n_won: int, n_lost: int) -> str:
        """Counts of a candidate."""
        call = EvaluationCall(
            epoch="e", task=task.id, campaign=task.campaign, step=task.weights.step, n=20, n_right=10 + n_won - n_lost,
            n_base_right=10, n_lost=n_lost, n_won=n_won,
        )  # fmt: skip
        return (await self.lab.desk.evaluation(self.id, call)).state

    async def once(self, campaign: str) -> UpdateAnswer | None:
        """One task, with an invented update."""
        task = await self.task()
        return await self.send(self.update(task)) if task is not None else None


def boxes_of(lab: Lab, n: int = 6) -> list[Box]:
    """The first boxes of a gateway."""
    return [Box(lab, at) for at in range(n)]
