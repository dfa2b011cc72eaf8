"""The inputs of a decision, as they are recorded: all that it rests on beside the table of prospects."""

from typing import Final

import msgspec

from hybrid.cost.energy import GENERIC_POWER, Power
from hybrid.schedule.prices import Prices
from hybrid.schedule.prospect import Constraints, Prospect

RULE: Final = 2
"""Version of the rules that decisions are made by now. 1: until a race became the default; what a record without the
field was made by."""

NO_WINDOW: Final = 1e18
"""Bytes of a connection's window that never holds a message back."""


class GatewayBelief(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of one gateway and the link to it at one moment.

    Attributes:
        url: the gateway.
        is_usable: connected, and its breaker lets requests through.
        rtt_s: round trip, None while unknown.
        uplink_bps: goodput device to gateway, None while unknown.
        downlink_bps: goodput gateway to device, None while unknown.
        up_window_bytes: what the connection may send in its first round trip (slow start); large when it never waits.
        down_window_bytes: the same for the gateway's side.
        cold_ratio: share of the textbook's slow start that this link shows.
        lasting_ratio: share of that which a request pays when its plan is kept: 1, or next to nothing where requests
            come so often that the connection stays warm.
        overhead_s: what a request takes beside the round trip and its bytes.
        backlog_s: seconds until what was cancelled has left the uplink.
        speed_ratio: running ratio of measured to profiled seconds of tails.
        queue_s: expected wait there.
        points: equally likely ratios of measured to predicted remote seconds, ascending.
        failure_ratio: share of requests that it does not answer.
        silent_s: seconds since it, or the link to it, was heard of.
        likely_ratio: how many times as fast as believed now the link is in its good moments.
    """

    url: str
    is_usable: bool = True
    rtt_s: float | None = None
    uplink_bps: float | None = None
    downlink_bps: float | None = None
    up_window_bytes: float = NO_WINDOW
    down_window_bytes: float = NO_WINDOW
    cold_ratio: float = 1.0
    lasting_ratio: float = 1.0
    overhead_s: float = 0.0
    backlog_s: float = 0.0
    speed_ratio: float = 1.0
    queue_s: float = 0.0
    points: tuple[float, ...] = (1.0,)
    failure_ratio: float = 0.005
    silent_s: float = 0.0
    likely_ratio: float = 1.0

    @property
    def s_per_byte(self) -> tuple[float, float]:
        """Seconds a byte each way; a direction that was not measured counts as the other one, 0 where neither was."""
        up_bps, down_bps = self.uplink_bps or self.downlink_bps, self.downlink_bps or self.uplink_bps
        return (8 / up_bps if up_bps else 0.0), (8 / down_bps if down_bps else 0.0)


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """All that one decision rests on, the prospects by the id of their table.

    Attributes:
        table: id of the table of prospects.
        now_s: monotonic time.
        prices: what joules and bytes are worth.
        constraints: what a plan must keep.
        power: watts of this device, modelled.
        device_speed_ratio: running ratio of measured to profiled seconds on this device.
        device_spread_ratio: its relative deviation.
        gateways: what is believed of each.
        deadline_left_s: seconds left for this request, None without a deadline.
        attempt_s: device seconds that a remote attempt takes beside its head and encoding (sending, receiving,
            cancelling): what a run on the device loses to it.
        n_cores: cores of this device: with more than one the device computes beside the encoding of the same request.
        n_device_runs: runs that compute on this device now, beside which this request would compute.
        n_in_flight: requests of this session that are under way.
        current: index of the plan in use, -1 when there is none.
        current_since_s: when it was taken.
        regret_s: cost that keeping it has added up to so far.
        saved: cost that has been saved up for learning (see `Decision.is_trial`).
        n_trials: trials since the plan in use was taken up.
        gap_s: mean seconds between requests.
        is_changed: whether something jumped since the last decision (a change point, a breaker, other prospects): the
            plan may be left at once.
        rule: version of the rules by which it is decided, so that an old record is replayed by its own.
    """

    table: str
    now_s: float
    prices: Prices = Prices()
    constraints: Constraints = Constraints()
    power: Power = GENERIC_POWER
    device_speed_ratio: float = 1.0
    device_spread_ratio: float = 0.0
    gateways: tuple[GatewayBelief, ...] = ()
    deadline_left_s: float | None = None
    attempt_s: float = 0.0
    n_cores: int = 1
    n_device_runs: int = 0
    n_in_flight: int = 0
    current: int = -1
    current_since_s: float = 0.0
    regret_s: float = 0.0
    saved: float = 0.0
    n_trials: int = 0
    gap_s: float = 0.0
    is_changed: bool = False
    rule: int = 1


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: a prospect, when to hedge it, and what is expected of it.

    Attributes:
        index: place of the chosen prospect in the table; 0 is the whole model on this device.
        hedge_s: when the device starts beside the remote answer, in seconds from departure (after head and encoding);
            0 is a race (with several cores the device starts as soon as the head is done, beside the encoding), None is
            never (a local plan, or nothing to hedge with).
        predicted_s: median of the seconds of the answer, hedge included; None where nothing is known of it.
        expected_s: mean of the same.
        latest_s: mean + k * sigma of the same, held against a deadline.
        patience_s: seconds from departure after which the remote side counts as failed.
        cost: expected cost in seconds: latency + energy * price + bytes * price.
        energy_j: modelled joules of it.
        remote_s: expected seconds from departure to the remote answer; 0 for local.
        best: index of the cheapest prospect, when the present plan was kept in spite of it.
        regret_s: see `Inputs`; what the next decision is given.
        is_switch: whether placement, cut, codec, gateway or variant differ from the present plan's.
        is_trial: whether this request takes another way than the plan in use, to learn what it is like by now.
        trial_cost: what that is expected to cost beyond the plan in use.
        inputs: what it rests on; None when it was forced.
    """

    index: int
    hedge_s: float | None = None
    predicted_s: float | None = None
    expected_s: float | None = None
    latest_s: float | None = None
    patience_s: float = 0.0
    cost: float | None = None
    energy_j: float = 0.0
    remote_s: float = 0.0
    best: int = 0
    regret_s: float = 0.0
    is_switch: bool = False
    is_trial: bool = False
    trial_cost: float = 0.0
    inputs: Inputs | None = None


class TableRecord(msgspec.Struct, frozen=True, kw_only=True, tag="table"):
    """A line of a log that names the prospects to which decisions refer by the table's id."""

    id: str
    prospects: tuple[Prospect, ...]


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, tag="decision"):
    """A line of a log: one decision with its inputs."""

    decision: Decision


LogLine = TableRecord | DecisionRecord
"""What a decision log holds, one JSON object a line; further kinds of lines are for readers to skip."""
