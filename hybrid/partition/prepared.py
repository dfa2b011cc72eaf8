"""Prepares a model for one shape key in a process of its own, and opens what was prepared.

Design: normalising and serialising a model of 100 MB stalls the other threads of its process for tens of milliseconds,
so a worker does it elsewhere; requests go on meanwhile. What it leaves behind is small to read: a table, and graphs
without weights.
"""

import logging
import multiprocessing.spawn
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

import msgspec

from compression.codecs.level_names import LevelNames, level_names
from hybrid.errors import EngineFailed, HybridError, PlanError, StorageError, from_code
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition import store
from hybrid.partition.cut import Cut, CutTable, Side

_log = logging.getLogger("hybrid.partition")
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker says on its last line of output: nothing where it went well, else the error."""

    code: str = ""
    message: str = ""
    fields: dict[str, str | int | float | None] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One model, bound to one shape key, with its cuts.

    Attributes:
        folder: holds the graph, the weights file, the heads and the tails. Leave them in it: graphs refer to the
            weights by file name.
    """

    folder: Path
    model_digest: str
    shape_key: ShapeKey
    table: CutTable
    graph_file: str = store.GRAPH_FILE

    @property
    def graph_path(self) -> Path:
        """The whole normalised graph."""
        return self.folder / self.graph_file

    def head_path(self, cut_id: str) -> Path:
        """The head's model; written on first use, in milliseconds.

        Raises:
            UnknownCut: not in this table.
            PlanError: the input cut has no head.
            DiskFull: no room for it.
        """
        return self._piece("head", self.table.get(cut_id))

    def quantizing_head_path(self, cut_id: str, n_levels: int) -> Path:
        """The head of an interior cut that also answers with levels of what crosses (see `level_names`).

        Args:
            cut_id: an interior cut.
            n_levels: 256 for the codecs `q8` and `q8z`, 16 for `q4` and `q4z`.

        Raises:
            UnknownCut: not in this table.
            PlanError: not an interior cut, or nothing that crosses can be quantized in the graph.
            DiskFull: no room for it.
        """
        cut = self.table.get(cut_id)
        if cut.kind != "interior" or not self.level_names(cut_id):
            raise PlanError(f"nothing that crosses the {cut.kind} cut {cut_id} is quantized in a head", cut=cut_id)
        if self.graph_file != store.GRAPH_FILE:
            raise PlanError(f"heads quantize in ONNX graphs alone; {self.graph_file} is none", cut=cut_id)
        path = self.folder / store.quantizing_name(cut_id, n_levels)
        if not _is_there(path):
            from hybrid.partition.quantizing import write_quantizing_head

            write_quantizing_head(self.graph_path, cut, n_levels, path)
        return path

    def level_names(self, cut_id: str) -> tuple[LevelNames, ...]:
        """What a quantizing head calls the levels of each crossing tensor that it quantizes.

        Raises:
            UnknownCut: not in this table.
        """
        fed = {name for name, _ in self.shape_key.shapes}
        made = (spec for spec in self.table.get(cut_id).tensors if spec.name not in fed)
        return tuple(names for spec in made if (names := level_names(spec)) is not None)

    def tail_path(self, cut_id: str) -> Path:
        """The tail's model; written on first use, in milliseconds.

        Raises:
            UnknownCut: not in this table.
            PlanError: the output cut has no tail.
            DiskFull: no room for it.
        """
        return self._piece("tail", self.table.get(cut_id))

    def _piece(self, side: Side, cut: Cut) -> Path:
        if cut.kind == ("output" if side == "head" else "input"):
            return self.graph_path
        if cut.kind != "interior":
            raise PlanError(f"the {cut.kind} cut has no {side}; choose an interior cut", cut=cut.id)
        path = self.folder / store.piece_name(side, cut.id, self.graph_file)
        if not _is_there(path):
            from hybrid.partition.extract import write_piece

            write_piece(self.graph_path, cut, side, path)
        return path


def _is_there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0  # empty after a power cut


def open_prepared(model_digest: str, shape_key: ShapeKey, cache: Path) -> Prepared | None:
    """What `prepare` left in this cache, or None where it must be made (again)."""
    folder = store.folder_for(cache, model_digest, shape_key)
    record = store.read_record(folder, model_digest, shape_key)
    if record is None:
        return None
    return Prepared(
        folder=folder,
        model_digest=model_digest,
        shape_key=shape_key,
        table=record.table,
        graph_file=record.graph,
    )


