"""One way to answer a request through a gateway: head, encoding, message, and the reply put together again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from hybrid.cost.running import RunningEstimate
from hybrid.errors import TensorMismatch
from hybrid.schedule.planner import GatewayView, Prospect
from hybrid.transport.client import GatewayClient
from hybrid.wire.message import InferRequest, InferResponse, OutputRequest
from hybrid.wire.tensor import Tensor

EngineRun = Callable[[Sequence[str] | None, Mapping[str, np.ndarray]], list[np.ndarray]]

MAX_BACK_OFF_S = 30.0


class Holding:
    """A gateway that holds the model: its profile for one shape key, and how it has done since."""

    def __init__(self, client: GatewayClient, whole_s: float | None, tails: dict[str, float | None]) -> None:
        self.client = client
        self.whole_s = whole_s
        self.tails = tails
        self._speed = RunningEstimate()
        self._queue_s = 0.0
        self._not_before_s = 0.0
        self._n_failures = 0

    def view(self, now_s: float) -> GatewayView | None:
        """What the planner may believe of it now; None while it is down or backing off."""
        if self.client.state != "ready" or now_s < self._not_before_s:
            return None
        return GatewayView(link=self.client.link.view, speed_ratio=self._speed.value or 1.0, queue_s=self._queue_s)

    def succeeded(self, tail_s: float, profiled_s: float | None, queue_s: float, now_s: float) -> None:
        """A reply came: its compute and queue seconds."""
        self._n_failures = 0
        self._not_before_s = 0.0
        self._queue_s += 0.5 * (queue_s - self._queue_s)
        if profiled_s:
            self._speed.observe(tail_s / profiled_s, now_s)

    def failed(self, now_s: float, retry_after_s: float | None) -> None:
        """A request failed here: nothing is sent before the back-off ends (doubling from 0.25 s)."""
        self._n_failures += 1
        pause_s = min(MAX_BACK_OFF_S, 0.125 * 2**self._n_failures)
        self._not_before_s = now_s + max(pause_s, retry_after_s or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The device's part of a split.

    Attributes:
        run: the engine's run of the head model.
        inputs: names of the model's inputs that the head reads.
        crossing: names of the tensors that cross; those that the head does not compute are inputs of the model.
        computed: names that the head computes: crossing tensors and outputs of the whole model.
    """

    run: EngineRun
    inputs: tuple[str, ...]
    crossing: tuple[str, ...]
    computed: tuple[str, ...]


@dataclass(slots=True)
class Way:
    """A remote prospect with what it needs to run; `verified` once a composed inference matched the whole model."""

    prospect: Prospect
    holding: Holding
    head: Head | None = None
    verified: bool = False
    encoded_bytes: RunningEstimate = field(default_factory=RunningEstimate)


@dataclass(slots=True, kw_only=True)
class Outgoing:
    """A request on its way, and what stays here until the reply comes."""

    request: InferRequest
    wanted: tuple[str, ...]
    kept: dict[str, np.ndarray]
    head_s: float
    encode_s: float
    bytes_up: int
    sent_s: float


def outgoing(
    way: Way,
    feeds: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    *,
    model_digest: str,
    shape_key: str,
    deadline_s: float | None,
    traceparent: str,
) -> Outgoing:
    """Runs the head, encodes what crosses and builds the message.

    Args:
        way: a way of this request's shape key.
        feeds: the model's inputs by name.
        wanted: names of the outputs that the caller wants.
        model_digest: digest of the model on this side.
        shape_key: text of the request's shape key.
        deadline_s: seconds that the gateway has, None for no limit.
        traceparent: W3C trace context of the caller, or an empty string.
    """
    started_s = perf_counter()
    kept: dict[str, np.ndarray] = {}
    crossing = feeds
    if way.head is not None:
        computed = way.head.run(way.head.computed, {name: feeds[name] for name in way.head.inputs})
        kept = dict(zip(way.head.computed, computed, strict=True))
        crossing = {name: kept[name] if name in kept else feeds[name] for name in way.head.crossing}
    headed_s = perf_counter()
    tensors = tuple(_encoded(name, array, way.prospect.codec) for name, array in crossing.items())
    encoded_s = perf_counter()
    request = InferRequest(
        inputs=tensors,
        outputs=tuple(OutputRequest(name=name) for name in wanted if name not in kept),
        model_digest=model_digest,
        shape_key=shape_key,
        cut=way.prospect.cut,
        deadline_s=deadline_s,
        traceparent=traceparent,
    )
    return Outgoing(
        request=request,
        wanted=tuple(wanted),
        kept={name: kept[name] for name in wanted if name in kept},
        head_s=headed_s - started_s,
        encode_s=encoded_s - headed_s,
        bytes_up=sum(len(tensor.payload) for tensor in tensors),
        sent_s=encoded_s,
    )


def assembled(sent: Outgoing, response: InferResponse) -> list[np.ndarray]:
    """The outputs in the caller's order, as onnxruntime would return them.

    Raises:
        TensorMismatch: the reply lacks an output.
    """
    found = dict(sent.kept)
    for tensor in response.outputs:
        array = tensor.to_array()
        found[tensor.spec.name] = _as_text(array) if tensor.spec.dtype == "BYTES" else array
    missing = [name for name in sent.wanted if name not in found]
    if missing:
        raise TensorMismatch(f"the gateway's reply lacks output {missing[0]}; it holds {', '.join(found) or 'none'}")
    return [found[name] for name in sent.wanted]


def _encoded(name: str, array: np.ndarray, codec: str) -> Tensor:
    """One crossing tensor; a codec that cannot carry it (a state beside an image) leaves it raw."""
    if codec != "none":
        try:
            return Tensor.of(name, array, codec)
        except TensorMismatch:
            pass
    return Tensor.of(name, array)


def _as_text(array: np.ndarray) -> np.ndarray:
    """Strings as onnxruntime returns them: an object array of str."""
    text = np.empty(array.shape, dtype=object)
    text.reshape(-1)[:] = [
        item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else item for item in array.reshape(-1)
    ]
    return text
