"""What keeps boxes out of a campaign, in words."""

from collections.abc import Mapping
from typing import Final

_WORDS: Final = {
    "admission": "not admitted",
    "tags": "with other tags",
    "roster": "not on the device list",
    "silent": "never heard asking for a task since the gateway's start (off, `--learn off`, or no labelled samples)",
    "model": "with another version or variant of the model",
    "offer": "that offer nothing of the model (not there, no labelled samples of it, or no torch)",
    "samples": "with too few labelled samples",
    "health": "too hot or short of room",
    "power": "on battery",
    "metered": "on a metered link",
    "privacy": "without privacy left to spend",
}


def words(left_out: Mapping[str, int]) -> str:
    """So many boxes for each reason, the most frequent first."""
    ordered = sorted(left_out.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{n} {_WORDS.get(why, why)}" for why, n in ordered)
