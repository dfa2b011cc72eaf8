"""Candidates timed on the box that they are for, by its agent."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from compression.errors import NotMeasurable
from compression.measuring import Feeds, Timing
from hybrid.artifact.digest import files_of_model
from hybrid.compress.timing.timer import DeviceTold, timing_of
from hybrid.cost.device_power import power_of, this_power
from hybrid.cost.energy import Power
from hybrid.errors import HybridError, ModelInvalid, Overloaded
from hybrid.transport.registry_client import RegistryClient, Timeouts
from hybrid.wire.timing_call import FEEDS, PATH, TimingAnswer, TimingCall, TimingFile, TimingPlace, head_of

VARIABLE: Final = "HYBRID_TOKEN"
_TIMEOUTS: Final = Timeouts(answer_s=420.0, stall_s=60.0)
_BUSY_S: Final = 120.0
_PAUSE_S: Final = 3.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnAgent:
    """Times on a box, all candidates of a call beside one another there.

    Attributes:
        url: of the box's agent.
        token: of the box, with the right to publish; None where it asks for none.
        told: what the box says of itself.
        power: of the machine of the catalog that it is; this machine's where it is none of them.
        threads: of the engine; 0 for one each core of the box.
    """

    url: str
    token: str | None = field(repr=False)
    told: DeviceTold
    power: Power
    threads: int = 0

    def __call__(self, models: Sequence[Path], feeds: Feeds) -> list[Timing]:
        """One timing a model.

        Raises:
            NotMeasurable: the box is not reachable, refuses, or cannot run one of them.
        """
        answer = _asked(self, models, feeds, wants_memory=False)
        if len(answer.seconds) != len(models):
            raise NotMeasurable(f"{self.url} answered with {len(answer.seconds)} timings for {len(models)} models")
        return [timing_of(list(seconds)) for seconds in answer.seconds]

    def memory_bytes(self, model: Path, feeds: Feeds) -> int:
        """Peak memory of a model there above an empty process; raises `NotMeasurable`."""
        return _asked(self, [model], feeds, wants_memory=True).memory_bytes

    def close(self) -> None:
        """Holds nothing."""


def on_agent(url: str, threads: int = 0) -> OnAgent:
    """The box at a URL, asked what it is; its token is in `HYBRID_TOKEN`.

    Raises:
        NotMeasurable: it is not reachable, refuses the token, or is older than timing.
    """
    token = os.environ.get(VARIABLE) or None
    answer = _called(url, token, lambda client: client.get(PATH))
    try:
        place = msgspec.json.decode(answer, type=TimingPlace)
    except msgspec.MsgspecError as exc:
        raise NotMeasurable(f"{url}: what it says of itself does not parse ({exc}); is it an agent?") from exc
    remark = f"timed on the box itself: {place.processor}, {place.n_cores} cores, {', '.join(place.engines)}"
    told = DeviceTold(name=url, kind="agent", factor=1.0, threads=threads or place.n_cores, remarks=(remark,))
    return OnAgent(url=url, token=token, told=told, power=_power(place), threads=threads)


def _power(place: TimingPlace) -> Power:
    if not place.device:
        return this_power()
    from devices.catalog.load import device

    found = device(place.device)
    return power_of(found, found.links[0] if found.links else "ethernet")


def _asked(box: OnAgent, models: Sequence[Path], feeds: Feeds, *, wants_memory: bool) -> TimingAnswer:
    packed = BytesIO()
    plain: dict[str, Any] = {
        name: np.asarray(array, str) if array.dtype == object else array for name, array in feeds.items()
    }
    np.savez(packed, **plain)
    files = [(f"{number}{path.suffix}", _in_one_piece(path)) for number, path in enumerate(models)]
    files.append((FEEDS, packed.getvalue()))
    call = TimingCall(
        files=tuple(TimingFile(name, len(data)) for name, data in files),
        threads=box.threads,
        wants_memory=wants_memory,
    )
    try:
        body = head_of(call) + b"".join(data for _, data in files)
    except HybridError as exc:
        raise NotMeasurable(f"{box.url}: these models cannot be sent to it: {exc}") from exc
    answer = _called(box.url, box.token, lambda client: client.post(PATH, body))
    try:
        return msgspec.json.decode(answer, type=TimingAnswer)
    except msgspec.MsgspecError as exc:
        raise NotMeasurable(f"{box.url}: its answer does not parse ({exc})") from exc


def _in_one_piece(path: Path) -> bytes:
    """A model as one file: what lies beside it takes the same time inside. A broken one goes as it is."""
    try:
        lies_alone = len(files_of_model(path)) == 1
    except ModelInvalid:
        lies_alone = True
    if lies_alone:
        return path.read_bytes()
    import onnx

    try:
        return bytes(onnx.load(path).SerializeToString())
    except ValueError as exc:
        raise NotMeasurable(f"{path.name} does not fit into one piece of 2 GB, as a box takes it to time") from exc


def _called(url: str, token: str | None, work: Callable[[RegistryClient], Awaitable[_T]]) -> _T:
    async def inside() -> _T:
        until_s = asyncio.get_running_loop().time() + _BUSY_S
        async with RegistryClient(url, token, timeouts=_TIMEOUTS) as client:
            while True:
                try:
                    return await work(client)
                except Overloaded:
                    if asyncio.get_running_loop().time() > until_s:
                        raise
                    await asyncio.sleep(_PAUSE_S)

    try:
        return asyncio.run(inside())
    except HybridError as exc:
        said = str(exc)
        raise NotMeasurable(said if url in said else f"{url}: {said}") from exc
