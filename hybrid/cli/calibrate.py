"""`hybrid calibrate`: what each codec at each cut costs in accuracy, measured on data and signed."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hybrid.cli.gateway_choice import connected
from hybrid.cli.model_argument import GivenModel, open_model
from hybrid.cli.output import note, progress, result
from hybrid.cli.sample_flags import Data, Labels, PixelsOption, Shape, Tolerance
from hybrid.cli.signing_key import key_path
from hybrid.errors import HybridError, UnknownSplit

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybrid.artifact.attachments import Attachment
    from hybrid.artifact.splits import SplitFiles
    from hybrid.calibration.calibrate import Wish
    from hybrid.calibration.pixels import Pixels
    from hybrid.calibration.record import Calibration
    from hybrid.calibration.samples import Samples
    from hybrid.calibration.trial import Watch
    from hybrid.cli.output import Progress

app = typer.Typer()

HELP = """Measure what lossy codecs cost in accuracy, for every codec at every cut that is worth timing.

With --labels the drop of the task's accuracy, else how often the most likely class changes, else (for outputs that are
no classification) how often an output moves by more than --tolerance; each with a 95 % interval, whose upper end is
what sessions hold against max_accuracy_drop. Only a signed calibration counts: --sign own signs with your own key.
Cuts that were measured on all samples need not be measured again: the same command goes on after Ctrl-C, or where
its budget ended.

\b
Examples:
  hybrid calibrate classifier.onnx --data photos/ --pixels imagenet --labels labels.csv --sign own
  hybrid calibrate detector.onnx --data requests.npz --budget 300
  hybrid calibrate voice.onnx --data requests.npz --sign own --push --gateway http://127.0.0.1:8700
