"""`hybrid keys root` and `hybrid keys delegate`: a fleet's root key, and whom it vouches for."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hybrid.cli.output import note, result
from hybrid.errors import Conflict, NotFound, StorageError

if TYPE_CHECKING:
    from hybrid.fleet.trust_bundle import DelegatedKey, TrustBundle, TrustRole

ROOT_NAME: Final = "root.key"

DELEGATE = """Sign a bundle of the keys that a fleet's boxes shall believe; it replaces the one before.

\b
Examples:
  hybrid keys delegate --publisher $(hybrid keys show) --out trust.json
  hybrid keys delegate --from trust.json --publisher KEY=team-b --rounds KEY=rounds --out trust-2.json
  hybrid keys delegate --from trust-2.json --drop KEYID --out trust-3.json

A key that is not in the newest bundle was revoked. Hand the bundle out with `hybrid fleet trust set FILE`.
"""

root_app = typer.Typer(
    no_args_is_help=True,
    help="""The root key of a fleet. Keep it offline: whoever holds it decides what boxes install.

    \b
    Examples:
      hybrid keys root create
      hybrid keys root create /media/stick/root.key
      hybrid keys root show
    """,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
File = Annotated[Path | None, typer.Argument(help="By default root.key among your settings.", metavar="[FILE]")]


@root_app.command("create")
def create(file: File = None, json: Json = False) -> None:
    """Make a root key that only you can read; one that is there is never overwritten."""
    from hybrid.artifact.publishers import create_key

    path = file or root_path()
    public_key = create_key(path)
    data = {"path": path, "public_key": public_key.hex(), "sha256": hashlib.sha256(public_key).hexdigest()}
    result(data, f"{public_key.hex()}  {path}", json=json)
    if not json:
        note("keep this file offline and safe: without it no key of the fleet can be changed")
        note("next: hybrid keys delegate --publisher $(hybrid keys show) --out trust.json")


@root_app.command("show")
def show(file: File = None, json: Json = False) -> None:
    """Print the public half of a root key and its fingerprint."""
    from hybrid.artifact.signature import public_key_of

    path = file or root_path()
    public_key = public_key_of(root_key(path))
    data = {"path": path, "public_key": public_key.hex(), "sha256": hashlib.sha256(public_key).hexdigest()}
    result(data, f"{public_key.hex()}\nfingerprint {data['sha256']}", json=json)


def delegate(
    out: Annotated[Path, typer.Option("--out", help="The new bundle; a file that is there is never overwritten.")],
    publisher: Annotated[
        list[str] | None, typer.Option("--publisher", help="KEY or KEY=NAME: may sign any model.", metavar="KEY")
    ] = None,
    rounds: Annotated[
        list[str] | None, typer.Option("--rounds", help="KEY or KEY=NAME: may sign what rounds learn.", metavar="KEY")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", help="A key, or its id, of --from that counts no more.", metavar="KEY")
    ] = None,
    before: Annotated[Path | None, typer.Option("--from", help="Begin with the keys of this bundle.")] = None,
    sequence: Annotated[
        int | None, typer.Option("--sequence", help="Higher than any before; by default --from's and one, or 1.", min=0)
    ] = None,
    root: Annotated[Path | None, typer.Option("--root", help="The root key; by default root.key.")] = None,
    json: Json = False,
) -> None:
    """Sign a bundle of the keys that a fleet's boxes shall believe; it replaces the one before."""
    from hybrid.artifact.durable import write_atomically
    from hybrid.fleet.trust_bundle import delegate as sign_bundle
    from hybrid.fleet.trust_bundle import opened_by_own_root

    key = root_key(root or root_path())
    old = _bundle(before, key) if before is not None else None
    kept = _kept(old, drop or [])
    added = [*_keys(publisher or [], "publisher"), *_keys(rounds or [], "rounds")]
    chosen = tuple({(one.public_key, one.role): one for one in (*kept, *added)}.values())
    if out.exists():
        raise Conflict(f"{out}: there is a file already; name another one with --out")
    number = sequence if sequence is not None else (old.sequence + 1 if old is not None else 1)
    envelope = sign_bundle(key, chosen, number)
    write_atomically(out, envelope)
    bundle = opened_by_own_root(envelope)
    data = {"path": out, "sequence": bundle.sequence, "root_sha256": bundle.root_sha256.hex(), "keys": bundle.keys}
    result(data, f"{out}: sequence {bundle.sequence}, {len(bundle.keys)} keys", json=json)
    if not json:
        if not bundle.keys:
            note("it names no keys: boxes that take it install nothing new")
        note(f"next: hybrid fleet trust set {out}")


def root_path() -> Path:
    """Where a root key lies by default."""
    from hybrid.artifact.publishers import config_dir

    return config_dir() / ROOT_NAME


def root_key(path: Path) -> bytes:
    """The root's private key, 32 raw bytes. Raises `NotFound`."""
    from hybrid.artifact.publishers import read_key

    try:
        return read_key(path)
    except NotFound as exc:
        raise NotFound(
            f"{path}: no root key there; name it with --root, or make one with `hybrid keys root create`",
            advice="Name the root key's file, or make one: hybrid keys root create.",
        ) from exc


def _bundle(path: Path, root_private_key: bytes) -> "TrustBundle":
    from hybrid.artifact.signature import public_key_of
    from hybrid.fleet.trust_bundle import opened

    try:
        envelope = path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(f"{path}: no such trust bundle") from exc
    except OSError as exc:
        raise StorageError(f"{path}: {exc.strerror or exc}", path=str(path)) from exc
    return opened(envelope, hashlib.sha256(public_key_of(root_private_key)).digest())


def _keys(words: list[str], role: "TrustRole") -> "list[DelegatedKey]":
    from hybrid.artifact.publishers import parse_public_key
    from hybrid.fleet.trust_bundle import DelegatedKey

    found = []
    for word in words:
        text, _, name = word.partition("=")
        found.append(DelegatedKey(public_key=parse_public_key(text.lower()).hex(), role=role, name=name))
    return found


def _kept(old: "TrustBundle | None", drop: list[str]) -> "tuple[DelegatedKey, ...]":
    from hybrid.artifact.signature import key_id

    if old is None:
        if drop:
            raise typer.BadParameter("there is nothing to drop from: name the bundle before with --from")
        return ()
    names = {key.public_key: {key.public_key, key_id(bytes.fromhex(key.public_key))} for key in old.keys}
    for word in drop:
        if not any(word.lower() in words for words in names.values()):
            raise NotFound(f"{word[:80]!r} is no key of that bundle; give a public key or its id")
    gone = {word.lower() for word in drop}
    return tuple(key for key in old.keys if not names[key.public_key] & gone)
