"""The session's own scheduler as a policy of the simulation: the same object, told the same events."""

from dataclasses import replace
from typing import Final

from hybrid.cost.energy import GENERIC_POWER, Power
from hybrid.schedule.beliefs import Decision
from hybrid.schedule.prices import Prices
from hybrid.schedule.prospect import Constraints
from hybrid.schedule.scheduler import Scheduler
from hybrid.schedule.standing import Standing
from hybrid.simulation.policy import Conduct, Load, Move, Reply
from hybrid.simulation.work import Work

URL: Final = "sim://gateway"

UNCONSTRAINED: Final = Constraints()

TRY_RATIO: Final = 4.0
"""Ways that are expected to take longer than so many times the local seconds are not tried."""

EPOCH_S: Final = 1000.0
"""Added to the virtual clock: a monotonic clock of a machine never shows 0, and 0 means `never` in some places."""


class Scheduled:
    """Decides by `hybrid.schedule.scheduler.Scheduler`, which learns the link by `hybrid.cost.link.LinkEstimate`.

    Args:
        work: the ways, as profiled.
        prices: of the objective.
        power: of the device, modelled.
        constraints: what plans must keep.
        deadline_s: of each request.
        n_cores: of the device.
        congestion: control of its connection, as a session reads it from its socket.
        seed: of the breaker's jitter.
    """

    name = "hybrid"
    conduct = Conduct()

    def __init__(
        self,
        work: Work,
        prices: Prices,
        *,
        power: Power = GENERIC_POWER,
        constraints: Constraints = UNCONSTRAINED,
        deadline_s: float | None = None,
        n_cores: int = 4,
        congestion: str = "",
        seed: int = 0,
    ) -> None:
        self._constraints, self._deadline_s = constraints, deadline_s
        self.standing = Standing(seed=seed)
        self.standing.link.paced(congestion)
        self.scheduler = Scheduler(prices, power=power, n_cores=n_cores)
        self.scheduler.profile_local(work.local_s)
        self.scheduler.put_gateways({URL: self.standing})
        self.scheduler.put_prospects([replace(prospect, gateway=URL) for prospect in work.prospects[1:]])
        self._trials = _trials(work)
        self._down: tuple[str, ...] = ()

    def choose(self, now_s: float, load: Load) -> Move:
        """The scheduler's decision."""
        now_s += EPOCH_S
        decision = self.scheduler.decide(
            now_s,
            constraints=self._constraints,
            deadline_left_s=self._deadline_s,
            n_device_runs=load.n_device_runs,
            n_in_flight=load.n_in_flight,
            down=self._down,
        )
        if decision.index:
            self.standing.breaker.sent(now_s)
        return Move(decision.index, decision.hedge_s, decision.predicted_s, decision, decision.is_switch)

    def probe(self, now_s: float) -> Move | None:
        """At first the trials that the ways of every cut must pass, later what the scheduler asks for."""
        if self._down:
            return None
        while self._trials and now_s < 0:
            if self._could_win(self._trials[-1], now_s + EPOCH_S):
                return Move(self._trials[-1], why=Decision(index=self._trials[-1]))
            self._trials.pop()
        due = self.scheduler.probe_due(now_s + EPOCH_S, constraints=self._constraints, down=self._down)
        if due is None:
            return None
        self.standing.breaker.sent(now_s + EPOCH_S)
        return Move(due.index, why=due.decision)

    def _could_win(self, index: int, now_s: float) -> bool:
        """Whether a trial tells more than how full it makes the link; as a session asks before it makes one."""
        prospect, local_s = self.scheduler.table.prospects[index], self.scheduler.local_s or 0.0
        network_s = self.standing.link.view.transfer_s(prospect.bytes_up, prospect.bytes_down, now_s)
        expected_s = (prospect.head_s or 0.0) + prospect.encode_s + (prospect.tail_s or 0.0) + (network_s or 0.0)
        return expected_s < TRY_RATIO * local_s

    def local_done(self, now_s: float, seconds: float, *, is_beside_attempt: bool) -> None:
        """The device's own speed, and what an attempt takes from it."""
        self.scheduler.observe_local(seconds, now_s + EPOCH_S, is_beside_attempt=is_beside_attempt)

    def remote_done(self, now_s: float, move: Move, reply: Reply) -> None:
        """First the link learns from the transfer, as in the transport; then the scheduler."""
        now_s += EPOCH_S
        if self._trials and now_s < EPOCH_S and move.prospect == self._trials[-1]:
            self._trials.pop()
        prospect = self.scheduler.table.prospects[move.prospect]
        self.standing.link.observe_transfer(
            int(reply.bytes_up),
            int(reply.bytes_down),
            reply.network_s,
            now_s,
            reply.receive_s,
            reply_s=reply.reply_s,
        )
        if prospect.head_s and reply.head_s > prospect.encode_s:
            self.scheduler.observe_head(prospect, reply.head_s - prospect.encode_s, now_s)
        assert isinstance(move.why, Decision)
        self.scheduler.observe_remote(
            move.why, prospect, reply.total_s, queue_s=reply.queue_s, tail_s=reply.compute_s, now_s=now_s
        )

    def remote_failed(self, now_s: float, move: Move, after_s: float) -> None:  # noqa: ARG002
        """Counted against the gateway."""
        self.scheduler.observe_failure(self.scheduler.table.prospects[move.prospect], now_s + EPOCH_S)

    def remote_cancelled(self, now_s: float, move: Move, after_s: float, acked_bytes: float) -> None:
        """It would have taken longer than that."""
        assert isinstance(move.why, Decision)
        prospect = self.scheduler.table.prospects[move.prospect]
        self.scheduler.observe_cut_short(move.why, prospect, after_s, int(acked_bytes), now_s + EPOCH_S)

    def upload_settled(self, now_s: float, n_bytes: float, network_s: float) -> None:
        """A sample of the rate, as in the transport."""
        self.standing.link.observe_settled(int(n_bytes), network_s, now_s + EPOCH_S)

    def answered(self, now_s: float, move: Move, total_s: float) -> None:  # noqa: ARG002
        """How good the prediction was."""
        assert isinstance(move.why, Decision)
        self.scheduler.observe_answer(move.why, total_s)

    def connection(self, now_s: float, *, is_up: bool) -> None:
        """What the transport knows of its connection."""
        self._down = () if is_up else (URL,)
        if is_up:
            self.standing.reconnected(now_s + EPOCH_S)

    def round_trip(self, now_s: float, rtt_s: float) -> None:
        """A heartbeat."""
        self.standing.link.observe_rtt(rtt_s, now_s + EPOCH_S)


def _trials(work: Work) -> list[int]:
    """The lightest lossless way of each cut, the whole input last in the list and so first in time."""
    lightest: dict[str, int] = {}
    for at, prospect in enumerate(work.prospects):
        if prospect.placement != "local" and prospect.accuracy_drop == 0:
            known = lightest.get(prospect.cut)
            if known is None or prospect.bytes_up < work.prospects[known].bytes_up:
                lightest[prospect.cut] = at
    return sorted(lightest.values(), reverse=True)
