"""`hybrid models`: push models to a gateway, list what it has, pull them to this machine."""

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hybrid.artifact.cache import cache_dir
from hybrid.artifact.names import BUNDLE_SUFFIX
from hybrid.cli.lite_body import HELP as LITE_HELP
from hybrid.cli.lite_body import with_lite_body
from hybrid.cli.model_bundles import EXPORT_HELP, IMPORT_HELP, export_bundle, import_bundle
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json, ask_registry, check_label, showing
from hybrid.cli.table import table

if TYPE_CHECKING:
    from hybrid.artifact.folder import Artifact
    from hybrid.artifact.trainable import Separated
    from hybrid.transport.attachments_along import Brought
    from hybrid.transport.model_push import Pushed
    from hybrid.transport.registry_client import ModelInfo, RegistryClient

_T = TypeVar("_T")

app = typer.Typer(
    no_args_is_help=True,
    help="""Models of a gateway: versions that never change, found by name or by the digest of their bytes.

    \b
    Examples:
      hybrid models push detector.onnx --name detector
      hybrid models push detector.onnx --name detector --sign own --golden random
      hybrid models push detector.onnx --name detector --sign own --golden random --head auto
      hybrid models push detector.onnx --name detector --sign own --golden random --head auto --rank 4
      hybrid models push detector.onnx --name detector --head auto --lite-body body.tflite
      hybrid models push detector.onnx --name detector --sign own --golden random --head input
      hybrid models ls --json
      hybrid models pull detector:3 --out ./models
      hybrid models export detector:3 --out detector-3.hybrid
    """,
)

TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="HYBRID_TOKEN", show_envvar=True, help="Pushing needs a publisher's."),
]


