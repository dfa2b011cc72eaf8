"""Heads that also answer with levels of what crosses, so that the engine quantizes: files beside the plain heads.

Design: such a head computes all that the plain one does, the crossing floats included, so that whoever holds it open
needs no other: the device can still go on from the floats. The tail has no such twin: reading levels in the graph was
measured to save at most a few percent of a tail, and a session of its own holds the tail's weights a second time.
"""

from pathlib import Path
from typing import Final

import onnx

from compression.codecs import graph_affine
from compression.errors import NotEncodable
from hybrid.errors import PlanError
from hybrid.graph.model_file import load_proto
from hybrid.partition.cut import Cut, CutTable
from hybrid.partition.extract import head_model
from hybrid.partition.store import quantizing_name, write_whole

LEVELS: Final = (256, 16)
"""Levels for which heads are made with the others: those of the codecs q8 and q4."""


def quantizing_head(model: onnx.ModelProto, cut: Cut, n_levels: int) -> onnx.ModelProto:
    """The head of a cut with the levels of each crossing tensor that can be quantized.

    Raises:
        PlanError: there is none, or the graph's opset is too old.
    """
    return _quantizing(head_model(model, cut), cut, n_levels)


def write_quantizing_head(graph_path: Path, cut: Cut, n_levels: int, path: Path) -> None:
    """Write such a head of the graph at `graph_path`.

    Raises:
        PlanError: as above.
        DiskFull: no room; nothing is left behind.
    """
    _write(quantizing_head(load_proto(graph_path), cut, n_levels), path)


def write_quantizing_heads(model: onnx.ModelProto, table: CutTable, folder: Path) -> None:
    """Write those of every interior cut that is worth timing and can have them.

    Raises:
        DiskFull: no room.
    """
    for cut in table.interior:
        if cut.id not in table.pareto:
            continue
        head = head_model(model, cut)
        for n_levels in LEVELS:
            try:
                piece = _quantizing(head, cut, n_levels)
            except PlanError:
                break  # it travels by codecs that the device computes
            _write(piece, folder / quantizing_name(cut.id, n_levels))


def _quantizing(head: onnx.ModelProto, cut: Cut, n_levels: int) -> onnx.ModelProto:
    try:
        return graph_affine.quantizing(head, cut.tensors, n_levels)
    except NotEncodable as exc:
        raise PlanError(f"the head of cut {cut.id} quantizes nothing: {exc}", cut=cut.id) from exc


def _write(piece: onnx.ModelProto, path: Path) -> None:
    write_whole(path, piece.SerializeToString(deterministic=True))
