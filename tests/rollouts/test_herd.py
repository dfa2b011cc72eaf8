"""A thousand boxes after an outage, and after one order for all of them: the rules of polling alone, second by second.

The same with real agents and the real gateway on a virtual clock: benchmarks/reliability and tests/reliability.
"""

import heapq
import random
from collections import Counter

from cloud_gateway.fleet.steering.herd import HerdLimits

N = 1000


def outage(seed: int, n: int, outage_s: float) -> tuple[int, float]:
    """Peak arrivals a second after the gateway is back, and when 95 % of the boxes are served; from its return on."""
    rng = random.Random(seed)
    limits = HerdLimits()
    pause_s = limits.poll_after_s(n)
    is_waiting = 300.0 / (300.0 + pause_s / 2.0)  # of a box that is told nothing: its call waits, and breaks at once
    calls = [(0.0 if rng.random() < is_waiting else rng.random() * pause_s, box, 1.0) for box in range(n)]
    heapq.heapify(calls)
    arrivals, served = Counter(), []
    while calls:
        at_s, box, bound_s = heapq.heappop(calls)
        if at_s < outage_s:
            heapq.heappush(calls, (at_s + rng.random() * bound_s, box, min(60.0, 2 * bound_s)))
        else:
            arrivals[int(at_s - outage_s)] += 1
            served.append(at_s - outage_s)
    return max(arrivals.values()), sorted(served)[int(0.95 * n) - 1]


def test_after_an_outage_boxes_come_back_soon_and_in_no_crowd():
    found = [outage(seed, N, 30.0) for seed in range(5)]
    assert max(peak for peak, _ in found) <= 0.10 * N
    assert max(back_s for _, back_s in found) < 60.0


def test_an_order_for_all_brings_few_a_second():
    rng = random.Random(1)
    for n in (200, 1000, 10_000):
        bound_s = HerdLimits().poll_after_s(n)
        arrivals = Counter(int(rng.random() * bound_s) for _ in range(n))
        assert max(arrivals.values()) <= max(0.10 * n, 40)
        assert max(arrivals.values()) <= 100
