"""What a request of the inference protocol asks beyond its tensors, out of its headers and parameters."""

from collections.abc import Mapping
from math import isfinite
from typing import Final

from hybrid.errors import BadMessage
from hybrid.serving.computing import ORDINARY, Asked
from hybrid.serving.rest.message import NO_REQUEST_PARAMETERS, RequestParameters

PRIORITY_HEADER: Final = "Hybrid-Priority"
DEADLINE_HEADER: Final = "Hybrid-Deadline-S"
_HIGHEST: Final = 9


def asked_of(headers: Mapping[str, str], parameters: RequestParameters, started_s: float) -> Asked:
    """Priority and deadline of a request; a header goes before a parameter, ours before Triton's.

    Args:
        headers: of the HTTP request.
        parameters: of its JSON.
        started_s: when it came, on the clock of `time.perf_counter`.

    Raises:
        BadMessage: a priority outside 0 to 9, or a deadline that is no time.
    """
    has_header = PRIORITY_HEADER in headers or DEADLINE_HEADER in headers
    if not has_header and (parameters is NO_REQUEST_PARAMETERS or parameters == NO_REQUEST_PARAMETERS):
        return ORDINARY
    priority = _priority(headers.get(PRIORITY_HEADER), parameters)
    allowed_s = _allowed_s(headers.get(DEADLINE_HEADER), parameters)
    return Asked(priority=priority, deadline_s=None if allowed_s is None else started_s + allowed_s)


def _priority(text: str | None, parameters: RequestParameters) -> int | None:
    if text is not None:
        if not (text.isascii() and text.isdigit() and len(text) == 1):
            raise BadMessage(f"{PRIORITY_HEADER} is {text[:20]!r}; it must be 0 to 9, higher goes first")
        return int(text)
    if parameters.hybrid_priority >= 0:
        if parameters.hybrid_priority > _HIGHEST:
            raise BadMessage(f"hybrid_priority is {parameters.hybrid_priority}; it must be 0 to 9, higher goes first")
        return parameters.hybrid_priority
    if parameters.priority > 0:  # Triton's: 1 is the highest
        return max(0, _HIGHEST + 1 - parameters.priority)
    return None


def _allowed_s(text: str | None, parameters: RequestParameters) -> float | None:
    if text is None:
        allowed_s = parameters.hybrid_deadline_s or parameters.timeout * 1e-6
    else:
        try:
            allowed_s = float(text)
        except ValueError:
            raise BadMessage(f"{DEADLINE_HEADER} is {text[:20]!r}; it must be seconds, such as 0.25") from None
    if not isfinite(allowed_s) or allowed_s < 0 or (text is not None and allowed_s == 0):
        raise BadMessage(f"the deadline is {allowed_s} seconds; it must be more than 0")
    return allowed_s or None
