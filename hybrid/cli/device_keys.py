"""`hybrid keys devices`: the list of boxes that a fleet's root vouches for in masked rounds."""

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from hybrid.cli.output import note, result
from hybrid.cli.root_keys import root_key, root_path
from hybrid.errors import Conflict, NotFound, StorageError

DEVICES = """Sign a list of boxes that may take part in masked rounds (`hybrid rounds create --secure --roster FILE`).

\b
Examples:
  hybrid keys devices $(hybrid fleet boxes ls --json | jq -r '.data.boxes[].id') --out devices.list
  hybrid keys devices 3f9a12cd5e6b7081a2b3c4d5e6f70819 --from devices.list --out devices-2.list
  hybrid keys devices --from devices-2.list --drop 3f9a12cd5e6b7081a2b3c4d5e6f70819 --out devices-3.list

Boxes that were given a list refuse rounds with a box that is not on it: so a gateway cannot invent boxes.
"""


def devices(
    out: Annotated[Path, typer.Option("--out", help="The new list; a file that is there is never overwritten.")],
    boxes: Annotated[list[str] | None, typer.Argument(metavar="[BOX]...", help="Ids of boxes, 32 hex digits.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", help="A box of --from that counts no more.", metavar="BOX")
    ] = None,
    before: Annotated[Path | None, typer.Option("--from", help="Begin with the boxes of this list.")] = None,
    sequence: Annotated[
        int | None, typer.Option("--sequence", help="Higher than any before; by default --from's and one, or 1.", min=0)
    ] = None,
    root: Annotated[Path | None, typer.Option("--root", help="The root key; by default root.key.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Sign a list of boxes that may take part in masked rounds."""
    from hybrid.artifact.durable import write_atomically
    from hybrid.artifact.signature import public_key_of
    from hybrid.federated.secure.device_list import listed, opened

    key = root_key(root or root_path())
    root_sha256 = hashlib.sha256(public_key_of(key)).digest()
    old = opened(_read(before), root_sha256) if before is not None else None
    kept = set(old.box_ids) if old is not None else set()
    for box_id in drop or []:
        if box_id.lower() not in kept:
            raise NotFound(f"{box_id[:80]!r} is no box of the list that --from names")
        kept.remove(box_id.lower())
    if out.exists():
        raise Conflict(f"{out}: there is a file already; name another one with --out")
    number = sequence if sequence is not None else (old.sequence + 1 if old is not None else 1)
    envelope = listed(key, kept | {box_id.lower() for box_id in boxes or []}, number)
    made = opened(envelope, root_sha256)
    write_atomically(out, envelope)
    data = {"path": out, "sequence": made.sequence, "root_sha256": root_sha256.hex(), "boxes": sorted(made.box_ids)}
    result(data, f"{out}: sequence {made.sequence}, {len(made.box_ids)} boxes", json=json)
    if not json:
        note(f"next: hybrid rounds create MODEL --secure --roster {out}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(f"{path}: no such list of devices") from exc
    except OSError as exc:
        raise StorageError(f"{path}: {exc.strerror or exc}", path=str(path)) from exc