def prepare(
    model_path: Path, model_digest: str, shape_key: ShapeKey, cache: Path, *, timeout_s: float = 120.0
) -> Prepared:
    """The model normalised for this shape key, with all its cuts; found at once where it was made before.

    Blocks its thread, not the process: the work is done in another one, which ends with this one. Two processes may
    prepare the same thing at once; one result is kept.

    Raises:
        ModelInvalid, ModelUnsupported: the model cannot be used; the message names file and operator.
        TensorMismatch: the shapes are not those of the model's inputs.
        PlanError: it took longer than `timeout_s`.
        EngineFailed: the worker crashed.
        DiskFull, StorageError: the cache cannot be written.
    """
    found = open_prepared(model_digest, shape_key, cache)
    if found is not None:
        return found
    folder = store.folder_for(cache, model_digest, shape_key)
    try:
        draft = store.new_draft(folder)
    except OSError as exc:
        raise store.storage_error(exc, folder, 0) from exc
    try:
        _run_worker(model_path, model_digest, shape_key, draft, timeout_s)
        _put_in_place(draft, folder, model_digest, shape_key)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    made = open_prepared(model_digest, shape_key, cache)
    if made is None:
        raise StorageError(f"{folder}: damaged right after it was written; check the disk", path=str(folder))
    _log.info("graph.prepared model=%s cuts=%d", model_digest[:16], len(made.table.cuts))
    return made


def _put_in_place(draft: Path, folder: Path, model_digest: str, shape_key: ShapeKey) -> None:
    try:
        for _ in range(3):
            if store.publish(draft, folder) or store.read_record(folder, model_digest, shape_key) is not None:
                return
            store.discard(folder)
    except OSError as exc:
        raise store.storage_error(exc, folder, 0) from exc


def _run_worker(model_path: Path, model_digest: str, shape_key: ShapeKey, draft: Path, timeout_s: float) -> None:
    task = [str(model_path.resolve()), model_digest, shape_key.text, str(draft.resolve())]
    python = os.fsdecode(multiprocessing.spawn.get_executable() or "python3")
    # It finds modules where this process does, never in the current folder.
    paths = [*filter(None, sys.path), str(_PACKAGE_PARENT)]
    start = f"import sys; sys.path[:] = {paths!r}; from hybrid.partition.worker import main; sys.exit(main())"
    # The worker watches its standard input and ends when this process ends and the pipe closes.
    with subprocess.Popen(
        [python, "-P", "-c", start, *task],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as worker:
        try:
            said, complained = _wait(worker, timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise PlanError(
                f"{model_path}: not prepared within {timeout_s:g} s; allow more time or use the model whole",
                path=str(model_path),
                timeout_s=timeout_s,
            ) from exc
        finally:
            worker.kill()
    _raise_outcome(model_path, worker.returncode, said, complained)


def _wait(worker: "subprocess.Popen[bytes]", timeout_s: float) -> tuple[bytes, bytes]:
    """Collect both outputs without closing the worker's standard input before it has ended."""
    collected = {"out": b"", "err": b""}

    def collect(name: str, pipe: IO[bytes]) -> None:
        collected[name] = pipe.read()

    assert worker.stdout is not None
    assert worker.stderr is not None
    readers = [Thread(target=collect, args=pair) for pair in (("out", worker.stdout), ("err", worker.stderr))]
    for reader in readers:
        reader.start()
    try:
        worker.wait(timeout_s)
    finally:
        if worker.poll() is None:
            worker.kill()
        for reader in readers:
            reader.join()
    return collected["out"], collected["err"]


def _raise_outcome(model_path: Path, exit_status: int, said: bytes, complained: bytes) -> None:
    try:
        outcome = msgspec.json.decode(said.splitlines()[-1], type=Outcome)
    except (IndexError, msgspec.DecodeError):
        last_words = complained.decode("utf-8", "replace").strip()[-500:]
        how = f"signal {-exit_status}" if exit_status < 0 else f"status {exit_status}"
        raise EngineFailed(
            f"{model_path}: the process that prepares it ended with {how} and no answer; it said: {last_words!r}",
            model=str(model_path),
        ) from None
    if outcome.code:
        error: HybridError = from_code(outcome.code, outcome.message, **outcome.fields)
        raise error
