"""What a gateway says of a model and a shape key: whether it holds it, its cuts, their seconds."""

from typing import Literal

import msgspec

from hybrid.errors import HybridError, ProtocolError
from hybrid.transport.client import GatewayClient

ASK_TIMEOUT_S = 10.0
FIRST_CODECS = ("none", "lossless", "fp16", "jpeg")
"""What a gateway decodes that does not say so: those before gateways said it."""


class Tail(msgspec.Struct, frozen=True):
    """A cut that a gateway has, and the seconds of its tail where they are measured."""

    id: str
    tail_s: float | None = None


class Offer(msgspec.Struct, frozen=True):
    """A gateway's answer to `POST /v2/hybrid/prepare`; `splits` are digests of those whose decoders it holds."""

    state: Literal["ready", "preparing", "unknown"]
    cuts: tuple[Tail, ...] = ()
    whole_s: float | None = None
    codecs: tuple[str, ...] = FIRST_CODECS
    splits: tuple[str, ...] = ()


def ask(client: GatewayClient, model_digest: str, shape_key: str) -> Offer:
    """The gateway's offer; blocks.

    Raises:
        HybridError: it did not answer, or not with an offer.
    """
    body = {"model_digest": model_digest, "shape_key": shape_key}
    try:
        answer = client.post_json("/v2/hybrid/prepare", body, timeout_s=ASK_TIMEOUT_S).result(ASK_TIMEOUT_S + 1)
        return msgspec.convert(answer, Offer)
    except msgspec.ValidationError as exc:
        raise ProtocolError(f"the gateway's offer is not understood ({exc}); is it of another version?") from exc
    except TimeoutError as exc:
        if isinstance(exc, HybridError):
            raise
        raise ProtocolError("the gateway did not say what it offers in time; it will be asked again") from exc
