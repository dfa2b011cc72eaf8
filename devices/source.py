"""Where a figure comes from: a page that somebody else can read, or the plain word that it is an estimate."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The origin of figures of a machine or a link.

    Attributes:
        figures: names of the fields that are from here, such as `idle_w`; `radios.wifi.transmit_w` for one inside.
        title: of the publication, or how an estimate was made.
        url: where it can be read; "" for an estimate.
        is_estimate: True where no published figure was found: the value is reasoned, not read.
        note: what was read there, and what was computed from it.
    """

    figures: tuple[str, ...]
    title: str
    url: str = ""
    is_estimate: bool = False
    note: str = ""
