"""What an error code's page holds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """One code's page: three short answers."""

    what: str
    why: str
    do: str
