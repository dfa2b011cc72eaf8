"""`hybrid compress`: a smaller, faster model for one device, under a floor on accuracy, with a report."""

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import hybrid.compress
from hybrid.artifact.names import MANIFEST_NAME
from hybrid.cli.output import note, progress, result
from hybrid.cli.sample_flags import Data, Labels, PixelsOption, Shape, Tolerance
from hybrid.cli.signing_key import key_path

if TYPE_CHECKING:
    from hybrid.calibration.pixels import Pixels
    from hybrid.cli.output import Progress
    from hybrid.compress.job import Job, Watch
    from hybrid.compress.run import Result
    from hybrid.graph.shape_key import ShapeKey

app = typer.Typer()

HELP = """Make a smaller, faster model for one device, and lose no more accuracy than --max-drop.

Int8 with the types that the device is fastest with, its repairs, pruning and, with a training script, everything that
training can do are tried, each timed on the device beside the original. What is not faster is not shipped, nor what
loses more than the floor (upper end of the 95 % interval, on samples that neither calibration nor choice has seen).
The same command goes on after Ctrl-C, or where its budget ended. Exit code 7: nothing was won; the report says why.

\b
Examples:
  hybrid compress model.onnx --data calib.npz --labels labels.npy --device rpi-4b --out small
  hybrid compress model.onnx --data photos/ --pixels imagenet --labels labels.csv --max-drop 0.02 --out small
  hybrid compress --train-script train.py:training --data test.npz --labels test.npy --budget 60 --out small
  hybrid models push small --name model
"""

Model = Annotated[
    str | None,
    typer.Argument(
        help="An .onnx file, an artifact, or NAME[:VERSION]; without one the training script's.", metavar="[MODEL]"
    ),
]
MetricOption = Annotated[
    Literal["auto", "accuracy", "agreement", "fidelity"],
    typer.Option("--metric", help="What a drop is; for embeddings, boxes and the like: fidelity."),
]
Script = Annotated[
    str,
    typer.Option("--train-script", help="FILE.py:FUNCTION that gives a training set.", metavar="M:F"),
]
Device = Annotated[str, typer.Option("--device", help="A machine of `hybrid devices`, `this`, or an agent's URL.")]
MaxDrop = Annotated[
    float, typer.Option("--max-drop", help="Share of answers that may be lost, as 0.01.", min=0.0001, max=1.0)
]
Objective = Annotated[
    Literal["latency", "bytes", "energy"], typer.Option("--objective", help="What is made small; energy is modelled.")
]
Budget = Annotated[float, typer.Option("--budget", help="Minutes to search; the judgement comes on top.", min=0.01)]
Link = Annotated[
    str,
    typer.Option(
        "--link", help="A link of `hybrid devices`: requests are divided over it too: int8 heads, codecs, bottlenecks."
    ),
]
Sign = Annotated[
    str | None,
    typer.Option("--sign", help="A private key's file, or `own`: yours, made at its first use.", metavar="KEY"),
]
Head = Annotated[
    str,
    typer.Option(
        "--head",
        help="The tensor that a trainable head stands on, or `auto`: its weights become a file of their own, in float.",
        metavar="TENSOR",
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank",
        help="With --head: its weights stay, and what may learn is an update of this rank beside each of its products.",
        min=1,
    ),
]
Emulation = Annotated[
    Literal["auto", "quota", "scaled"],
    typer.Option("--emulation", help="An emulated device: slowed down in truth, or seconds multiplied."),
]


