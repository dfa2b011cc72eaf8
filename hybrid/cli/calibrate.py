"""`hybrid calibrate`: what each codec at each cut costs in accuracy, measured on data and signed."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hybrid.cli.gateway_choice import choose
from hybrid.cli.model_argument import GivenModel, open_model
from hybrid.cli.output import note, progress, result
from hybrid.errors import HybridError

if TYPE_CHECKING:
    from hybrid.artifact.attachments import Attachment
    from hybrid.calibration.calibrate import Watch, Wish
    from hybrid.calibration.pixels import Pixels
    from hybrid.calibration.record import Calibration, Cell
    from hybrid.calibration.samples import Samples
    from hybrid.cli.output import Progress

app = typer.Typer()

HELP = """Measure what lossy codecs cost in accuracy, for every codec at every cut that is worth timing.

With --labels the drop of the task's accuracy, else how often the most likely class changes, else (for outputs that are
no classification) how often an output moves by more than --tolerance; each with a 95 % interval, whose upper end is
what sessions hold against max_accuracy_drop. Only a signed calibration counts: --sign own signs with your own key.

\b
Examples:
  hybrid calibrate classifier.onnx --data photos/ --pixels imagenet --labels labels.csv --sign own
  hybrid calibrate detector.onnx --data requests.npz --budget 300
  hybrid calibrate voice.onnx --data requests.npz --sign own --push --gateway http://127.0.0.1:8700
