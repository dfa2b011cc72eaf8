"""`hybrid devices`: the machines and links of the catalog, with the source of every figure."""

import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid.cli.output import note, result
from hybrid.cli.table import columns, hanging, table, wrapped

if TYPE_CHECKING:
    from devices.device import Device
    from devices.link_class import LinkClass

app = typer.Typer(
    invoke_without_command=True,
    help="""Machines and links that the lab, the simulation and the energy model know, each figure with its source.

    \b
    Examples:
      hybrid devices
      hybrid devices show rpi-4b
      hybrid devices show lte --json
    """,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, with the sources.")]

_SLOWDOWN = "slowdown: seconds of one core over those of one core of an {}, for the same float32 model."
_RATES = "rates: medians, bit/s; weak, out: share of the time below half and a twentieth of that; outage: mean length."
_MACHINE_HEADINGS = ("machine", "what it is", "cores", "memory", "engines", "slowdown", "idle W", "active W", "links")
_LINK_HEADINGS = ("link", "what it is", "up", "down", "rtt", "jitter", "loss", "weak", "out", "outage")


@app.callback()
def listed(context: typer.Context, json: Json = False) -> None:
    """List the catalog: machines, the slowest first, and links, the fastest first."""
    if context.invoked_subcommand is not None:
        return
    from devices.catalog.load import devices, link_classes
    from devices.device import REFERENCE_CORE

    machines, links = devices(), link_classes()
    text = "\n".join([
        *table([_MACHINE_HEADINGS, *(_machine_row(one) for one in machines)]),
        "",
        *table([_LINK_HEADINGS, *(_link_row(one) for one in links)]),
        "",
        *wrapped(_SLOWDOWN.format(REFERENCE_CORE)),
        *wrapped(_RATES),
    ])  # fmt: skip
    result({"devices": machines, "links": links}, text, json=json)
    if not json:
        note("next: hybrid devices show rpi-4b    # every figure with its source")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Of a machine or a link, or a TOML file of your own.", metavar="NAME")],
    json: Json = False,
) -> None:
    """Show one machine or link with the source of every figure."""
    from devices.catalog.load import device, link_class, names

    if name in names("links"):
        link = link_class(name)
        result(link, _described(link), json=json)
    elif name in names("devices"):
        machine = device(name)
        result(machine, _described(machine), json=json)
    else:
        own = _own(name)
        result(own, _described(own), json=json)


def _own(path: str) -> "Device | LinkClass":
    """What a user's file describes: a link has an uplink.

    Raises:
        CatalogUnknown: no such name and no such file.
        CatalogInvalid: the file describes neither.
    """
    from pathlib import Path

    from devices.catalog.load import device, link_class, names
    from devices.errors import CatalogUnknown

    if not Path(path).is_file():
        known = ", ".join((*names("devices"), *names("links")))
        raise CatalogUnknown(f"no machine and no link is called {path!r} and no file is there; there are {known}")
    has_uplink = "[up]" in Path(path).read_text(encoding="utf-8", errors="replace")
    return link_class(path) if has_uplink else device(path)


def _machine_row(one: "Device") -> tuple[str, ...]:
    return (
        one.name,
        one.title,
        str(one.n_cores),
        _bytes(one.memory_bytes),
        " ".join(one.engines),
        f"{one.slowdown_ratio:g}",
        f"{one.idle_w:g}",
        f"{one.active_w:g}",
        " ".join(one.links),
    )


def _link_row(one: "LinkClass") -> tuple[str, ...]:
    states = {state.name: state for state in one.states}
    out = states.get("outage")
    return (
        one.name,
        one.title,
        _rate(one.up_bps),
        _rate(one.down_bps),
        f"{1e3 * one.rtt_s:g} ms",
        f"{1e3 * one.jitter_s:g} ms",
        f"{one.loss_ratio:.1%}",
        f"{states['weak'].share_ratio:.0%}" if "weak" in states else "-",
        "-" if out is None else f"{out.share_ratio:.1%}",
        "-" if out is None else f"{out.mean_s:g} s",
    )


def _described(one: "Device | LinkClass") -> str:
    """Every figure on a line, and where it is from."""
    lines = [one.title, ""]
    rows = [(name, value) for field in fields(one) for name, value in _figures(field.name, getattr(one, field.name))]
    width, room = max(len(name) for name, _ in rows), columns() or sys.maxsize
    sources = {figure: at for at, source in enumerate(one.sources, 1) for figure in source.figures}
    for name, value in rows:
        at = sources.get(name) or sources.get(name.rpartition(".")[0]) or sources.get(name.split(".")[0])
        lines += hanging(f"{name:<{width}}  ", value + (f"  [{at}]" if at else ""), room, width + 2)
    lines.append("")
    for at, source in enumerate(one.sources, 1):
        named = "an estimate" if source.is_estimate else f"{source.title}, {source.url}"
        lines += hanging(f"[{at}] ", named, room, 4) + hanging("    ", source.note, room, 4)
    return "\n".join(lines)


def _figures(name: str, value: Any) -> list[tuple[str, str]]:
    """A field as lines: what it holds, or what is inside it."""
    if name in {"title", "sources", "name", "recognised_by"} or value is None:
        return []
    if name == "radios":
        return [(f"{name}.{interface}", _inside(radio)) for interface, radio in value]
    if name == "states":
        return [(f"{name}.{state.name}", f"{state.share_ratio:.1%} of the time, {state.mean_s:g} s") for state in value]
    if name in {"up", "down"}:
        return [(name, _inside(value))]
    if name == "memory_bytes":
        return [(name, f"{value} ({_bytes(value)})")]
    return [(name, " ".join(value) if isinstance(value, tuple) else str(value))]


def _inside(value: Any) -> str:
    return ", ".join(f"{field.name} {getattr(value, field.name):g}" for field in fields(value))


def _bytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:g} GiB"


def _rate(bps: float) -> str:
    return f"{bps / 1e6:.3g}M"
