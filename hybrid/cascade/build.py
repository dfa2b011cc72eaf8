"""Grades two models on samples with known answers, and writes the artifact that holds both and the rule between."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from devices.tflite_magic import engine_of
from hybrid.artifact.digest import digest_of_files, hashed_files
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.folder import Artifact, open_folder
from hybrid.artifact.manifest import SCHEMA, CascadeRule, FileEntry, Manifest, ScoreKind, Variant, canonical_bytes
from hybrid.artifact.names import MANIFEST_NAME
from hybrid.cascade.fit import Graded
from hybrid.errors import BadMessage, Conflict, TensorMismatch

SMALL: Final = "small"

Feeds = Mapping[str, np.ndarray]


class Port(Protocol):
    """An input or output of an open model."""

    @property
    def name(self) -> str:
        """Of the tensor."""
        ...

    @property
    def type(self) -> str:
        """In onnxruntime's words."""
        ...


class OpenModel(Protocol):
    """A model that is open, as onnxruntime has it."""

    def get_inputs(self) -> Sequence[Port]:
        """What goes in."""
        ...

    def get_outputs(self) -> Sequence[Port]:
        """What comes out."""
        ...

    def run(self, output_names: Sequence[str] | None, input_feed: Feeds) -> Sequence[np.ndarray]:
        """The named outputs."""
        ...


def scores_output(small: OpenModel, large: OpenModel, wanted: str = "") -> str:
    """The output that is judged by: the one that was named, else the only floating-point one of both models.

    Raises:
        TensorMismatch: the two models do not take and give the same, or nobody can tell which output it is.
    """
    for mine, theirs, what in (
        (small.get_inputs(), large.get_inputs(), "inputs"),
        (small.get_outputs(), large.get_outputs(), "outputs"),
    ):
        if {(port.name, port.type) for port in mine} != {(port.name, port.type) for port in theirs}:
            raise TensorMismatch(
                f"the small model's {what} are {[port.name for port in mine]}, the large one's "
                f"{[port.name for port in theirs]}; export both with the same names and datatypes"
            )
    floats = [port.name for port in small.get_outputs() if port.type in ("tensor(float)", "tensor(double)")]
    if wanted and wanted not in floats:
        raise TensorMismatch(f"no output {wanted!r} holds scores; there are {', '.join(floats) or 'none'}")
    if not wanted and len(floats) != 1:
        raise TensorMismatch(f"which output holds the scores? There are {', '.join(floats) or 'none'}; name one")
    return wanted or floats[0]


def graded(
    small: OpenModel,
    large: OpenModel,
    samples: Iterable[Feeds],
    labels: Sequence[int],
    output: str,
    *,
    stepped: Callable[[], None] = lambda: None,
) -> Graded:
    """What both answer to each sample.

    Args:
        small, large: open models.
        samples: one request each, of one row.
        labels: the right class of each.
        output: that holds the scores.
        stepped: called after each.
    """
    scores, right = [], []
    for feeds, label in zip(samples, labels, strict=True):
        scores.append(np.asarray(small.run([output], feeds)[0], np.float64).reshape(-1))
        right.append(int(np.asarray(large.run([output], feeds)[0]).reshape(-1).argmax()) == label)
        stepped()
    return Graded(scores=np.stack(scores), labels=np.asarray(labels, int), large_right=np.asarray(right, bool))


def score_kind(scores: np.ndarray) -> ScoreKind:
    """Whether scores are probabilities: none below 0, each row a sum of 1."""
    sums = scores.sum(axis=1)
    is_shares = bool((scores >= 0).all() and np.abs(sums - 1.0).max(initial=0.0) < 1e-3)
    return "probabilities" if is_shares else "logits"


def write_artifact(small: Path, large: Path, rule: CascadeRule, *, name: str, version: str, folder: Path) -> Artifact:
    """The artifact in a new folder: the large model first, the small one in a folder of its own.

    Args:
        small, large: model files; their external data come along.
        rule: between them.
        name, version: of the artifact.
        folder: new, or empty.

    Raises:
        Conflict: there is something in the folder.
        ModelInvalid, BadMessage: files or names that cannot be in an artifact.
        DiskFull, StorageError: it could not be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty; name a new folder")
    entries: dict[str, FileEntry] = {}
    variants = []
    for variant_id, path, below in (("original", large, ""), (rule.small, small, f"{SMALL}/")):
        files = hashed_files(path)
        names = [f"{below}{file.name}" for file in files]
        if set(names) & set(entries):
            raise BadMessage(f"{path.name}: the large model has a file of that name where this one goes; rename it")
        for file, inside in zip(files, names, strict=True):
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.parent / file.name, target)
            entries[inside] = FileEntry(sha256=file.sha256, size=file.size)
        engine = engine_of(path)
        variants.append(Variant(id=variant_id, engine=engine, precision="native", files=tuple(names)))
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        version=version,
        sequence=1,
        model_digest=digest_of_files(hashed_files(folder / large.name)),
        files=entries,
        variants=tuple(variants),
        cascade=rule,
    )
    write_atomically(folder / MANIFEST_NAME, canonical_bytes(manifest))
    return open_folder(folder)
