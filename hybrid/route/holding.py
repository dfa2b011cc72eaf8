"""A gateway that holds the model of a route: what it said of itself for one shape key."""

from collections.abc import Collection

from hybrid.errors import Forbidden, LinkError, Overloaded, Unauthenticated, Warming
from hybrid.schedule.sum_of_parts import GatewayView
from hybrid.transport.client import GatewayClient


class Holding:
    """A gateway that holds the model: its profile for one shape key.

    Attributes:
        client: the way there.
        whole_s: seconds of the whole model there, None while it is not timed.
        tails: seconds of each tail by cut id, None where it is not timed; a cut that is missing does not exist there.
        codecs: names of those that it decodes; it is sent nothing else.
        splits: digests of those splits of the model's artifacts by whose decoders it decodes too.
    """

    def __init__(
        self,
        client: GatewayClient,
        whole_s: float | None,
        tails: dict[str, float | None],
        codecs: Collection[str],
        splits: Collection[str] = (),
    ) -> None:
        self.client = client
        self.whole_s = whole_s
        self.tails = tails
        self.codecs = frozenset(codecs)
        self.splits = frozenset(splits)

    def view(self, now_s: float) -> GatewayView | None:
        """What may be believed of it now; None while it is down or nothing may be sent there."""
        standing = self.client.standing
        if self.client.state != "ready" or not standing.breaker.allows(now_s):
            return None
        return GatewayView(link=self.client.link.view, queue_s=standing.queue_s(now_s))


def is_gateways_fault(exc: Exception) -> bool:
    """Whether a failed attempt says something of the gateway or the way there, and not of the request."""
    return isinstance(exc, LinkError | TimeoutError | Overloaded | Warming | Unauthenticated | Forbidden)
