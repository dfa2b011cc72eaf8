"""`hybrid bench`: models, devices, links and policies against each other, on the virtual clock of the simulator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid.cli.output import note, progress, result
from hybrid.errors import ModelMissing, NotFound

if TYPE_CHECKING:
    from hybrid.bench.matrix import Matrix
    from hybrid.bench.parts import ModelParts

app = typer.Typer()

HELP = """Compare the scheduler with every other way to place a model: models x devices x links x policies.

Without MODEL, the parts that come with the package are used (trained models, measured once); the same seed gives the
same figures on every machine. With MODEL and --data, its heads, tails and codecs are measured here first.

\b
Examples:
  hybrid bench --quick --models efficientnet --devices rpi-4b --links lte
  hybrid bench --objective latency --links wifi-good --links 5g --json
  hybrid bench detector.onnx --data requests.npz --devices rpi-5 --links lte --out ./bench
"""

POLICIES = ("neurosurgeon", "dads", "sedna", "foresight")
"""Those that can be left out."""

Words = list[str] | None


@app.command(help=HELP)
def bench(
    model: Annotated[Path | None, typer.Argument(help="An .onnx file of your own.", metavar="MODEL")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Its inputs: .npz, .npy, or a folder of them.")] = None,
    models: Annotated[Words, typer.Option("--models", help="Only this one of the matrix; may be repeated.")] = None,
    devices: Annotated[
        Words, typer.Option("--devices", help="Only this machine (`hybrid devices`); repeatable.")
    ] = None,
    links: Annotated[Words, typer.Option("--links", help="Only this link class; repeatable.")] = None,
    traces: Annotated[Words, typer.Option("--traces", help="`steady` or `changing`; both unless given.")] = None,
    policies: Annotated[
        Words,
        typer.Option("--policies", help=f"Only these beside local, offload and static: {', '.join(POLICIES)}."),
    ] = None,
    objective: Annotated[Words, typer.Option("--objective", help="latency, energy or bytes; repeatable.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A minute of each stream instead of five.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Of all chance.")] = None,
    matrix: Annotated[Path | None, typer.Option("--matrix", help="Another matrix than the package's (TOML).")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Keep figures, tables and pictures here; go on where a run ended.", metavar="DIR"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, with every figure.")] = False,
) -> None:
    """Run cells of the matrix and say which bars they hold."""
    from hybrid.bench.contest import Kept, contest, fingerprint
    from hybrid.bench.matrix import MATRIX, cells_of, narrowed, read
    from hybrid.bench.pages import pages
    from hybrid.bench.shelf import shelved
    from hybrid.bench.spoken import spoken

    if unknown := sorted(set(policies or []) - set(POLICIES)):
        raise typer.BadParameter(f"--policies {unknown[0]}: there are {', '.join(POLICIES)}")
    if matrix is not None and not matrix.is_file():
        raise NotFound(f"{matrix}: no such file; a matrix is a TOML file", advice="Check the path of --matrix.")
    whole = read(matrix or MATRIX)
    known = shelved()
    if model is not None:
        own = _measured(model, data)
        known = [*(one for one in known if one.name != own.name), own]
        whole = _of_one(whole, own)
    wishes = {"models": models or [], "devices": devices or [], "links": links or [], "traces": traces or []}
    wished = narrowed(whole, wishes | {"objectives": objective or []}, quick=quick, seed=seed)
    spanned = cells_of(wished, known)
    mark = fingerprint(wished, known, policies)
    kept = Kept(out / "cells.jsonl" if out is not None else None)
    with progress("simulating", len(spanned), "cells") as bar:
        found = contest(
            wished, (one.build() for one in spanned), kept, mark, policies=policies, done=lambda _: bar.advance(1)
        )
    if out is not None:
        made = pages(wished, [one for one in known if one.name in wished.models], found, pictures_at="")
        (out / "summary.md").write_text(made.summary + "\n", encoding="utf-8")
        (out / "matrix.md").write_text(made.every_cell, encoding="utf-8")
        for name, picture in made.pictures.items():
            (out / name).write_text(picture, encoding="utf-8")
    result({"fingerprint": mark, "matrix": wished, "cells": found}, spoken(found), json=json)
    if not json:
        note(f"next: read {out / 'matrix.md'}" if out is not None else "next: hybrid bench --out ./bench")


def _measured(model: Path, data: Path | None) -> "ModelParts":
    """The parts of the user's own model, measured here."""
    from hybrid.artifact.cache import cache_dir
    from hybrid.bench.measure import Effort, Subject, measure
    from hybrid.calibration.calibrate import signature_of
    from hybrid.calibration.samples import open_samples

    if not model.is_file():
        raise ModelMissing(f"{model}: no such file; give the path of an ONNX model", path=str(model))
    if data is None:
        raise typer.BadParameter("give --data: seconds and bytes are measured on real inputs")
    inputs, _ = signature_of(model)
    samples = open_samples(data, inputs)
    feeds = [samples.feeds(number) for number in range(min(200, len(samples.names)))]
    subject = Subject(name=model.stem, path=model, samples=feeds, title=str(model), data=str(data))
    with progress(f"measuring {model.name}", 5, "steps") as bar:
        return measure(subject, Effort(), cache=cache_dir() / "graphs", step=lambda _stage: bar.advance(1))


def _of_one(whole: "Matrix", own: "ModelParts") -> "Matrix":
    import msgspec

    return msgspec.structs.replace(whole, models=(own.name,), local_s=(0.0, 1e9))