@app.command(help=HELP)
def compress(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="A new folder for the artifact.", metavar="DIR")],
    model: Model = None,
    labels: Labels = None,
    pixels: PixelsOption = None,
    shape: Shape = None,
    metric: MetricOption = "auto",
    output: Annotated[str | None, typer.Option("--output", help="The output that is compared.")] = None,
    tolerance: Tolerance = 0.02,
    train_script: Script = "",
    device: Device = "this",
    max_drop: MaxDrop = 0.01,
    objective: Objective = "latency",
    budget: Budget = 30.0,
    link: Link = "",
    sign: Sign = None,
    samples: Annotated[int, typer.Option("--samples", help="Use at most so many.", min=1)] = 4000,
    epochs: Annotated[int, typer.Option("--epochs", help="Of a whole fine-tuning.", min=1)] = 12,
    seed: Annotated[int, typer.Option("--seed", help="Of every draw and every training.")] = 0,
    threads: Annotated[int, typer.Option("--threads", help="Of the engine while timed; 0: one a core.", min=0)] = 0,
    emulation: Emulation = "auto",
    head: Head = "",
    rank: Rank = None,
    name: Annotated[str, typer.Option("--name", help="Of the artifact; else the model's.")] = "",
    version: Annotated[str, typer.Option("--version", help="Of the artifact; else 1.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Nothing that an earlier call did counts.")] = False,
    gateway: Annotated[str, typer.Option("--gateway", envvar="HYBRID_GATEWAY", help="For MODEL by name.")] = "auto",
    token: Annotated[str | None, typer.Option("--token", envvar="HYBRID_TOKEN", show_envvar=True)] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Search, judge, ship."""
    job = hybrid.compress.Job(
        model=(path := _path(model, gateway, token)),
        data=data,
        out=out,
        labels=labels,
        pixels=_pixels(pixels),
        shape=_shape(path, shape or []),
        metric=None if metric == "auto" else metric,
        output=output,
        tolerance=tolerance,
        train_script=train_script,
        device=device,
        link=link,
        max_drop=max_drop,
        objective=objective,
        budget_s=60 * budget,
        n_samples=samples,
        epochs=epochs,
        seed=seed,
        threads=threads,
        emulation=emulation,
        sign=_key(sign),
        head=head, rank=rank,
        name=name, version=version,
        again=again,
    )  # fmt: skip
    _tell(job, _compressed(job), json=json)


def _compressed(job: "Job") -> "Result":
    from hybrid.compress.run import compress as compressed

    named = job.model.name if job.model is not None else job.train_script
    try:
        # what a training script prints is no part of the result
        with progress(named, job.budget_s, "s of the budget") as bar, redirect_stdout(sys.stderr):
            return compressed(job, _watch(bar, named, job.budget_s))
    except KeyboardInterrupt:
        note(_left_by_interrupt(job.out))
        raise


def _left_by_interrupt(out: Path) -> str:
    work = out.with_name(f"{out.name}.work")
    if (out / MANIFEST_NAME).exists():
        return f"{out} is written, its report is not: the same command writes it"
    if not work.exists():
        return "nothing was written yet"
    return f"no artifact was written; what was finished lies in {work}: the same command goes on from there"


def _watch(bar: "Progress", named: str, budget_s: float) -> "Watch":
    """Tells how much of the budget is spent: how many steps there will be is known only when the last one is done.

    The budget is the search's: what comes before its first step and after its last is not counted.
    """
    from hybrid.compress.job import Watch

    begun_s, spent_s = float("inf"), 0.0

    def search_goes_on(_n_steps: int) -> None:
        nonlocal begun_s
        begun_s = min(begun_s, time.monotonic())

    def stage(text: str) -> None:
        nonlocal spent_s
        now_spent_s = round(min(budget_s, max(0.0, time.monotonic() - begun_s)), 1)
        bar.rename(f"{named}: {text}")
        bar.advance(now_spent_s - spent_s)
        spent_s = now_spent_s

    return Watch(stage=stage, total=search_goes_on, said=note)


def _tell(job: "Job", found: "Result", *, json: bool) -> None:
    """The table, where everything lies, and what to do next."""
    from hybrid.cli.compress_report import text
    from hybrid.errors import ExitCode

    facts = {
        "artifact": found.artifact.folder if found.artifact is not None else None,
        "artifact_digest": found.artifact.digest if found.artifact is not None else None,
        "report_paths": found.report_paths,
        "is_cut_short": found.is_cut_short,
        "n_known": found.n_known,
        "report": found.report,
    }
    result(facts, text(found), json=json)
    if not json:
        for remark in found.report.remarks:
            note(remark)
        if found.artifact is not None:
            unsigned = "" if job.sign is not None else " (its calibrations are unsigned: --sign own makes them count)"
            note(f"next: hybrid models push {job.out} --name {found.artifact.manifest.name}{unsigned}")
        else:
            note(f"nothing was won; {_advice(job, found)}")
    if found.artifact is None:
        raise typer.Exit(ExitCode.NOTHING_WON)


def _advice(job: "Job", found: "Result") -> str:
    """What may help where nothing was won, by what became of the candidates."""
    from hybrid.compress.rules import SMALLER_RATIO

    tried = found.report.candidates
    known = [
        ("a larger --budget", found.is_cut_short),
        ("more samples, a larger --max-drop", any(each.status == "kept off" for each in tried)),
        ("--train-script", not job.train_script),
        (
            "--objective bytes, if smaller is enough",
            job.objective != "bytes" and any((each.bytes_ratio or 1.0) <= SMALLER_RATIO for each in tried),
        ),
    ]
    words = ", ".join(text for text, may_help in known if may_help)
    return f"what may help: {words}" if words else "the report says why"


def _key(sign: str | None) -> bytes | None:
    from hybrid.artifact.publishers import read_key

    return read_key(key_path(sign)) if sign is not None else None


def _path(model: str | None, gateway: str, token: str | None) -> Path | None:
    """The model's file, or the artifact that it lies in."""
    from hybrid.cli.model_argument import open_model

    if model is None or Path(model).exists() or Path(model).suffix.lower() in (".onnx", ".tflite", ".zip"):
        return Path(model) if model is not None else None
    given = open_model(model, gateway, token)
    return given.artifact.folder if given.artifact is not None else given.path


def _pixels(said: str | None) -> "Pixels | None":
    from hybrid.calibration.pixels import PRESETS, parse_pixels

    if said is None:
        return None
    is_file = said not in PRESETS and Path(said).is_file()
    return parse_pixels(Path(said).read_bytes() if is_file else said)


def _shape(model: Path | None, words: list[str]) -> "ShapeKey | None":
    from hybrid.cli.plan import inputs_of, shape_key_of
    from hybrid.compress.uncompressed import model_path

    return shape_key_of(inputs_of(model_path(model)), words) if words and model is not None else None
