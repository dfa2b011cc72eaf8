"""The words of `hybrid lab run` that name a link: a name, a file, figures, or a trace."""

from dataclasses import fields
from typing import Final

import typer

from devices.lab.scenery import steps_of
from devices.link_class import LinkClass
from devices.shape import Direction, Shape, Step
from devices.trace import Trace

_DRAWN_S: Final = 600.0
"""A drawn trace is this long and then begins anew."""

_BOTH: Final = tuple(field.name for field in fields(Direction) if field.name not in {"rate_bps", "delay_s", "open"})
_FIGURES: Final = ("rate_bps", "up_bps", "down_bps", "rtt_s", *_BOTH)


def link_and_steps(
    link: str | None, trace: str | None, seed: int
) -> tuple[Shape | LinkClass | None, tuple[Step, ...], float, str | None]:
    """The link at first, the steps to play (none without a trace), how long they are in seconds, and their name.

    Args:
        link: a name of the catalog, a TOML file, or figures such as `up_bps=5e6,rtt_s=0.06`; None for no limits.
        trace: a CSV or JSON file, `draw` for one that is drawn from the link's statistics, or None.
        seed: of a drawn trace.

    Raises:
        CatalogUnknown: no link of that name.
        TraceInvalid: no such trace.
        BadParameter: figures that are none, or nothing to draw from.
    """
    from pathlib import Path

    found = None if link is None else figures(link) if "=" in link else _named(link)
    if trace is None:
        return found, (), 0.0, None
    if trace != "draw":
        played = Trace.read(Path(trace))
    elif isinstance(found, LinkClass):
        from devices.markov import draw

        played = draw(found, _DRAWN_S, seed=seed)
    else:
        raise typer.BadParameter("--trace draw needs a --link with statistics: one that `hybrid devices` lists")
    return found, steps_of(played), played.duration_s, played.name or trace


def figures(text: str) -> Shape:
    """A link by its figures: `NAME=FIGURE` with commas between them; names as in `devices.shape`.

    Raises:
        BadParameter: an unknown name, or what is no number.
        EmulationError: a figure that is out of range.
    """
    given: dict[str, float] = {}
    for word in text.split(","):
        name, _, figure = (part.strip() for part in word.partition("="))
        if name not in _FIGURES:
            raise typer.BadParameter(f"--link {word}: a link has no figure {name!r}; there are {', '.join(_FIGURES)}")
        try:
            given[name] = float(figure)
        except ValueError:
            raise typer.BadParameter(f"--link {word}: {figure!r} is no number") from None
    delay_s = given.pop("rtt_s", 0.0) / 2
    rate_bps = given.pop("rate_bps", None)
    up_bps, down_bps = given.pop("up_bps", rate_bps), given.pop("down_bps", rate_bps)
    settings: dict[str, float | int | bool] = dict(given)
    if "queue_bytes" in given:
        settings["queue_bytes"] = int(given["queue_bytes"])
    if "keep_order" in given:
        settings["keep_order"] = bool(given["keep_order"])
    return Shape(
        up=Direction(rate_bps=up_bps, delay_s=delay_s, **settings),  # type: ignore[arg-type]  # by name, as above
        down=Direction(rate_bps=down_bps, delay_s=delay_s, **settings),  # type: ignore[arg-type]
    )


def _named(name: str) -> LinkClass:
    from devices.catalog.load import link_class

    return link_class(name)
