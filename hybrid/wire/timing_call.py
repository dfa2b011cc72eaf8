"""The call by which a box times models that are only candidates: one header, then the files, end to end.

The body is the header's length (4 bytes, the highest first), the header as JSON, and the bytes of its files in their
order. The answer has one list of seconds for each model, or the peak memory of the only one.
"""

import re
from typing import Final

import msgspec

from hybrid.errors import BadMessage, TooLarge

PATH: Final = "/v2/hybrid/timing"
FEEDS: Final = "feeds.npz"
MAX_HEADER_BYTES: Final = 64 << 10
MAX_FILES: Final = 65
MAX_BYTES: Final = 2 << 30
"""Of all files of a call together."""
MOST_BUDGET_S: Final = 60.0
_NAME: Final = re.compile(r"\d{1,3}\.(onnx|tflite)")
_LENGTH: Final = 4


class TimingFile(msgspec.Struct, frozen=True):
    """One file: a model, called `NUMBER.onnx` or `NUMBER.tflite`, or the inputs, `feeds.npz`."""

    name: str
    size: int


class TimingCall(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be timed, and how.

    Attributes:
        files: the models in their order, then the inputs.
        threads: of the engine; 0 for one each core.
        budget_s: seconds for the rounds, beyond the fewest that are run in any case.
        wants_memory: the peak memory of the only model instead of seconds.
    """

    files: tuple[TimingFile, ...]
    threads: int = 0
    budget_s: float = 2.0
    wants_memory: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(file.name for file in self.files if file.name != FEEDS)

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)


class TimingAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each run of each model, or the memory."""

    seconds: tuple[tuple[float, ...], ...] = ()
    memory_bytes: int = 0


class TimingPlace(msgspec.Struct, frozen=True, kw_only=True):
    """What times there.

    Attributes:
        processor: its name.
        n_cores: that an engine can use.
        engines: with their versions.
        device: which machine of the catalog it is; empty for none of them.
    """

    processor: str
    n_cores: int
    engines: tuple[str, ...]
    device: str = ""


def head_of(call: TimingCall) -> bytes:
    """What goes before the files; raises as `parse` does."""
    header = msgspec.json.encode(call)
    parse(header)
    return len(header).to_bytes(_LENGTH, "big") + header


def header_bytes(first: bytes) -> int:
    """The header's length, from the body's first four bytes. Raises `BadMessage`, `TooLarge`."""
    if len(first) != _LENGTH:
        raise BadMessage(f"the body ends after {len(first)} bytes; a length, a header and files are wanted")
    found = int.from_bytes(first, "big")
    if found > MAX_HEADER_BYTES:
        raise TooLarge(f"the header has {found} bytes where {MAX_HEADER_BYTES} are allowed")
    return found


def parse(header: bytes) -> TimingCall:
    """The call that a header says.

    Raises:
        BadMessage: not such a header, or it contradicts itself.
        TooLarge: more files or bytes than are taken.
    """
    try:
        call = msgspec.json.decode(header, type=TimingCall)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the header does not parse ({exc}); is the program much older or newer?") from exc
    names = [file.name for file in call.files]
    if len(set(names)) != len(names) or names.count(FEEDS) != 1 or not call.models:
        raise BadMessage(f"the files are {names[:8]}; models of different names and one {FEEDS} are wanted")
    odd = next((name for name in call.models if not _NAME.fullmatch(name)), None)
    if odd is not None:
        raise BadMessage(f"a model is called {odd[:80]!r}; NUMBER.onnx or NUMBER.tflite is wanted")
    if len(names) > MAX_FILES or min(file.size for file in call.files) < 0 or call.n_bytes > MAX_BYTES:
        raise TooLarge(f"{len(names)} files of {call.n_bytes} bytes; at most {MAX_FILES} of {MAX_BYTES} are taken")
    if not 0 <= call.threads <= 1024 or not 0 < call.budget_s <= MOST_BUDGET_S:
        raise BadMessage(f"{call.threads} threads for {call.budget_s} s; at most {MOST_BUDGET_S:g} s are given")
    if call.wants_memory and len(call.models) != 1:
        raise BadMessage(f"the memory of {len(call.models)} models at once was asked for; one is wanted")
    return call
