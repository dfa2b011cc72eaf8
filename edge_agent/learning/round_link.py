"""The calls of rounds over the box's one link: they wait while another part knocks at a gateway that is away."""

from edge_agent.trust.one_knock import OneKnock
from hybrid.federated.calls import RoundCalls
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


class KnockingRounds:
    """`RoundCalls` over other ones."""

    def __init__(self, calls: RoundCalls, knock: OneKnock) -> None:
        self._calls, self._knock = calls, knock

    async def task(self, call: TaskCall) -> TaskAnswer:
        """See `RoundCalls`."""
        return await self._knock.in_turn(lambda: self._calls.task(call))

    async def weights(self, campaign: str, step: int, have: int) -> Weights:
        """See `RoundCalls`."""
        return await self._knock.in_turn(lambda: self._calls.weights(campaign, step, have))

    async def update(self, call: UpdateCall) -> UpdateAnswer:
        """See `RoundCalls`."""
        return await self._knock.in_turn(lambda: self._calls.update(call))

    async def evaluation(self, call: EvaluationCall) -> EvaluationAnswer:
        """See `RoundCalls`."""
        return await self._knock.in_turn(lambda: self._calls.evaluation(call))

    async def secure(self, call: SecureCall) -> SecureAnswer:
        """See `RoundCalls`."""
        return await self._knock.in_turn(lambda: self._calls.secure(call))
