"""The uncompressed model of a job: a file, what an artifact holds, or the module of a training script."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compression.errors import NotTrainable
from devices.tflite_magic import is_lite
from hybrid.artifact.digest import files_of_model, model_digest
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.folder import Artifact
from hybrid.artifact.opening import open_artifact
from hybrid.compress.job import Job
from hybrid.errors import ModelMissing, ModelUnsupported

if TYPE_CHECKING:
    from compression.training.training_set import TrainingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The uncompressed model.

    Attributes:
        path: its file.
        digest: its model digest.
        n_bytes: of its files.
        name: what to call it.
        artifact: that it came in, if it did.
        head: the tensor that its trainable head stands on, where that lies in a file of its own; else empty.
        head_file: name of that file, beside the model.
        head_text: where the head begins, for people.
    """

    path: Path
    digest: str
    n_bytes: int
    name: str
    artifact: Artifact | None = None
    head: str = ""
    head_file: str = ""
    head_text: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where it came with them."""
        return (self.artifact.manifest.classes if self.artifact is not None else None) or ()


def base_of(
    job: Job, work: Path, training: "TrainingSet | None" = None, *, said: Callable[[str], None] = lambda _text: None
) -> Base:
    """The uncompressed model of a job.

    Args:
        job: what is asked for.
        work: folder into which the script's module is exported where no model was named.
        training: of the script.
        said: told where the head begins that is to lie apart.

    Raises:
        ModelMissing, ModelInvalid: there is none.
        NotExportable: the script's module cannot be written as ONNX.
        ModelUnsupported: a TensorFlow Lite file, which is finished already.
        NotTrainable: no head can be separated where one was named.
    """
    if job.model is None and training is None:
        raise ModelMissing("no model was named; give an .onnx file, or --train-script")
    artifact, path = None, job.model or _exported(training, work / "base" / "model.onnx")
    if _is_artifact(path):
        artifact = open_artifact(path)
        path = artifact.model_path
    if not path.is_file():
        raise ModelMissing(f"{path}: no such file; give the path of an ONNX model or an artifact", path=str(path))
    if path.suffix.lower() == ".tflite" or is_lite(path):
        raise ModelUnsupported(
            f"{path}: a TensorFlow Lite file cannot be compressed further",
            advice="Give the ONNX file that it was made from, or its torch module by --train-script.",
        )
    base = Base(
        path=path,
        digest="",
        n_bytes=0,
        name=_word(job.model.stem if job.model is not None else _function(job.train_script)),
        artifact=artifact,
    )
    base = _with_head(base, job.head, job.rank, work / "base" / "apart")
    if base.head:
        said(base.head_text)
    n_bytes = sum(file.size for file in files_of_model(base.path))
    return replace(base, digest=model_digest(base.path), n_bytes=n_bytes)


def _with_head(base: Base, wanted: str, rank: int | None, folder: Path) -> Base:
    """The model with its head in a file of its own, where that was wanted, or is so already."""
    shipped = base.artifact.manifest.variants[0] if base.artifact is not None else None
    known = shipped.feature_tensor or "" if shipped is not None and shipped.trainable_files else ""
    if shipped is not None and known and wanted in ("", known) and rank is None:
        file = shipped.trainable_files[0].rpartition("/")[2]
        return replace(base, head=known, head_file=file, head_text=f"the head on {known!r} stays in {file}")
    wanted = wanted or (known if rank is not None else "")
    if not wanted and rank is not None:
        raise NotTrainable("a rank is of a head that learns: name with it where that begins (`--head`), or `auto`")
    if not wanted:
        return base
    from hybrid.artifact.trainable import separated

    apart = separated(base.path, wanted, folder, rank=rank, may_be_whole=False)  # float in every form: nothing to win
    return replace(base, path=apart.path, head=apart.feature_tensor, head_file=apart.head_file, head_text=apart.text)


def _exported(training: "TrainingSet | None", path: Path) -> Path:
    """The script's module as ONNX; the same module gives the same bytes."""
    from compression.training.exporting import export

    assert training is not None
    example = {name: array[:2] for name, array in training.inputs.items()}
    write_atomically(
        path, export(training.module, example, training.output_names).SerializeToString(deterministic=True)
    )
    return path


def model_path(path: Path | None) -> Path:
    """The model file that a path means; raises as `base_of`."""
    if path is None:
        raise ModelMissing("no model was named")
    return open_artifact(path).model_path if _is_artifact(path) else path


def _is_artifact(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".zip"


def _word(stem: str) -> str:
    """A file's name as a model's: small letters, digits, dots and dashes."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem.lower()).strip("-")
    return plain[:64] or f"model-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"


def _function(script: str) -> str:
    return script.rpartition(":")[2]
