"""A box whose runs are good, and installations on it until they have come to an end."""

from collections.abc import Callable

from tests.install.box_lab import TRIAL, Box, Fleet, Made, Shelf, live
from tests.reliability.page_cache import Image


def good(box: Box) -> None:
    box.host.n_good_a_look = 1


def ended(*phases: str) -> Callable[[Box], bool]:
    return lambda box: box.told().phase in phases


def install(image: Image, shelf: Shelf, fleet: Fleet, made: Made, until: Callable[[Box], bool], **other: object) -> Box:
    prepare = other.pop("prepare", good)
    return live(image, shelf, fleet.trust(), made.assigned(trial=TRIAL), until=until, prepare=prepare, **other)  # type: ignore[arg-type]
