"""`hybrid plan`: the places where a model can be divided, what crosses at each, and whether any is worth it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid.cli.output import note, result
from hybrid.cli.table import table, wrapped
from hybrid.errors import TensorMismatch

if TYPE_CHECKING:
    from hybrid.graph.shape_key import ShapeKey
    from hybrid.partition.cut import Cut, CutTable

app = typer.Typer()

HELP = """The cuts of a model: sets of tensors that can cross from device to gateway.

\b
Examples:
  hybrid plan detector.onnx --shape 1x3x640x640
  hybrid plan voice.onnx --shape input=1x576 --shape state=2x1x128 --shape sr=
  hybrid plan detector.onnx --shape 1x3x640x640 --all --json
"""

_SHAPES = "Write NAME=1x3x640x640: the input's name, and a size from 1 on for each of its dimensions."
HEADINGS = ("cut", "kind", "head work", "bytes", "of input", "pareto", "tensors")


@app.command(help=HELP)
def plan(
    model: Annotated[Path, typer.Argument(help="An .onnx or .tflite file.", metavar="MODEL")],
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="NAME=1x3x640x640; the name may be left out where there is one input."),
    ] = None,
    all_cuts: Annotated[bool, typer.Option("--all", help="Show every cut, not only those worth timing.")] = False,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Where prepared graphs are kept.", metavar="DIR")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, with every cut.")] = False,
) -> None:
    """Show where a model can be divided, for inputs of these shapes."""
    from hybrid.artifact.cache import cache_dir
    from hybrid.artifact.digest import model_digest
    from hybrid.partition.prepared import prepare

    shape_key = shape_key_of(inputs_of(model), shape or [])
    digest = model_digest(model)
    prepared = prepare(model, digest, shape_key, cache or cache_dir() / "graphs")
    table = prepared.table
    data = {
        "model": model,
        "model_digest": digest,
        "shape_key": dict(shape_key.shapes),
        "folder": prepared.folder,
        "n_nodes": table.n_nodes,
        "pareto": table.pareto,
        "note": table.note,
        "cuts": table.cuts,
    }
    result(data, text_of(table, shown=table.cuts if all_cuts else worth_showing(table)), json=json)
    if not json and not all_cuts:
        words = ["hybrid", "plan", str(model), *(part for word in shape or () for part in ("--shape", word)), "--all"]
        note(f"next: {shlex.join(words)}")


def inputs_of(model: Path) -> dict[str, tuple[int | None, ...] | None]:
    """Shapes of what a model file wants to be fed, None where a size is open."""
    from devices.tflite_magic import is_tflite

    if is_tflite(model):
        from hybrid.tflite.prepare import declared_inputs as declared_by_tflite

        return declared_by_tflite(model)
    from hybrid.graph.model_file import declared_inputs, load_proto

    return declared_inputs(load_proto(model))


def shape_key_of(declared: dict[str, tuple[int | None, ...] | None], given: list[str]) -> "ShapeKey":
    """The shape key that these words and the model's own fixed sizes spell.

    Raises:
        TensorMismatch: a word that is no shape, a name that is no input, or an open size that no word fixes.
    """
    from hybrid.graph.shape_key import ShapeKey

    shapes: dict[str, tuple[int, ...]] = {}
    for word in given:
        name, _, sizes = word.rpartition("=")
        if not name and "=" not in word and len(declared) == 1:
            name = next(iter(declared))
        if name not in declared:
            raise TensorMismatch(
                f"--shape {word}: no input {name!r}; the model's inputs are {', '.join(declared)}", advice=_SHAPES
            )
        try:
            shapes[name] = tuple(int(size) for size in sizes.split("x")) if sizes else ()
            if min(shapes[name], default=1) < 1:
                raise ValueError("a size below 1 holds nothing")
        except ValueError as exc:
            raise TensorMismatch(
                f"--shape {word}: {sizes!r} is no shape; write sizes from 1 on, like 1x3x640x640", advice=_SHAPES
            ) from exc
    for name, fixed in declared.items():
        if name not in shapes:
            known = () if fixed is None else tuple(size for size in fixed if size is not None)
            if fixed is None or len(known) != len(fixed):
                wanted = "x".join("?" if size is None else str(size) for size in fixed or ("?",))
                example = "x".join(str(size) for size in _filled(fixed or (1,)))
                raise TensorMismatch(
                    f"input {name!r} has open sizes ({wanted}); fix them, for example with --shape {name}={example}",
                    advice=_SHAPES,
                )
            shapes[name] = known
    return ShapeKey(tuple(sorted(shapes.items())))


def _filled(fixed: tuple[int | None, ...]) -> list[int]:
    """Sizes that somebody could mean: one image or text, 224 where a size is open."""
    return [size if size is not None else 1 if at == 0 else 224 for at, size in enumerate(fixed)]


def worth_showing(table: "CutTable") -> tuple["Cut", ...]:
    """The Pareto set; the lightest interior cut with it, where that is not on it."""
    lightest = min((cut for cut in table.interior if cut.sized), key=lambda cut: cut.n_bytes, default=None)
    return tuple(cut for cut in table.cuts if cut.id in table.pareto or cut is lightest)


def text_of(cuts: "CutTable", shown: tuple["Cut", ...]) -> str:
    """The table for people, and the plain sentence where no interior cut is worth anything."""
    rows = [HEADINGS, *(_row(cuts, cut) for cut in shown)]
    count = f"{len(cuts.interior)} interior cuts in {cuts.n_nodes} nodes, {len(cuts.pareto) - 2} of them worth timing."
    return "\n".join([*table(rows), "", *wrapped(count), *(wrapped(cuts.note) if cuts.note else [])])


def _row(table: "CutTable", cut: "Cut") -> tuple[str, ...]:
    input_bytes = table.cuts[0].n_bytes
    names = [
        f"{spec.name}[{','.join('?' if size is None else str(size) for size in spec.shape)}]" for spec in cut.tensors
    ]
    return (
        cut.id,
        cut.kind,
        f"{cut.head_work_ratio:.1%}",
        str(cut.n_bytes) if cut.sized else f"{cut.n_bytes} + ?",
        f"{cut.n_bytes / input_bytes:.3f}" if input_bytes and cut.sized else "",
        "*" if cut.id in table.pareto else "",
        " ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
    )
