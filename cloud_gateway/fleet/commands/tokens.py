"""`hybrid fleet token`: enrolment tokens, for one box or for many."""

import re
import time
from typing import Annotated, Final

import msgspec
import typer

from cloud_gateway.fleet.admission.enrolment import EnrolmentWish, tags_text
from cloud_gateway.fleet.assignments import parse_tags
from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.transport.fleet_paths import ADMIN_TOKENS_PATH

app = typer.Typer(
    no_args_is_help=True,
    help="""Enrolment tokens: each lets one box in, or as many as it says, for as long as it says.

    \b
    Examples:
      hybrid fleet token create --no-root
      hybrid fleet token create --count 200 --expires 7d --tags site=oslo,line=2 --approve
      hybrid fleet token create --qr
      hybrid fleet token ls
      hybrid fleet token revoke rxoyhfn3
    """,
)

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class _Made(msgspec.Struct):
    id: str
    token: str


class _Listed(msgspec.Struct):
    id: str
    name: str
    n_allowed: int
    n_used: int
    expires_s: float
    tags: dict[str, str]
    approve: bool
    has_root: bool
    created_s: float
    created_by: str
    revoked_s: float | None = None

    @property
    def state(self) -> str:
        """What it is good for now."""
        if self.revoked_s is not None:
            return "revoked"
        if time.time() >= self.expires_s:
            return "expired"
        return "used up" if self.n_used >= self.n_allowed else "good"


class _List(msgspec.Struct):
    tokens: tuple[_Listed, ...]


@app.command("create")
def create(
    count: Annotated[int, typer.Option("--count", help="How many boxes it lets in.")] = 1,
    expires: Annotated[str, typer.Option("--expires", help="For how long: 90s, 30m, 24h, 7d.")] = "24h",
    tags: Annotated[str, typer.Option("--tags", help="Of its boxes: KEY=VALUE, several with commas between.")] = "",
    approve: Annotated[bool, typer.Option("--approve", help="Its boxes wait for a person's approval.")] = False,
    no_root: Annotated[
        bool, typer.Option("--no-root", help="Its boxes install what the gateway says, whoever signed it.")
    ] = False,
    url: Annotated[
        str, typer.Option("--url", help="Where boxes reach the gateway; by default as this command does.")
    ] = "",
    discover: Annotated[
        bool, typer.Option("--discover", help="No URL: boxes find the gateway on their network.")
    ] = False,
    name: Annotated[str, typer.Option("--name", help="What it is for, for people.")] = "",
    qr: Annotated[bool, typer.Option("--qr", help="Also as a QR code on the terminal.")] = False,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Make an enrolment token and print it, once: the gateway keeps only its secret's hash."""
    from yarl import URL

    from hybrid.transport.fleet_hello import is_loopback

    wish = EnrolmentWish(
        count=count,
        expires_in_s=_seconds(expires),
        tags=parse_tags(tags),
        approve=approve,
        needs_root=not no_root,
        name=name,
    )
    asker = Asker(gateway, token)
    reached = "" if discover else (url or asker.url)
    made = asker.post(ADMIN_TOKENS_PATH, msgspec.structs.replace(wish, url=reached), _Made)
    data = {"id": made.id, "token": made.token, "url": reached, "count": count, "tags": wish.tags, "approve": approve}
    drawn = f"\n{_qr(made.token)}" if qr and not json else ""
    result(data, made.token + drawn, json=json)
    if json:
        return
    if reached and is_loopback(URL(reached).host or ""):
        note(f"boxes would look for the gateway at {reached}, this very machine: name another address with --url")
    note("next, on the box: hybrid agent enroll TOKEN    (it is not shown again)")


@app.command("ls")
def ls(gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """List every enrolment token ever made, without secrets."""
    found = Asker(gateway, token).get(ADMIN_TOKENS_PATH, _List).tokens
    rows = [
        (one.id, one.state, f"{one.n_used}/{one.n_allowed}", when(one.expires_s), tags_text(one.tags) or "-",
         "yes" if one.approve else "-", "yes" if one.has_root else "none", one.name or "-")
        for one in found
    ]  # fmt: skip
    heads = ("token", "state", "used", "expires", "tags", "approve", "root", "name")
    told = [{"state": one.state} | msgspec.to_builtins(one) for one in found]
    result({"tokens": told}, "\n".join(table([heads, *rows])) if rows else "no enrolment tokens", json=json)
    if not rows and not json:
        note("next: hybrid fleet token create")


@app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `hybrid fleet token ls` shows it.")],
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """End an enrolment token at once; boxes that came with it stay."""
    path = f"{ADMIN_TOKENS_PATH}/{_word(token_id)}/revoke"
    told = Asker(gateway, token).post(path, {}, dict[str, object])
    result(told, f"revoked {token_id}; boxes that came with it stay", json=json)


def when(at_s: float) -> str:
    """A moment as people read it."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at_s)) + "Z" if at_s else "-"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text[:40]!r} is no time; write 90s, 30m, 24h or 7d", param_hint="--expires")
    return int(found[1]) * _UNITS[found[2]]


def _qr(text: str) -> str:
    from hybrid.fleet.enrolment_token import qr_lines

    try:
        return qr_lines(text)
    except ImportError:
        raise typer.BadParameter(
            "segno is not installed; install hybrid-split[gateway], or type the token", param_hint="--qr"
        ) from None


def _word(text: str) -> str:
    if not re.fullmatch(r"[a-z2-7]{1,40}", text):
        raise typer.BadParameter(f"{text[:40]!r} is no token's id; `hybrid fleet token ls` shows them")
    return text
