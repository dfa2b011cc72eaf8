"""A model with all its weights inside: what boxes learned in place of what it began with, as any engine opens it."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

from hybrid.artifact.durable import storing, sync_file, write_atomically
from hybrid.artifact.lineage_note import LINEAGE_KEY, lineage_note
from hybrid.artifact.manifest import LineageStep
from hybrid.errors import EngineFailed
from hybrid.federated.learning.evaluation import right_scores
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import Head
from hybrid.federated.learning.program import Arrays

MOST: Final = (1 << 31) - (1 << 20)
"""Bytes of a model that go into one message."""

_ROWS: Final = 64


def whole_model(head: Head, learned: Arrays) -> onnx.ModelProto:
    """The model of a head, with what was learned; what was not is as it lies in the files now.

    Raises:
        OSError: a file beside the model cannot be read.
    """
    made = onnx.ModelProto()
    made.CopyFrom(head.model)
    arrays = {**head.arrays, **learned}
    for tensor in _external(made):
        if tensor.name in arrays:
            content = np.ascontiguousarray(arrays[tensor.name], "<f4").tobytes()
        else:
            content = _content(head, {entry.key: entry.value for entry in tensor.external_data})
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = content
    return made


def write_whole(model: onnx.ModelProto, path: Path, lineage: Sequence[LineageStep], *, most_bytes: int = MOST) -> None:
    """Writes a model as one file, or with its weights beside it where it is too large for one message.

    Raises:
        DiskFull, StorageError: nothing is half-written: the model's name appears last.
    """
    kept = [entry for entry in model.metadata_props if entry.key != LINEAGE_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=LINEAGE_KEY, value=lineage_note(lineage))])
    if model.ByteSize() > most_bytes:
        _move_weights(model, path)
    write_atomically(path, model.SerializeToString(deterministic=True), is_shown=True)


def _move_weights(model: onnx.ModelProto, path: Path) -> None:
    beside = path.with_name(f"{path.name}.data")
    with storing(beside):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = beside.with_name(f".tmp-{beside.name}")
        try:
            with part.open("wb") as file:
                for tensor in model.graph.initializer:
                    if tensor.raw_data:
                        offset, content = file.tell(), tensor.raw_data
                        file.write(content)
                        set_external_data(tensor, location=beside.name, offset=offset, length=len(content))
                        tensor.ClearField("raw_data")
            sync_file(part)
            part.replace(beside)
        finally:
            part.unlink(missing_ok=True)


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor


def _content(head: Head, said: dict[str, str]) -> bytes:
    path = head.path.parent.joinpath(*PurePosixPath(said["location"]).parts)
    with path.open("rb") as file:
        file.seek(int(said.get("offset", "0")))
        return file.read(int(said.get("length", "-1")))


class EngineAnswers:
    """Which answers of a model are right, by the engine: where its program needs torch, and is slower."""

    def __init__(self, head: Head) -> None:
        self._head, self._model = head, whole_model(head, {})

    def right(self, learned: Arrays, examples: Examples) -> np.ndarray:
        """For each sample whether the model with what was learned answers it right, bool (n,).

        Raises:
            EngineFailed: the engine does not run it.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        for tensor in self._model.graph.initializer:
            if tensor.name in learned:
                tensor.raw_data = np.ascontiguousarray(learned[tensor.name], "<f4").tobytes()
        try:
            session = ort.InferenceSession(self._model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            size = session.get_inputs()[0].shape[0]
            rows = size if isinstance(size, int) and size > 0 else _ROWS
            found = []
            for first in range(0, len(examples), rows):
                features, targets = examples.some(np.arange(first, min(first + rows, len(examples))))
                scores = session.run([self._head.program.output], {self._head.feature: features})[0]
                found.append(right_scores(scores, targets))
        except Exception as exc:
            said = "".join(str(exc).strip().splitlines()[:1])[:200]
            raise EngineFailed(f"the engine does not run the model with what was learned: {said}") from exc
        return np.concatenate(found) if found else np.zeros(0, bool)
