"""`hybrid models export` and `import`: versions as one file, for boxes and gateways without a network."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from hybrid.artifact.cache import cache_dir
from hybrid.artifact.names import BUNDLE_SUFFIX
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json, ask_registry, check_label, showing
from hybrid.errors import Conflict, Forbidden, HybridError, NotFound, StorageError

if TYPE_CHECKING:
    from hybrid.artifact.folder import Artifact
    from hybrid.transport.registry_client import RegistryClient

_T = TypeVar("_T")

EXPORT_HELP = """Write a version into one file: the model, its signature, and whose signatures its fleet believes.

\b
Examples:
  hybrid models export detector:3 --out detector-3.hybrid
  hybrid models export detector --out /media/usb/ --json

Carry the file to a box (`hybrid agent import FILE`) or to another gateway (`hybrid models import FILE`).
"""

IMPORT_HELP = """Bring a version from a file into a gateway; run again, an interrupted import goes on.

\b
Examples:
  hybrid models import detector-3.hybrid
  hybrid models import detector-3.hybrid --gateway https://plant-4:8700 --json
"""

TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="HYBRID_TOKEN", show_envvar=True, help="Of the gateway.")
]


class _Trust(msgspec.Struct):
    envelope: str = ""


def export_bundle(
    model: Annotated[str, typer.Argument(help="Without VERSION the newest.", metavar="NAME[:VERSION]")],
    out: Annotated[Path, typer.Option("--out", help="The file to write, or a folder for it.", metavar="FILE")],
    trust: Annotated[
        Path | None,
        typer.Option("--trust", help="A trust bundle to take along; else the gateway's.", metavar="FILE"),
    ] = None,
    gateway: Gateway = "auto",
    token: TokenOption = None,
    json: Json = False,
) -> None:
    """See `EXPORT_HELP`."""
    from hybrid.artifact.bundle import pack_bundle
    from hybrid.artifact.folder import verify
    from hybrid.transport.model_pull import pull

    name, _, version = model.partition(":")
    check_label(name, version or None)
    given = _read(trust) if trust is not None else None
    with showing(f"pulling {model}") as begin:

        async def work(client: "RegistryClient") -> "tuple[Artifact, bytes | None, str]":
            artifact = await pull(client, name, version or None, cache_dir(), begin=begin)
            kept, why = (given, "") if given is not None else await _gateways_trust(client)
            return artifact, kept, why

        artifact, envelope, why = ask_registry(gateway, token, work)
    verify(artifact)
    destination = out / f"{name}-{artifact.manifest.version}{BUNDLE_SUFFIX}" if out.is_dir() else out
    pack_bundle(artifact, envelope, destination)
    told = {
        "name": name,
        "version": artifact.manifest.version,
        "artifact_digest": artifact.digest,
        "signed_by": artifact.signature.key_id if artifact.signature is not None else None,
        "has_trust": envelope is not None,
        "path": destination,
        "size_bytes": destination.stat().st_size,
    }
    result(told, str(destination), json=json)
    if json:
        return
    if artifact.signature is None:
        note("it is not signed: a box of a fleet with a root refuses it; push it with --sign first")
    if envelope is None:
        note(f"no trust bundle is in it ({why}); a box checks the signature with the keys that it has")
    note(f"next: hybrid agent import {destination.name}   (on the box)")


def import_bundle(
    file: Annotated[Path, typer.Argument(help="As `hybrid models export` wrote it.", metavar="FILE")],
    gateway: Gateway = "auto",
    token: TokenOption = None,
    json: Json = False,
) -> None:
    """See `IMPORT_HELP`."""
    from hybrid.artifact.bundle import trust_in
    from hybrid.artifact.opening import open_artifact
    from hybrid.transport.attachments_along import bring
    from hybrid.transport.model_push import Pushed, PushOptions, push

    envelope = trust_in(file)
    manifest = open_artifact(file).manifest
    with showing(f"pushing {file.name}") as begin:

        async def work(client: "RegistryClient") -> tuple[Pushed, str]:
            pushed = await push(client, file, manifest.name, PushOptions(), begin=begin)
            if pushed.folder is not None:
                await bring(client, pushed.version.model_digest, [pushed.folder])
            return pushed, await _hand_over(client, envelope)

        pushed, trust = ask_registry(gateway, token, work)
    info = pushed.version
    label = f"{info.name}:{info.version}"
    data = {"model": info, "is_new": pushed.is_new, "sent_bytes": pushed.sent_bytes, "trust": trust}
    result(data, f"imported {label}" if pushed.is_new else f"{label} is there already; nothing changed", json=json)
    if not json:
        if trust:
            note(f"trust bundle: {trust}")
        note(f"next: hybrid fleet assign {label}")


async def _gateways_trust(client: "RegistryClient") -> tuple[bytes | None, str]:
    """The trust bundle that the gateway hands out, or why it cannot be had."""
    from hybrid.transport.fleet_paths import ADMIN_TRUST_PATH

    try:
        told = msgspec.json.decode(await client.get(ADMIN_TRUST_PATH), type=_Trust)
    except Forbidden:
        return None, "the token may not read it; give an administrator's, or --trust FILE"
    except NotFound:
        return None, "the gateway has no fleet"
    return (base64.b64decode(told.envelope), "") if told.envelope else (None, "the fleet has none")


async def _hand_over(client: "RegistryClient", envelope: bytes | None) -> str:
    """Give a trust bundle to the gateway, which takes a newer one of its own root; what became of it."""
    from hybrid.transport.fleet_paths import ADMIN_TRUST_PATH

    if envelope is None:
        return ""
    try:
        await client.post(ADMIN_TRUST_PATH, envelope)
    except Conflict:
        return "the gateway has one that is as new"
    except HybridError as exc:
        return f"not taken ({exc})"
    return "taken"


def _read(path: Path) -> bytes:
    from hybrid.fleet.trust_bundle import opened_by_own_root

    try:
        envelope = path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(f"{path}: no such file; make one with `hybrid keys delegate`") from exc
    except OSError as exc:
        raise StorageError(f"{path}: {exc.strerror or exc}", path=str(path)) from exc
    opened_by_own_root(envelope)
    return envelope
