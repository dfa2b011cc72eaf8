"""From a request's feeds to a message, and from the reply to the outputs: what is done on each attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from compression.codecs.affine import Levels
from hybrid.errors import PlanError, TensorMismatch
from hybrid.route.levels import Crossed, run_head
from hybrid.route.way import Head, Rest, Way
from hybrid.wire.message import InferRequest, InferResponse, OutputRequest
from hybrid.wire.split_coding import SplitCoder
from hybrid.wire.tensor import Tensor

COMPRESSED_REPLY_BYTES = 16 * 1024
"""Replies from this size on come back losslessly encoded where the request went encoded: both sides pay it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headed:
    """What this device has computed of a request when the rest departs.

    Attributes:
        crossing: what crosses, by name.
        kept: outputs that the head already gave, by name.
        head_s: seconds of the head.
        rest: what goes on from it here; None where the device would begin anew.
        held: what that goes on from, as the head gave it: no codec has touched it.
        coder: encodes what crosses, where a split of the artifact does; None where codecs do.
    """

    crossing: Crossed
    kept: dict[str, np.ndarray]
    head_s: float
    rest: Rest | None = None
    held: Mapping[str, np.ndarray] = field(default_factory=dict)
    coder: SplitCoder | None = None


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


def headed(way: Way, feeds: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Headed:
    """Runs the head, if the way has one.

    Args:
        way: a way of this request's shape key.
        feeds: the model's inputs by name.
        wanted: names of the outputs that the caller wants.

    Raises:
        PlanError: the head was closed meanwhile.
    """
    if not way.prospect.cut:
        return Headed(crossing=feeds, kept={}, head_s=0.0)
    head = way.crossing.head
    if head is None:
        raise PlanError(f"the head of cut {way.prospect.cut} was closed meanwhile", cut=way.prospect.cut)
    rest = way.crossing.rest
    started_s = perf_counter()
    crossing, kept = run_head(head, feeds, way.prospect.codec, (*wanted, *rest.inputs) if rest is not None else wanted)
    head_s = perf_counter() - started_s
    held = {name: kept[name] if name in kept else feeds[name] for name in rest.inputs} if rest is not None else {}
    return Headed(crossing=crossing, kept=kept, head_s=head_s, rest=rest, held=held, coder=head.coder)


def gone_on(here: Headed, wanted: Sequence[str], run_options: object = None) -> list[np.ndarray]:
    """The outputs, computed here from what the head left.

    Args:
        here: what it left, with a rest.
        wanted: names of the outputs that the caller wants.
        run_options: onnxruntime's, to end the run early.

    Raises:
        PlanError: nothing here goes on from it.
    """
    if here.rest is None:
        raise PlanError("nothing is open here that goes on from the head's activation; compute from the inputs")
    found = dict(here.kept)
    left = [name for name in wanted if name not in found]
    if left:
        found |= zip(left, here.rest.run(left, here.held, run_options), strict=True)
    return [found[name] for name in wanted]


def outgoing(
    way: Way,
    here: Headed,
    wanted: Sequence[str],
    *,
    model_digest: str,
    shape_key: str,
    deadline_s: float | None,
    traceparent: str,
    hops: int = 0,
) -> Outgoing:
    """Encodes what crosses and builds the message.

    Args:
        way: a way of this request's shape key.
        here: what its head gave.
        wanted: names of the outputs that the caller wants.
        model_digest: digest of the model on this side.
        shape_key: text of the request's shape key.
        deadline_s: seconds that the gateway has, None for no limit.
        traceparent: W3C trace context of the caller, or an empty string.
        hops: how many services pass it on, the one that sends it included.
    """
    started_s = perf_counter()
    prospect, kept = way.prospect, here.kept
    tensors = encoded(here.crossing, prospect.codec, here.coder)
    encoded_s = perf_counter()
    compress_reply = prospect.codec != "none" and prospect.reply_bytes >= COMPRESSED_REPLY_BYTES
    request = InferRequest(
        inputs=tensors,
        outputs=tuple(OutputRequest(name=name) for name in wanted if name not in kept),
        model_digest=model_digest,
        shape_key=shape_key,
        cut=prospect.cut,
        split=here.coder.named if here.coder is not None else "",
        output_codec="lossless" if compress_reply else "none",
        deadline_s=deadline_s,
        hops=hops,
        traceparent=traceparent,
    )
    return Outgoing(
        request=request,
        wanted=tuple(wanted),
        kept={name: kept[name] for name in wanted if name in kept},
        head_s=here.head_s,
        encode_s=encoded_s - started_s,
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


def computed_by(
    head: Head, feeds: Mapping[str, np.ndarray], run_options: object = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What crosses, and all that the head computed, by name."""
    arrays = head.run(head.computed, {name: feeds[name] for name in head.inputs}, run_options)
    computed = dict(zip(head.computed, arrays, strict=True))
    return {name: computed[name] if name in computed else feeds[name] for name in head.crossing}, computed


def encoded(crossing: Crossed, codec: str, coder: SplitCoder | None = None) -> tuple[Tensor, ...]:
    """The crossing tensors; one that the codec cannot carry (a state beside an image) goes raw.

    Args:
        crossing: what crosses.
        codec: how it is encoded.
        coder: encodes it in place of the codec.

    Raises:
        TensorMismatch: levels of something that is not finite.
    """
    if coder is not None:
        return coder.encoded({name: array for name, array in crossing.items() if isinstance(array, np.ndarray)})
    return tuple(_encoded(name, array, codec) for name, array in crossing.items())


def _encoded(name: str, array: np.ndarray | Levels, codec: str) -> Tensor:
    if isinstance(array, Levels):
        return Tensor.of_levels(name, array, codec)
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
