"""When the device should start beside a remote answer that is on its way: the hedge time of least expected cost.

Design: the remote time is a handful of equally likely seconds and a probability of never. The expected cost as a
function of the hedge time is then piecewise linear, so one walk over its corners finds the exact minimum; no search,
no tolerance.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Race(NamedTuple):
    """What a hedge is computed from; all seconds count from the departure of the request.

    Attributes:
        remote_s: equally likely seconds of the remote answer, ascending.
        rest_s: device seconds that finish the request alone.
        failure_ratio: probability that the remote answer never comes.
        time_price: cost of a second of waiting.
        work_price: cost of a second of computing on the device beside it.
        latest_s: the hedge starts at the latest then (patience, or what a deadline leaves).
    """

    remote_s: Sequence[float]
    rest_s: float
    failure_ratio: float
    time_price: float
    work_price: float
    latest_s: float


def expected_cost(race: Race, hedge_s: float) -> float:
    """Expected cost from departure on of a hedge at that time.

    `E[time_price * min(R, H + L) + work_price * min(max(R - H, 0), L)]` over the remote seconds R, where R is infinite
    with the probability of failure.
    """
    done_s = hedge_s + race.rest_s
    sum_cost = 0.0
    for remote_s in race.remote_s:
        if remote_s <= hedge_s:
            sum_cost += race.time_price * remote_s
        else:
            waited_s = min(remote_s, done_s)
            sum_cost += race.time_price * waited_s + race.work_price * (waited_s - hedge_s)
    failed = race.time_price * done_s + race.work_price * race.rest_s
    return (1 - race.failure_ratio) * sum_cost / len(race.remote_s) + race.failure_ratio * failed


def best_hedge(race: Race) -> tuple[float, float]:
    """The hedge time of least expected cost in [0, latest_s], the earliest one of several, and that cost.

    Going up from 0, the cost's slope changes only where the hedge time passes R (nothing is wasted on that one any
    more) and R - L (the remote answer would now come before the device's).
    """
    rest_s, latest_s, times = race.rest_s, max(0.0, race.latest_s), race.remote_s
    weight = (1 - race.failure_ratio) / len(times)
    up = race.failure_ratio * race.time_price
    gain = weight * race.work_price
    if up >= gain * len(times) or latest_s <= 0.0:
        return 0.0, expected_cost(
            race, 0.0
        )  # the slope never becomes negative: waiting buys nothing; or there is no time
    if times[-1] <= rest_s:
        # The device would win no point: the cost falls while the work that is saved outweighs the failures.
        n_left = int(up / gain)
        hedge_s = min(times[len(times) - n_left - 1], latest_s)
        return hedge_s, expected_cost(race, hedge_s)
    n_remote = bisect_right(times, rest_s)  # points that the remote side wins though the hedge had started...
    n_device = len(times) - n_remote  # ...and that the device wins
    corners = sorted([(remote_s, False) for remote_s in times] + [(t - rest_s, True) for t in times[n_remote:]])
    here = expected_cost(race, 0.0)
    best_s, best, at_s, cost = 0.0, here, 0.0, here
    pay = weight * race.time_price
    for corner_s, is_overtaking in corners:
        next_s = min(corner_s, latest_s)
        cost += (up + pay * n_device - gain * n_remote) * (next_s - at_s)
        at_s = next_s
        if cost < best - 1e-15:
            best_s, best = at_s, cost
        if corner_s >= latest_s:
            break
        if is_overtaking:
            n_device -= 1
            n_remote += 1
        else:
            n_remote -= 1
    return best_s, best
