"""The process that prepares one model, started by `hybrid.partition.prepared` with what it needs as arguments."""

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import msgspec

from devices.tflite_magic import is_headed, is_tflite
from hybrid.errors import EngineFailed, HybridError, ModelUnsupported
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import Outcome

_POLITENESS = 5  # this work can wait; requests cannot


def prepare_into(model_path: Path, model_digest: str, shape_key: ShapeKey, folder: Path) -> None:
    """Normalise, scan, and leave graph, weights, table, and heads and tails of the Pareto cuts in `folder`."""
    if is_headed(model_path):
        raise ModelUnsupported(
            f"{model_path}: its body is a TensorFlow Lite file with a head of its own, which is computed whole",
            path=str(model_path),
        )
    if is_tflite(model_path):
        _prepare_tflite(model_path, model_digest, shape_key, folder)
        return
    import onnxruntime

    from hybrid.graph.model_file import files_of
    from hybrid.graph.normalise import GRAPH_FILE, WEIGHTS_FILE, normalise
    from hybrid.graph.read import read_view
    from hybrid.graph.shapes import infer
    from hybrid.partition import store
    from hybrid.partition.extract import write_pieces
    from hybrid.partition.order import cut_orders
    from hybrid.partition.quantizing import write_quantizing_heads
    from hybrid.partition.scan import scan

    store.require_room(folder, sum(file.stat().st_size for file in files_of(model_path)))
    model = normalise(model_path, shape_key, folder)
    view = read_view(model, infer(model, shape_key, folder))
    table = scan(view, cut_orders(view))
    write_pieces(model, table, folder)
    write_quantizing_heads(model, table, folder)
    files = {name: store.settle(folder / name) for name in (GRAPH_FILE, WEIGHTS_FILE) if (folder / name).exists()}
    record = store.Record(
        format=store.FORMAT,
        engine=f"onnxruntime {onnxruntime.__version__}",
        model_digest=model_digest,
        shape_key=shape_key.text,
        files=files,
        table=table,
    )
    store.write_whole(folder / store.TABLE_FILE, msgspec.json.encode(record))


def _prepare_tflite(model_path: Path, model_digest: str, shape_key: ShapeKey, folder: Path) -> None:
    """The same for a TensorFlow Lite file, whose heads and tails hold their own weights and are written when wanted."""
    from devices.tflite_engine import engine_version
    from hybrid.partition import store
    from hybrid.partition.order import cut_orders
    from hybrid.partition.scan import scan
    from hybrid.tflite.prepare import GRAPH_FILE, prepare

    store.require_room(folder, model_path.stat().st_size)
    view, keeps_state = prepare(model_path, shape_key, folder)
    record = store.Record(
        format=store.FORMAT,
        engine=engine_version(),
        model_digest=model_digest,
        shape_key=shape_key.text,
        files={GRAPH_FILE: store.settle(folder / GRAPH_FILE)},
        table=replace(scan(view, cut_orders(view)), keeps_state=keeps_state),
        graph=GRAPH_FILE,
    )
    store.write_whole(folder / store.TABLE_FILE, msgspec.json.encode(record))


def main() -> int:
    """Run one task, MODEL DIGEST SHAPE_KEY FOLDER; the answer is one line of JSON on standard output."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # engines print; standard output carries the answer alone
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(_POLITENESS)
    model_path, model_digest, shape_text, folder = sys.argv[1:]
    outcome = Outcome()
    try:
        prepare_into(Path(model_path), model_digest, ShapeKey.parse(shape_text), Path(folder))
    except HybridError as exc:
        outcome = _outcome_of(exc)
    except OSError as exc:
        from hybrid.partition.store import storage_error

        outcome = _outcome_of(storage_error(exc, Path(folder), 0))
    except MemoryError:
        outcome = _outcome_of(EngineFailed(f"{model_path}: not enough memory to prepare it", model=model_path))
    os.write(answer_to, msgspec.json.encode(outcome) + b"\n")
    return 0


def _outcome_of(error: HybridError) -> Outcome:
    facts = {key: value for key, value in error.fields.items() if isinstance(value, str | int | float | None)}
    return Outcome(code=error.code, message=str(error), fields=facts)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)