"""

HEADINGS = ("cut", "codec", "bytes", "of raw", "encode ms", "decode ms", "SQNR dB", "drop", "at most", "samples")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


Data = Annotated[
    Path, typer.Option("--data", help="Samples: an .npz or .npy of ready inputs, or a folder of these or of images.")
]
Labels = Annotated[
    Path | None, typer.Option("--labels", help="Right classes: a .csv of file and class, an .npy, or one a line.")
]
PixelsOption = Annotated[
    str | None,
    typer.Option("--pixels", help="How pixels become inputs: unit, signed, imagenet, raw, JSON, or a JSON file."),
]
Shape = Annotated[
    list[str] | None, typer.Option("--shape", help="Sizes of an image input that leaves them open: 1x3x224x224.")
]
Codecs = Annotated[str, typer.Option("--codecs", help="Names with commas between them; all by default.")]
Cuts = Annotated[
    str, typer.Option("--cuts", help="Cut ids, and `input`, with commas between them; else those worth timing.")
]
MetricOption = Annotated[
    Literal["auto", "accuracy", "agreement", "fidelity"], typer.Option("--metric", help="What a drop is.")
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", help="For fidelity: relative distance that counts as the same.", min=0.0)
]
Budget = Annotated[float, typer.Option("--budget", help="Seconds to spend; each cut gets its share.", min=1)]
Sign = Annotated[
    str | None,
    typer.Option("--sign", help="A private key's file, or `own`: yours, made at its first use.", metavar="KEY"),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Artifact folder to put it into; else MODEL's own.", metavar="DIR")
]


@app.command(help=HELP)
def calibrate(
    model: Annotated[str, typer.Argument(help="An .onnx file, an artifact, or NAME[:VERSION].", metavar="MODEL")],
    data: Data,
    labels: Labels = None,
    pixels: PixelsOption = None,
    shape: Shape = None,
    codecs: Codecs = "",
    cuts: Cuts = "",
    samples: Annotated[int, typer.Option("--samples", help="Use at most so many.", min=1)] = 400,
    seed: Annotated[int, typer.Option("--seed", help="Of their choice.")] = 0,
    metric: MetricOption = "auto",
    output: Annotated[str | None, typer.Option("--output", help="The output that is compared.")] = None,
    tolerance: Tolerance = 0.02,
    budget: Budget = 600.0,
    sign: Sign = None,
    push: Annotated[bool, typer.Option("--push", help="Bring it to the gateway; needs a publisher's token.")] = False,
    out: Out = None,
    gateway: Annotated[str, typer.Option("--gateway", envvar="HYBRID_GATEWAY", help="Its URL, or `auto`.")] = "auto",
    token: Annotated[str | None, typer.Option("--token", envvar="HYBRID_TOKEN", show_envvar=True)] = None,
    json: Json = False,
) -> None:
    """Measure, keep, sign and hand out what codecs cost."""
    from hybrid.calibration.calibrate import as_attachment
    from hybrid.calibration.record import parse_calibration

    private_key = _private_key(sign) if sign is not None else None
    given = open_model(model, gateway, token)
    wish = _wish(codecs, cuts, samples, seed, metric, output, tolerance, budget)
    calibrations = _measured(given, data, labels, pixels=pixels, shape=shape or [], wish=wish)
    attachments = [as_attachment(calibration, private_key) for calibration in calibrations]
    calibrations = [parse_calibration(attachment.content) for attachment in attachments]  # as they were signed
    kept = [_keep(given, out, attachment) for attachment in attachments]
    if push:
        _push(gateway, token, attachments)
    told = {
        "model": given.name,
        "signed_by": attachments[0].signature.key_id if attachments[0].signature else None,
        "kept_at": kept,
        "is_pushed": push,
        "calibrations": calibrations,
    }
    result(told, "\n\n".join(_text(calibration) for calibration in calibrations), json=json)
    if not json:
        for line in _remarks(calibrations[0], is_signed=private_key is not None):
            note(line)


def _private_key(sign: str) -> bytes:
    from hybrid.artifact.publishers import create_key, own_key_path, read_key

    path = own_key_path() if sign == "own" else Path(sign)
    if sign == "own" and not path.exists():
        create_key(path)
        note(f"made your own key: {path} (keep it secret; sessions of yours trust what it signs)")
    return read_key(path)


def _wish(
    codecs: str,
    cuts: str,
    samples: int,
    seed: int,
    metric: Literal["auto", "accuracy", "agreement", "fidelity"],
    output: str | None,
    tolerance: float,
    budget: float,
) -> "Wish":
    from compression import catalog
    from hybrid.calibration.calibrate import Wish

    names = tuple(filter(None, (word.strip() for word in codecs.split(",")))) or tuple(catalog.CODECS)
    for name in names:
        catalog.get(name)
    return Wish(
        codecs=names,
        cuts=tuple(filter(None, (word.strip() for word in cuts.split(",")))) or None,
        n_samples=samples,
        seed=seed,
        budget_s=budget,
        metric=None if metric == "auto" else metric,
        output=output,
        tolerance=tolerance,
    )


def _measured(
    given: GivenModel, data: Path, labels: Path | None, *, pixels: str | None, shape: list[str], wish: "Wish"
) -> "list[Calibration]":
    """The calibration of the shipped model, then one of each local variant that onnxruntime runs."""
    from hybrid.artifact.cache import cache_dir
    from hybrid.calibration.calibrate import calibrate as calibrated
    from hybrid.calibration.calibrate import calibrate_variant
    from hybrid.calibration.labels import read_labels

    found = _samples(given, data, pixels, shape)
    classes = given.artifact.manifest.classes or () if given.artifact is not None else ()
    known = read_labels(labels, found.names, classes) if labels is not None else None
    with progress(f"calibrating {given.name}", 1, "steps") as bar:
        watch = _watch(bar)
        made = [
            calibrated(given.path, given.digest, found, wish, cache=cache_dir() / "graphs", labels=known, watch=watch)
        ]
        for variant, path in _variants(given):
            made.append(
                calibrate_variant(
                    given.path, path, given.digest, found, wish, variant=variant, labels=known, watch=watch
                )
            )
    return made


def _samples(given: GivenModel, data: Path, pixels: str | None, shape: list[str]) -> "Samples":
    from hybrid.calibration.calibrate import signature_of
    from hybrid.calibration.samples import open_samples
    from hybrid.cli.plan import shape_key_of
    from hybrid.graph.model_file import declared_inputs, load_proto

    inputs, _ = signature_of(given.path)
    wanted = shape_key_of(declared_inputs(load_proto(given.path)), shape) if shape else None
    return open_samples(data, inputs, pixels=_pixels(given, pixels), wanted=wanted)


def _pixels(given: GivenModel, said: str | None) -> "Pixels | None":
    """What the user said, else what the artifact's `pre` says, else nothing."""
    from hybrid.calibration.pixels import PRESETS, parse_pixels

    if said is not None:
        is_file = said not in PRESETS and not said.lstrip().startswith("{")
        return parse_pixels(Path(said).read_bytes() if is_file else said)
    if given.artifact is not None:
        with suppress(HybridError):  # a `pre` of another kind is nobody's error
            return parse_pixels(bytes(given.artifact.manifest.pre))
    return None