GoldenOption = Annotated[
    str | None,
    typer.Option(
        "--golden",
        help="Outputs that each box must reproduce first: on inputs of an .npz file, or `random`.",
        metavar="NPZ",
    ),
]
GoldenTolerance = Annotated[
    float, typer.Option("--golden-tolerance", help="How far off, of the largest value.", min=0.0)
]
Head = Annotated[
    str,
    typer.Option(
        "--head",
        help="Of a bare model: the tensor that a trainable head stands on, or `auto`: its weights become a file of "
        "their own, which rounds of learning may replace. `input`: all of the model learns (on boxes with torch where "
        "it has convolutions).",
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

LiteBody = Annotated[Path | None, typer.Option("--lite-body", help=LITE_HELP, metavar="TFLITE")]

app.command("export", help=EXPORT_HELP)(export_bundle)
app.command("import", help=IMPORT_HELP)(import_bundle)


@app.command("push")
def push(
    file: Annotated[Path, typer.Argument(help="An .onnx file, or an artifact: a folder or .zip.", metavar="FILE")],
    name: Annotated[
        str | None,
        typer.Option("--name", help="The model's name: a-z 0-9 . _ - and at most 64 of them; else the artifact's."),
    ] = None,
    version: Annotated[str | None, typer.Option("--version", help="By default the next whole number.")] = None,
    sign: Annotated[
        str | None,
        typer.Option("--sign", help="Your publisher's key: a file, or `own`, made at its first use.", metavar="KEY"),
    ] = None,
    golden: GoldenOption = None,
    golden_tolerance: GoldenTolerance = 1e-3,
    head: Head = "",
    rank: Rank = None,
    lite_body: LiteBody = None,
    gateway: Gateway = "auto",
    token: TokenOption = None,
    json: Json = False,
) -> None:
    """Upload a model as a new version, its signed calibrations along; run again, an interrupted push goes on."""
    from hybrid.artifact.folder import Artifact
    from hybrid.artifact.publishers import read_key
    from hybrid.calibration.permits import own_folder
    from hybrid.cli.golden_files import with_golden
    from hybrid.cli.signing_key import key_path
    from hybrid.transport.attachments_along import bring
    from hybrid.transport.model_push import PushOptions
    from hybrid.transport.model_push import push as push_model

    name = _named(file) if name is None else name
    check_label(name, version)
    if golden is not None or head:
        _refuse_artifact(file)
    if not head:
        _refuse_headless(rank, lite_body)
    private_key = read_key(key_path(sign)) if sign is not None else None
    with (
        showing(f"pushing {file.name}") as begin,
        TemporaryDirectory(prefix="hybrid-golden-") as staging,
        TemporaryDirectory(prefix="hybrid-head-") as folder,
    ):
        apart, declare, tolerances = _apart(file, head, rank, lite_body, Path(folder))

        def dress(artifact: Artifact) -> Artifact:
            dressed = declare(artifact)
            if not golden:
                return dressed
            return with_golden(dressed, Path(staging), golden, golden_tolerance, tolerances(golden_tolerance))

        async def work(client: "RegistryClient") -> "tuple[Pushed, Brought]":
            options = PushOptions(version=version, private_key=private_key, dress=dress if golden or head else None)
            pushed = await push_model(client, apart.path if apart is not None else file, name, options, begin=begin)
            digest = pushed.version.model_digest
            folders = [own_folder(digest), *([pushed.folder] if pushed.folder is not None else [])]
            return pushed, await bring(client, digest, folders)

        pushed, along = ask_registry(gateway, token, work)
    _tell_pushed(pushed, along, json=json)


def _refuse_headless(rank: int | None, lite_body: Path | None) -> None:
    if rank is not None:
        raise typer.BadParameter("--rank is of a head that learns: say with --head where that begins, or --head auto")
    if lite_body is not None:
        raise typer.BadParameter("--lite-body ends where a head begins: say with --head where, or --head auto")


def _refuse_artifact(file: Path) -> None:
    if file.is_dir() or file.suffix.lower() in (".zip", BUNDLE_SUFFIX):
        raise typer.BadParameter(
            "--golden and --head are for a bare model; an artifact has its own golden inputs, or none, and "
            "`hybrid compress ARTIFACT --head` makes another one of it"
        )


def _apart(
    file: Path, head: str, rank: int | None, lite_body: Path | None, folder: Path
) -> "tuple[Separated | None, Callable[[Artifact], Artifact], Callable[[float], dict[str, float]]]":
    """The model with its head apart, where one was named; what makes its artifact; tolerances of other variants."""
    from hybrid.artifact.trainable import declared

    if not head:
        return None, lambda artifact: artifact, lambda _: {}
    if lite_body is not None:
        return with_lite_body(file, lite_body, lambda below: _separated(file, head, rank, below), folder)
    apart = _separated(file, head, rank, folder)
    return apart, lambda artifact: declared(artifact, apart), lambda _: {}


def _separated(file: Path, head: str, rank: int | None, folder: Path) -> "Separated":
    """The model with what can learn in a file of its own, and a word about where the head begins."""
    from hybrid.artifact.trainable import separated

    apart = separated(file, head, folder, rank=rank)
    note(apart.text)
    return apart


def _named(file: Path) -> str:
    """The name in an artifact's manifest; a bare model has none."""
    from hybrid.artifact.opening import open_artifact

    if not file.is_dir() and file.suffix.lower() not in (".zip", BUNDLE_SUFFIX):
        raise typer.BadParameter(f"{file.name} is a bare model: give it a name with --name")
    return open_artifact(file).manifest.name


@app.command("ls")
def ls(
    name: Annotated[str | None, typer.Argument(help="Only this model.", metavar="[NAME]")] = None,
    gateway: Gateway = "auto",
    token: TokenOption = None,
    json: Json = False,
) -> None:
    """List models and their versions, oldest first."""
    from hybrid.transport.registry_client import ModelInfo

    if name is not None:
        check_label(name, None)

    async def ask(client: "RegistryClient") -> tuple[ModelInfo, ...]:
        return await client.models() if name is None else (ModelInfo(name=name, versions=await client.versions(name)),)

    models = ask_registry(gateway, token, ask)
    result({"models": models}, _table(models) or "no models", json=json)
    if models:
        _next(f"hybrid models pull {models[-1].name}", json=json)
    else:
        _next("hybrid models push FILE --name NAME", json=json)


@app.command("pull")
def pull(
    model: Annotated[str, typer.Argument(help="Without VERSION the newest.", metavar="NAME[:VERSION]")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Put it into DIR/NAME/VERSION instead of the cache.", metavar="DIR")
    ] = None,
    gateway: Gateway = "auto",
    token: TokenOption = None,
    json: Json = False,
) -> None:
    """Download a version, verified, with its calibrations; run again, an interrupted pull goes on."""
    from hybrid.artifact.folder import Artifact
    from hybrid.transport.attachments_along import fetch
    from hybrid.transport.chunk_download import Traffic
    from hybrid.transport.model_pull import Reuse, cached_bases, pull_to
    from hybrid.transport.model_pull import pull as pull_model

    name, _, version = model.partition(":")
    check_label(name, version or None)
    traffic = Traffic()
    with showing(f"pulling {model}") as begin:

        async def whole(client: "RegistryClient") -> Artifact:
            if out is None:
                return await pull_model(client, name, version or None, cache_dir(), begin=begin, traffic=traffic)
            info = await client.version(name, version or None)
            destination, parts = out / info.name / info.version, out / ".parts"
            bases = await asyncio.to_thread(cached_bases, name, cache_dir())
            artifact = await pull_to(
                client, info, destination, parts, begin=begin, reuse=Reuse(bases=bases, traffic=traffic)
            )
            await asyncio.to_thread(shutil.rmtree, parts, ignore_errors=True)
            return artifact

        async def work(client: "RegistryClient") -> tuple[Artifact, tuple[Path, ...]]:
            artifact = await whole(client)
            return artifact, await fetch(client, artifact)

        artifact, attached = ask_registry(gateway, token, work)
    manifest = artifact.manifest
    data = {
        "name": manifest.name,
        "version": manifest.version,
        "path": artifact.model_path,
        "model_digest": manifest.model_digest,
        "artifact_digest": artifact.digest,
        "attachments": attached,
        "fetched_bytes": traffic.fetched_bytes,
        "reused_bytes": traffic.reused_bytes,
    }
    if traffic.reused_bytes and not json:
        note(f"{_size(traffic.reused_bytes)} were here in another version, {_size(traffic.fetched_bytes)} came")
    result(data, str(artifact.model_path), json=json)
    _next(f"hybrid.InferenceSession({os.fspath(artifact.model_path)!r})", json=json)


def _tell_pushed(pushed: "Pushed", along: "Brought", *, json: bool) -> None:
    info = pushed.version
    label = f"{info.name}:{info.version}"
    data = {"model": info, "is_new": pushed.is_new, "sent_bytes": pushed.sent_bytes, "attachments": along}
    text = f"pushed {label}" if pushed.is_new else f"{label} already is this model"
    carried = f", with {along.n} calibrations and reports" if along.n else "" if pushed.is_new else "; nothing changed"
    result(data, f"{text}{carried}  model {info.model_digest[:16]}  {_size(info.size_bytes)}", json=json)
    for line in along.refused:
        note(f"not taken along: {line}")
    if along.unsigned:
        note(f"{along.unsigned} calibrations are not signed and stay: sign them with hybrid calibrate --sign own")
    _next(f"hybrid models ls {info.name}", json=json)


def _table(models: "tuple[ModelInfo, ...]") -> str:
    rows = [
        ("model", "size", "digest", "pushed"),
        *(
            (
                f"{info.name}:{info.version}",
                _size(info.size_bytes),
                info.model_digest[:16],
                time.strftime("%Y-%m-%d %H:%M", time.gmtime(info.created_s)) + "Z",
            )
            for model in models
            for info in model.versions
        ),
    ]
    return "\n".join(table(rows)) if len(rows) > 1 else ""


def _size(n_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} B"


def _next(step: str, *, json: bool) -> None:
    if not json:
        note(f"next: {step}")
