"""One finding of the doctor, and the running of many within a bounded time."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at. No text holds a secret, so that the whole may be pasted anywhere.

    Attributes:
        name: what was looked at, in one or two words.
        status: PASS; WARN: something will not work or not well; FAIL: nothing works until this is mended.
        seen: what was found.
        fix: what to do; "" where there is nothing to mend.
        facts: the same for programs.
    """

    name: str
    status: Status
    seen: str
    fix: str = ""
    facts: Mapping[str, str | float | bool | None] = field(default_factory=dict)


def passed(name: str, seen: str, **facts: str | float | bool | None) -> Check:
    """All is well."""
    return Check(name=name, status="PASS", seen=seen, facts=facts)


def warned(name: str, seen: str, fix: str, **facts: str | float | bool | None) -> Check:
    """Something will not work, or not well."""
    return Check(name=name, status="WARN", seen=seen, fix=fix, facts=facts)


def failed(name: str, seen: str, fix: str, **facts: str | float | bool | None) -> Check:
    """Nothing works until this is mended."""
    return Check(name=name, status="FAIL", seen=seen, fix=fix, facts=facts)


Look = Callable[[], Check]


def run(looks: Sequence[tuple[str, Look]], *, within_s: float, done: Callable[[], None] = lambda: None) -> list[Check]:
    """All looks at once, each in a thread; one that does not end in time, or raises, is a warning.

    Args:
        looks: name and function of each.
        within_s: for all of them together.
        done: called after each.
    """
    found: dict[str, Check] = {}

    def look(name: str, act: Look) -> None:
        try:
            found[name] = act()
        except Exception as error:  # noqa: BLE001 - a look that breaks must not hide what the others see
            found[name] = warned(
                name, f"could not be looked at: {type(error).__name__}: {error}", "report this with the text above"
            )
        done()

    threads = [threading.Thread(target=look, args=pair, daemon=True) for pair in looks]
    until_s = time.monotonic() + within_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))
    late = f"no answer within {within_s:g} s"
    return [found.get(name) or warned(name, late, "look again when this machine is less busy") for name, _ in looks]