def _variants(given: GivenModel) -> list[tuple[str, Path]]:
    if given.artifact is None:
        return []
    others = given.artifact.manifest.variants[1:]
    return [(v.id, given.artifact.path_of(v.files[0])) for v in others if v.engine == "onnxruntime"]


def _watch(bar: "Progress") -> "Watch":
    from hybrid.calibration.calibrate import Watch

    done = 0.0

    def total(n: int) -> None:
        bar.extend(done + n)

    def stepped() -> None:
        nonlocal done
        done += 1
        bar.advance(1)

    return Watch(total=total, stage=bar.rename, stepped=stepped)


def _keep(given: GivenModel, out: Path | None, attachment: "Attachment") -> Path:
    """Into the named folder, else the artifact's own, else the user's."""
    from hybrid.artifact.attachments import attach
    from hybrid.artifact.names import MANIFEST_NAME
    from hybrid.calibration.permits import own_folder

    own = given.artifact is not None and (given.artifact.folder / MANIFEST_NAME).is_file()
    folder = out or (given.artifact.folder if given.artifact is not None and own else own_folder(given.digest))
    return attach(folder, attachment)


def _push(gateway: str, token: str | None, attachments: "list[Attachment]") -> None:
    from hybrid.transport.attachment_calls import put_attachment
    from hybrid.transport.client import acquire, release

    choice = choose(gateway, token)
    client = acquire(choice.url, token, trust=choice.trust)
    try:
        client.wait_settled(10.0)
        for attachment in attachments:
            put_attachment(client, attachment)
    finally:
        release(client)


# -- what is told


def _text(calibration: "Calibration") -> str:
    if calibration.variant != "original":
        cell = calibration.cells[0]
        return (
            f"variant {calibration.variant}: {calibration.metric} drop {cell.drop:.2%}, at most {cell.drop_high:.2%} "
            f"({cell.n} samples)"
        )
    rows = [HEADINGS, *(_row(cell) for cell in calibration.cells)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    kind = {
        "accuracy": f"of the accuracy on the labels, which is {calibration.baseline or 0:.2%} uncompressed",
        "agreement": "share of samples whose most likely class is another one",
        "fidelity": f"share of samples whose outputs move by more than {calibration.tolerance or 0:.1%}",
    }[calibration.metric]
    return "\n".join([*lines, "", f"drop: {kind}; at most: upper end of its 95 % interval"])


def _row(cell: "Cell") -> tuple[str, ...]:
    return (
        cell.cut or "input",
        cell.codec,
        f"{cell.n_bytes:.0f}",
        f"{cell.n_bytes / cell.raw_bytes:.3f}" if cell.raw_bytes else "",
        f"{1e3 * cell.encode_s:.2f}",
        f"{1e3 * cell.decode_s:.2f}",
        "" if cell.sqnr_db is None else f"{cell.sqnr_db:.1f}",
        f"{cell.drop:.2%}" if cell.is_lossy else "none",
        f"{cell.drop_high:.2%}" if cell.is_lossy else "",
        str(cell.n),
    )


def _remarks(calibration: "Calibration", *, is_signed: bool) -> list[str]:
    from hybrid.calibration.intervals import samples_for, wilson

    least = min(cell.n for cell in calibration.cells)
    lines = []
    best = wilson(0, least)[1]
    if best > 0.01:
        lines.append(
            f"{least} samples cannot show a drop below {best:.1%}; the default max_accuracy_drop of 1 % needs "
            f"{samples_for(0.01)} without a change"
        )
    if calibration.metric == "agreement":
        lines.append(f"output {calibration.output!r} was taken for class scores; --metric fidelity if it is not")
    if not is_signed:
        lines.append("not signed: sessions will not use it; sign it with --sign own")
    return lines
