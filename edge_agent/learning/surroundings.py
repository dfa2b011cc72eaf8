"""What learning needs of the agent around it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from edge_agent.samples.shelf import SampleShelf
from edge_agent.trust.identity import BoxKey
from hybrid.federated.calls import RoundCalls

FEATURE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """See the module.

    Attributes:
        calls: of rounds.
        put_blob: of the fleet's calls; brings updates that are too large for a message.
        gateway: names the one that this box belongs to; empty while it belongs to none.
        epoch: of the installation.
        samples: the shelf that holds them.
        rng: of pauses.
        key: the box's; None while it belongs nowhere.
        root_sha256: of the fleet's root, which signs lists of devices; empty without.
        is_away: whether calls wait, since the gateway cannot be reached.
        feature_bytes: that samples may take in memory while they are learned from.
    """

    calls: RoundCalls
    put_blob: Callable[[str, bytes], Awaitable[None]]
    gateway: Callable[[], str]
    epoch: Callable[[], str]
    samples: SampleShelf
    rng: Random
    key: Callable[[], BoxKey | None] = lambda: None
    root_sha256: Callable[[], bytes] = bytes
    is_away: Callable[[], bool] = lambda: False
    feature_bytes: int = FEATURE_BYTES
