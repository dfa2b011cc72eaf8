"""Links of the catalog and traces as what a link can be set to: names, classes and traces become shapes and steps."""

from pathlib import Path

from devices.link_class import LinkClass
from devices.shape import Direction, Shape, Step
from devices.trace import Trace

_WAY_PER_RTT_DEVIATION = 1.5
"""How far either way's delay wanders, per standard deviation of the round trip.

A line between uniform draws of ±w has the variance 2/9 w²; two such ways add up to a deviation of 2/3 w.
"""


def shape_of(link: LinkClass) -> Shape:
    """The link as it is most of the time: medians, with its jitter and loss; the round trip is halved."""
    return _shape(link.up_bps, link.down_bps, link.rtt_s, link.jitter_s, link.loss_ratio)


def steps_of(trace: Trace, jitter_s: float = 0.0) -> tuple[Step, ...]:
    """A trace as steps to play. A rate of 0 is a blackhole.

    Args:
        trace: of rates, round trips and losses.
        jitter_s: standard deviation of the round trip, which a trace does not hold.
    """
    return tuple(
        Step(
            at_s=float(trace.time_s[row]),
            shape=_shape(
                float(trace.up_bps[row]),
                float(trace.down_bps[row]),
                float(trace.rtt_s[row]),
                jitter_s,
                float(trace.loss_ratio[row]),
            ),
        )
        for row in range(trace.n_points)
    )


def link_of(link: Shape | LinkClass | str | None) -> tuple[Shape, str]:
    """A link that was given in any of its forms, as shape and name; a string is a name of the catalog or a TOML file.

    Raises:
        CatalogUnknown: no link of that name.
    """
    if link is None:
        return Shape(), "no limits"
    if isinstance(link, Shape):
        return link, "as given"
    if isinstance(link, LinkClass):
        return shape_of(link), link.name
    from devices.catalog.load import link_class

    found = link_class(link)
    return shape_of(found), found.name


def steps_from(trace: Trace | Path | str) -> tuple[Step, ...]:
    """Steps of a trace, or of the CSV or JSON file that holds one.

    Raises:
        TraceInvalid: no such file, or no trace in it.
    """
    return steps_of(trace if isinstance(trace, Trace) else Trace.read(Path(trace)))


def _shape(up_bps: float, down_bps: float, rtt_s: float, jitter_s: float, loss_ratio: float) -> Shape:
    def way(rate_bps: float) -> Direction:
        return Direction(
            rate_bps=rate_bps or None,
            delay_s=rtt_s / 2,
            jitter_s=_WAY_PER_RTT_DEVIATION * jitter_s,
            loss_ratio=loss_ratio,
            open=rate_bps > 0,
        )

    return Shape(up=way(up_bps), down=way(down_bps))
