"""The calls of campaigns as a box sees them, so that the real link and a simulated one are the same to it."""

from typing import Protocol

from hybrid.federated.messages import (
    EvaluationAnswer,
    EvaluationCall,
    SecureAnswer,
    SecureCall,
    TaskAnswer,
    TaskCall,
    UpdateAnswer,
    UpdateCall,
    Weights,
)


class RoundCalls(Protocol):
    """What an admitted box may ask about rounds.

    Every call is bounded in time by the implementation and raises `HybridError`s only: a `LinkError` where it is
    unknown whether the gateway did it, anything else where the gateway answered. Every call may be sent again.
    """

    async def task(self, call: TaskCall) -> TaskAnswer:
        """A lease, or none."""
        ...

    async def weights(self, campaign: str, step: int, have: int) -> Weights:
        """A step's weights from the view `have` on (-1: holds none); resumed by the implementation."""
        ...

    async def update(self, call: UpdateCall) -> UpdateAnswer:
        """Bring an update; a large one was brought before, by `put_blob` of the fleet's calls."""
        ...

    async def evaluation(self, call: EvaluationCall) -> EvaluationAnswer:
        """Bring counts."""
        ...

    async def secure(self, call: SecureCall) -> SecureAnswer:
        """One stage of secure aggregation."""
        ...
