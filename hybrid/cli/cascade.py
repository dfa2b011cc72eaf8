"""`hybrid cascade`: a small and a large model graded on labelled data, and the artifact in which both lie."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid.cli.output import note, progress, result
from hybrid.cli.table import table, wrapped

if TYPE_CHECKING:
    from hybrid.artifact.manifest import CascadeRule
    from hybrid.calibration.pixels import Pixels
    from hybrid.cascade.fit import Graded

app = typer.Typer()

HELP = """Put a small and a large classifier into one artifact: the small one answers where it is sure enough.

Both are run on samples with known answers, which neither was trained on. A third of the samples chooses the
temperature that makes the small model's confidence honest, the rest the lowest confidence at which its answers lose no
more accuracy than --max-drop (with 97.5 % confidence). Push the artifact: sessions on boxes open the small model and
ask the gateway's large one where they must.

\b
Examples:
  hybrid cascade small.onnx large.onnx --data photos/ --pixels unit --labels labels.csv --name animals --out animals
  hybrid cascade small.tflite large.tflite --data requests.npz --labels labels.npy --name animals --out animals
  hybrid models push animals --name animals
"""

Data = Annotated[
    Path, typer.Option("--data", help="Samples: an .npz or .npy of ready inputs, or a folder of these or of images.")
]
Labels = Annotated[
    Path, typer.Option("--labels", help="Right classes: a .csv of file and class, an .npy, or one a line.")
]


@app.command(help=HELP)
def cascade(
    small: Annotated[Path, typer.Argument(help="The model for the box: .onnx or .tflite.", metavar="SMALL")],
    large: Annotated[Path, typer.Argument(help="The model for the gateway.", metavar="LARGE")],
    data: Data,
    labels: Labels,
    name: Annotated[str, typer.Option("--name", help="Of the artifact.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for it.", metavar="DIR")],
    version: Annotated[str, typer.Option("--version", help="Of the artifact.")] = "1",
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="Share of answers that may be lost, as 0.01.", min=0.0, max=1.0)
    ] = 0.01,
    output: Annotated[str, typer.Option("--output", help="The output with the scores, where there are several.")] = "",
    pixels: Annotated[
        str | None, typer.Option("--pixels", help="How pixels become inputs: unit, signed, imagenet, raw, or JSON.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the division of the samples.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Grade, choose, write."""
    from hybrid.cascade.build import score_kind, write_artifact
    from hybrid.cascade.fit import NEVER, fit

    told, chosen = _graded(small, large, data, labels, output=output, pixels=_pixels(pixels))
    rule = fit(told, small="small", output=chosen, kind=score_kind(told.scores), max_accuracy_drop=max_drop, seed=seed)
    artifact = write_artifact(small, large, rule, name=name, version=version, folder=out)
    facts = {
        "folder": out,
        "model": artifact.model_path,
        "model_digest": artifact.manifest.model_digest,
        "never_answers": rule.threshold >= NEVER,
        "rule": rule,
    }
    result(facts, _text(rule), json=json)
    if json:
        return
    if rule.threshold >= NEVER:
        note("the small model loses more than --max-drop wherever it answers: every request would go to the large one")
    note(f"next: hybrid models push {out} --name {name}")


def _graded(
    small: Path, large: Path, data: Path, labels: Path, *, output: str, pixels: "Pixels | None"
) -> "tuple[Graded, str]":
    """What both models answer, and the output that is judged by."""
    from hybrid.calibration.calibrate import signature
    from hybrid.calibration.labels import read_labels
    from hybrid.calibration.samples import open_samples
    from hybrid.calibration.trial import opened
    from hybrid.cascade.build import graded, scores_output
    from hybrid.errors import ModelMissing

    for path in (small, large):
        if not path.is_file():
            raise ModelMissing(f"{path}: no such file; give a model's file", path=str(path))
    first, second = opened(small), opened(large)
    chosen = scores_output(first, second, output)
    samples = open_samples(data, signature(small, first)[0], pixels=pixels)
    known = read_labels(labels, samples.names)
    with progress(f"grading {small.name} and {large.name}", len(known), "samples") as bar:
        feeds = (samples.feeds(index) for index in range(len(known)))
        return graded(first, second, feeds, known, chosen, stepped=lambda: bar.advance(1)), chosen


def _pixels(said: str | None) -> "Pixels | None":
    from hybrid.calibration.pixels import PRESETS, parse_pixels

    if said is None:
        return None
    is_file = said not in PRESETS and not said.lstrip().startswith("{")
    return parse_pixels(Path(said).read_bytes() if is_file else said)


def _text(rule: "CascadeRule") -> str:
    found = rule.measured
    if found is None:
        return ""
    rows = [
        ("", "accuracy", "escalated"),
        ("small alone", f"{found.small_accuracy:.2%}", "0.0%"),
        ("cascade", f"{found.accuracy:.2%}", f"{found.escalated_ratio:.1%}"),
        ("large alone", f"{found.large_accuracy:.2%}", "100.0%"),
    ]
    words = (
        f"The small model answers from a confidence of {rule.threshold:.3f} on (temperature {rule.temperature:.2f}). "
        f"On {found.n} samples that loses {found.drop:.2%} against the large one (95 %: {found.drop_low:.2%} to "
        f"{found.drop_high:.2%}; {rule.max_accuracy_drop:.2%} are allowed)."
    )
    return "\n".join([*table(rows), "", *wrapped(words)])