"""

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


Codecs = Annotated[
    str, typer.Option("--codecs", help="Names with commas between them; all by default, and the splits.")
]
Cuts = Annotated[
    str, typer.Option("--cuts", help="Cut ids, and `input`, with commas between them; else those worth timing.")
]
MetricOption = Annotated[
    Literal["auto", "accuracy", "agreement", "fidelity"], typer.Option("--metric", help="What a drop is.")
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
    again: Annotated[bool, typer.Option("--again", help="Measure anew what an earlier call measured.")] = False,
    gateway: Annotated[str, typer.Option("--gateway", envvar="HYBRID_GATEWAY", help="Its URL, or `auto`.")] = "auto",
    token: Annotated[str | None, typer.Option("--token", envvar="HYBRID_TOKEN", show_envvar=True)] = None,
    json: Json = False,
) -> None:
    """Measure, keep, sign and hand out what codecs cost."""
    from hybrid.calibration.calibrate import as_attachment
    from hybrid.calibration.record import parse_calibration
    from hybrid.cli.calibration_report import remarks, text, whereabouts

    signer = key_path(sign) if sign is not None else None
    private_key = _private_key(signer) if signer is not None else None
    given = open_model(model, gateway, token)
    wish = _wish(codecs, cuts, samples, seed, metric, output, tolerance, budget)
    wish = replace(wish, again=again, splits=_splits(given, codecs))
    if push:
        with connected(gateway, token):
            pass  # said before the work, not after it
    measured = _measured(given, data, labels, pixels=pixels, shape=shape or [], wish=wish)
    attachments = [as_attachment(calibration, private_key) for calibration in measured.calibrations]
    calibrations = [parse_calibration(attachment.content) for attachment in attachments]  # as they were signed
    kept = [_keep(given, out, attachment) for attachment in attachments]
    pushed_to = _pushed(gateway, token, attachments, kept) if push else None
    told = {
        "model": given.name,
        "signed_by": attachments[0].signature.key_id if attachments[0].signature else None,
        "kept_at": kept,
        "is_pushed": push,
        "pushed_to": pushed_to,
        "n_cuts": measured.n_cuts,
        "n_cuts_whole": measured.n_whole,
        "n_cuts_known": measured.n_known,
        "calibrations": calibrations,
    }
    tables = [text(calibration) for calibration in calibrations]
    result(told, "\n\n".join([*tables, whereabouts(kept, attachments[0], signer, pushed_to)]), json=json)
    if not json:
        for line in [*_progress_made(measured), *remarks(calibrations[0], is_signed=private_key is not None)]:
            note(line)
        if private_key is not None:
            note(f"next: hybrid keys trust {calibrations[0].publisher}    # on other machines that shall take its word")


@dataclass(slots=True, kw_only=True)
class _Measured:
    """The calibrations, and how many cuts there are, were tried on all samples, and were so by an earlier call."""

    calibrations: "list[Calibration]"
    n_cuts: int = 0
    n_whole: int = 0
    n_known: int = 0


def _private_key(path: Path) -> bytes:
    from hybrid.artifact.publishers import read_key

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
    from compression.codecs import catalog
    from hybrid.artifact.splits import PREFIX
    from hybrid.calibration.calibrate import Wish

    words = tuple(filter(None, (word.strip() for word in codecs.split(","))))
    names = tuple(word for word in words if not word.startswith(PREFIX)) if words else tuple(catalog.CODECS)
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
    given: GivenModel,
    data: Path,
    labels: Path | None,
    *,
    pixels: str | None,
    shape: list[str],
    wish: "Wish",
) -> _Measured:
    """The calibration of the shipped model, then one of each local variant that onnxruntime runs."""
    from hybrid.artifact.cache import cache_dir
    from hybrid.calibration.calibrate import calibrate as calibrated
    from hybrid.calibration.calibrate import calibrate_variant
    from hybrid.calibration.labels import read_labels

    found = _samples(given, data, pixels, shape)
    classes = given.artifact.manifest.classes or () if given.artifact is not None else ()
    known = read_labels(labels, found.names, classes) if labels is not None else None
    cache, measured = cache_dir(), _Measured(calibrations=[])

    def reached(n_cuts: int, n_whole: int, n_known: int) -> None:
        measured.n_cuts, measured.n_whole, measured.n_known = n_cuts, n_whole, n_known

    try:
        with progress(f"calibrating {given.name}", 1, "steps") as bar:
            watch = _watch(bar, reached)
            made = calibrated(
                given.path,
                given.digest,
                found,
                wish,
                cache=cache / "graphs",
                drafts=cache / "calibrating",
                labels=known,
                watch=watch,
            )
            measured.calibrations.append(made)
            for variant, path in _variants(given):
                made = calibrate_variant(
                    given.path, path, given.digest, found, wish, variant=variant, labels=known, watch=watch
                )
                measured.calibrations.append(made)
    except KeyboardInterrupt:
        note("no calibration was written; cuts that were finished are kept: the same command goes on from there")
        raise
    return measured


def _splits(given: GivenModel, codecs: str) -> "tuple[SplitFiles, ...]":
    """The splits of the artifact: all without a word on codecs, else those that are named."""
    from hybrid.artifact.splits import PREFIX, splits_of

    found = splits_of(given.artifact) if given.artifact is not None else ()
    words = [word.strip() for word in codecs.split(",") if word.strip()]
    named = [word for word in words if word.startswith(PREFIX)]
    there = {split.codec for split in found}
    strange = next((word for word in named if word not in there), None)
    if strange is not None:
        raise UnknownSplit(
            f"{given.name} has no {strange!r}; its artifact has {', '.join(sorted(there)) or 'no splits'}"
        )
    return tuple(split for split in found if not words or split.codec in named)


def _samples(given: GivenModel, data: Path, pixels: str | None, shape: list[str]) -> "Samples":
    from hybrid.calibration.calibrate import signature_of
    from hybrid.calibration.samples import open_samples
    from hybrid.cli.plan import inputs_of, shape_key_of

    inputs, _ = signature_of(given.path)
    wanted = shape_key_of(inputs_of(given.path), shape) if shape else None
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


def _watch(bar: "Progress", reached: "Callable[[int, int, int], None]") -> "Watch":
    from hybrid.calibration.trial import Watch

    done = 0.0

    def total(n: int) -> None:
        bar.extend(done + n)

    def stepped() -> None:
        nonlocal done
        done += 1
        bar.advance(1)

    return Watch(total=total, stage=bar.rename, stepped=stepped, reached=reached)


def _keep(given: GivenModel, out: Path | None, attachment: "Attachment") -> Path:
    """Into the named folder, else the artifact's own, else the user's."""
    from hybrid.artifact.attachments import attach
    from hybrid.artifact.names import MANIFEST_NAME
    from hybrid.calibration.permits import own_folder

    own = given.artifact is not None and (given.artifact.folder / MANIFEST_NAME).is_file()
    folder = out or (given.artifact.folder if given.artifact is not None and own else own_folder(given.digest))
    return attach(folder, attachment)


def _pushed(gateway: str, token: str | None, attachments: "list[Attachment]", kept: list[Path]) -> str:
    """Brings them to the gateway; its URL."""
    from hybrid.transport.attachment_calls import put_attachment

    try:
        with connected(gateway, token) as client:
            for attachment in attachments:
                put_attachment(client, attachment)
            return client.url
    except HybridError:
        note("\n".join(f"not pushed, but kept: {path}" for path in kept))
        raise


def _progress_made(measured: _Measured) -> list[str]:
    lines = []
    if measured.n_known:
        lines.append(f"{measured.n_known} of {measured.n_cuts} cuts were measured before; --again measures them anew")
    if measured.n_whole < measured.n_cuts:
        lines.append(
            f"the budget ended before all samples were tried at {measured.n_cuts - measured.n_whole} of "
            f"{measured.n_cuts} cuts; the same command goes on with them"
        )
    return lines
