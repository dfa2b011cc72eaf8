"""What the demo's processes say to each other, one JSON object a line."""

from typing import Final, Literal

import msgspec

Policy = Literal["device", "cloud", "hybrid"]
POLICIES: Final[tuple[Policy, ...]] = ("device", "cloud", "hybrid")


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is told at its start.

    Attributes:
        policy: `device` computes everything itself, `cloud` sends everything, `hybrid` decides for every request.
        gateway: URL of the gateway, empty for none.
        pace: how many times slower than this machine it is.
        timeout_s: seconds after which cloud-only gives an answer up.
        detector: path of the detector.
        recogniser: path of the recogniser.
        characters: path of the recogniser's classes.
        photo: path of the photo.
    """

    policy: Policy
    gateway: str
    pace: float
    timeout_s: float
    detector: str
    recogniser: str
    characters: str
    photo: str


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """How one model of an answer was computed: the fields of `RunReport` of the same names."""

    placement: str
    cut: str
    codec: str
    bytes_up: int
    bytes_down: int
    total_s: float
    fallback: str | None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The device has warmed up."""


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """One answer; times are the machine's monotonic seconds, `line` is which line of the page was read."""

    started_s: float
    ended_s: float
    line: int
    n_lines: int
    text: str
    stages: list[Stage]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """No answer: the error's code and message."""

    started_s: float
    ended_s: float
    code: str
    message: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The last word: how many answers were begun, and how many came."""

    n_started: int
    n_answered: int


Said = Ready | Answered | Failed | Done
