"""`hybrid keys`: the key that you sign with, and the publishers whose signatures this machine trusts."""

from pathlib import Path
from typing import Annotated

import typer

from hybrid.cli.device_keys import DEVICES, devices
from hybrid.cli.output import note, result
from hybrid.cli.root_keys import DELEGATE, delegate, root_app
from hybrid.cli.table import table

app = typer.Typer(
    no_args_is_help=True,
    help="""Keys of publishers: who signs calibrations and artifacts, and whose word sessions of this user take.

    \b
    Examples:
      hybrid keys create
      hybrid keys show
      hybrid keys trust 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29 --name team
      hybrid keys ls
      hybrid keys root create
      hybrid keys delegate --publisher KEY --out trust.json
      hybrid keys devices BOX... --out devices.list
    """,
)
app.add_typer(root_app, name="root")
app.command("delegate", help=DELEGATE)(delegate)
app.command("devices", help=DEVICES)(devices)

NEW = """Make a private key that only you can read; one that is there is never overwritten.

\b
Examples:
  hybrid keys create
  hybrid keys create team.key
"""

SHOW = """Print the public half of a private key.

\b
Examples:
  hybrid keys show
  hybrid keys show team.key
"""

TRUST = """Take a publisher's word from now on: its calibrations permit lossy codecs, also in sessions that are open.

\b
Examples:
  hybrid keys trust $(hybrid keys show team.key) --name team
  hybrid keys trust 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29
"""

LS = """List the publishers that sessions of this user trust, and where the trust comes from.

\b
Example:
  hybrid keys ls
"""

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
File = Annotated[Path | None, typer.Argument(help="By default your own key.", metavar="[FILE]")]


@app.command("new", help=NEW, hidden=True)
@app.command("create", help=NEW)
def new(file: File = None, json: Json = False) -> None:
    """Make a private key that only you can read; one that is there is never overwritten."""
    from hybrid.artifact.publishers import create_key, own_key_path
    from hybrid.artifact.signature import key_id

    path = file or own_key_path()
    public_key = create_key(path)
    data = {"path": path, "public_key": public_key.hex(), "key_id": key_id(public_key)}
    result(data, f"{public_key.hex()}  {path}", json=json)
    if not json:
        note(f"next: hybrid keys trust {public_key.hex()}    # on each machine that shall take its word")
        note("for a fleet of boxes, a root names whom they believe: hybrid keys root create")


@app.command("show", help=SHOW)
def show(file: File = None, json: Json = False) -> None:
    """Print the public half of a private key."""
    from hybrid.artifact.publishers import own_key_path, read_key
    from hybrid.artifact.signature import key_id, public_key_of

    path = file or own_key_path()
    public_key = public_key_of(read_key(path))
    data = {"path": path, "public_key": public_key.hex(), "key_id": key_id(public_key)}
    result(data, public_key.hex(), json=json)


@app.command("trust", help=TRUST)
def trust(
    public_key: Annotated[str, typer.Argument(help="64 hex digits, as `hybrid keys show` prints.", metavar="KEY")],
    name: Annotated[str, typer.Option("--name", help="Whose it is, for people.")] = "",
    json: Json = False,
) -> None:
    """Take a publisher's word from now on: its calibrations permit lossy codecs, also in sessions that are open."""
    from hybrid.artifact.publishers import TRUSTED_NAME, config_dir, parse_public_key
    from hybrid.artifact.publishers import trust as trust_key
    from hybrid.artifact.signature import key_id

    raw = parse_public_key(public_key)
    is_new = trust_key(raw, name)
    path = config_dir() / TRUSTED_NAME
    text = f"trusted: {key_id(raw)}" if is_new else f"{key_id(raw)} is trusted already"
    result({"key_id": key_id(raw), "is_new": is_new, "path": path}, text, json=json)


@app.command("ls", help=LS)
def ls(json: Json = False) -> None:
    """List the publishers that sessions of this user trust, and where the trust comes from."""
    from hybrid.artifact.publishers import publishers

    known = publishers()
    rows = [{"key_id": p.key_id, "public_key": p.public_key.hex(), "origin": p.origin} for p in known]
    headings = ("key_id", "public_key", "origin")
    text = "\n".join(table([("key", "public key", "from"), *([row[name] for name in headings] for row in rows)]))
    result({"publishers": rows}, text if rows else "nobody is trusted", json=json)
    if not rows and not json:
        note("next: hybrid keys create")
