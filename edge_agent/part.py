"""What the agent asks of each of its parts: to work until it is told to stop, and to tell how it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that keeps the agent from a promise.

    Attributes:
        code: of docs/errors.md, or of `hybrid agent doctor`.
        what: what was seen, for people.
        do: what to do about it.
        blocks: whether the agent is not ready because of it.
    """

    code: str
    what: str
    do: str
    blocks: bool = False


class Part(Protocol):
    """A part of the agent that lives as long as the agent does.

    A part is made without waiting for anything (its constructor reads small files at most); the agent then runs it in
    its task group. What it needs is handed to its constructor.
    """

    @property
    def name(self) -> str:
        """One word, under which its status stands."""
        ...

    async def run(self) -> None:
        """Work until cancelled. What it raises is logged, shown as a problem, and it is run again after a pause."""
        ...

    def problems(self) -> Sequence[Problem]:
        """What is wrong now; from memory, it is asked with every look at the agent's health."""
        ...

    def status(self) -> object:
        """How it is, as anything that msgspec encodes; from memory."""
        ...
