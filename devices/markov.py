"""Traces drawn from the statistics of a link class: a seeded Markov chain over its states.

Design: each second has a rank from 0 to 1. The state says in which stretch of ranks it lies (an outage of 5 % of the
time holds the ranks below 0.05), and within the state the rank wanders as a stationary Gaussian process that keeps the
published correlation from second to second. A rank becomes a rate by the published quantiles of either direction, with
the borders of the states among them. So shares, lengths of visits, medians and tails come out as they were published,
whatever the seed; both directions are good and bad together.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from devices.errors import TraceInvalid
from devices.link_class import OUT_BELOW_RATIO, WEAK_BELOW_RATIO, LinkClass, LinkState, Rates
from devices.trace import Trace

_TOP_RATIO: Final = 1.15
"""The fastest second over the 95th percentile; nothing is published above that."""

_WEAK_RTT_RATIO: Final = 1.5
"""An assumption: in a weak state the round trip is half as long again, by retransmissions below IP."""

_CALM_RATIO: Final = 0.9
"""Correlation of the round trip's deviation from one step to the next: queues and radios do not jump."""


def draw(link: LinkClass, duration_s: float, *, seed: int, step_s: float = 1.0) -> Trace:
    """A trace of a link of this class.

    Args:
        link: whose statistics the trace has.
        duration_s: how long it is; statistics of outages need many of them, so give minutes.
        seed: the same seed gives the same trace.
        step_s: time between two rows; statistics hold for seconds, smaller steps refine them.

    Raises:
        TraceInvalid: a duration or a step that is none.
    """
    if not (0 < step_s <= duration_s < 10_000_000):
        raise TraceInvalid(f"a trace of {duration_s} s in steps of {step_s} s is none; give a longer one")
    n_steps = round(duration_s / step_s)
    random = np.random.default_rng(seed)
    borders = _borders(link.states)
    visited = _visits(link.states, n_steps, step_s, random)
    within = _ranks(n_steps, link.persistence_ratio**step_s, random)
    low, high = borders[visited, 0], borders[visited, 1]
    shared = low + (high - low) * within
    own = low + (high - low) * _ranks(n_steps, link.persistence_ratio**step_s, random)
    down = shared + 0.5 * (own - shared) if link.states else shared  # alike, not the same
    weak = np.array([state.name != "good" for state in link.states] or [False])[visited]
    return Trace(
        time_s=np.arange(n_steps, dtype=np.float64) * step_s,
        up_bps=_rates(link.up, link.states, shared),
        down_bps=_rates(link.down, (), _evened(down, low, high)),
        rtt_s=_round_trips(link, weak, random),
        loss_ratio=np.full(n_steps, link.loss_ratio),
        duration_s=n_steps * step_s,
        name=f"{link.name} seed={seed}",
    )


def _borders(states: tuple[LinkState, ...]) -> npt.NDArray[np.float64]:
    """(n_states, 2): the ranks that each state holds; one state holds all where none is known."""
    if not states:
        return np.array([[0.0, 1.0]])
    order = sorted(range(len(states)), key=lambda at: ("outage", "weak", "good").index(states[at].name))
    borders = np.zeros((len(states), 2))
    low = 0.0
    for at in order:
        borders[at] = low, min(1.0, low + states[at].share_ratio)
        low += states[at].share_ratio
    borders[order[-1], 1] = 1.0
    return borders


def _visits(
    states: tuple[LinkState, ...], n_steps: int, step_s: float, random: np.random.Generator
) -> npt.NDArray[np.intp]:
    """(n_steps,): the state of each step. Visits are exponential, the next state follows the balance of flows."""
    if len(states) < 2:
        return np.zeros(n_steps, np.intp)
    chances = _next_state(states)
    shares = np.array([state.share_ratio for state in states])
    visited = np.empty(n_steps, np.intp)
    now, at = int(random.choice(len(states), p=shares / shares.sum())), 0
    while at < n_steps:
        leave = min(1.0, step_s / states[now].mean_s)
        length = int(random.geometric(leave))
        visited[at : at + length] = now
        at += length
        now = int(random.choice(len(states), p=chances[now]))
    return visited


def _next_state(states: tuple[LinkState, ...]) -> npt.NDArray[np.float64]:
    """(n, n): where the link goes when a visit ends, such that shares and lengths of visits are the given ones.

    A state is entered `share / mean` times a second. With three states the flow between two of them is half of what
    these two are entered more often than the third; a flow that would be negative is none.
    """
    entered = np.array([state.share_ratio / state.mean_s for state in states])
    n_states = len(states)
    flows = np.zeros((n_states, n_states))
    for one in range(n_states):
        for other in range(n_states):
            if one != other:
                rest = entered.sum() - entered[one] - entered[other]
                flows[one, other] = max(0.0, (entered[one] + entered[other] - rest) / 2)
    lonely = flows.sum(axis=1) == 0
    flows[lonely] = np.where(np.eye(n_states, dtype=bool)[lonely], 0.0, 1.0)
    chances: npt.NDArray[np.float64] = flows / flows.sum(axis=1, keepdims=True)
    return chances


def _ranks(n_steps: int, persistence_ratio: float, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """(n_steps,): uniform on 0 to 1, correlated from step to step (an AR(1) process through its own distribution)."""
    return _evened_normal(_wander(n_steps, persistence_ratio, random))


def _wander(n_steps: int, persistence_ratio: float, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """(n_steps,): a stationary Gaussian process of variance 1."""
    noise = random.standard_normal(n_steps)
    out = np.empty(n_steps)
    innovation = np.sqrt(1 - persistence_ratio**2)
    value = noise[0]
    out[0] = value
    for at in range(1, n_steps):
        value = persistence_ratio * value + innovation * noise[at]
        out[at] = value
    return out


def _evened_normal(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The normal distribution function."""
    from math import erf, sqrt

    return np.array([0.5 * (1 + erf(value / sqrt(2))) for value in values])


def _evened(
    ranks: npt.NDArray[np.float64], low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Ranks made uniform again within their states: the mean of two uniforms is not uniform.

    The triangular distribution of the sum is undone in closed form.
    """
    width = np.maximum(high - low, 1e-12)
    mean = np.clip((ranks - low) / width, 0.0, 1.0)
    even = np.where(mean < 0.5, 2 * mean**2, 1 - 2 * (1 - mean) ** 2)
    placed: npt.NDArray[np.float64] = low + width * even
    return placed


def _rates(rates: Rates, states: tuple[LinkState, ...], ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n,): the goodput of these ranks, by the quantiles that are known and straight lines between them.

    States are those of the uplink: its weak and lost seconds are told by their rate, so their borders are known too.
    """
    knots = {
        0.05: rates.p5_bps,
        0.25: rates.p25_bps,
        0.5: rates.median_bps,
        0.75: rates.p75_bps,
        0.95: rates.p95_bps,
        1.0: rates.p95_bps if rates.is_steady else _TOP_RATIO * rates.p95_bps,
        0.0: rates.p5_bps if rates.is_steady else 0.0,
    }
    for below_ratio, names in ((OUT_BELOW_RATIO, {"outage"}), (WEAK_BELOW_RATIO, {"outage", "weak"})):
        share_ratio = sum(state.share_ratio for state in states if state.name in names)
        if 0 < share_ratio < 1:
            knots[share_ratio] = below_ratio * rates.median_bps
    places = sorted(knots)
    values = np.maximum.accumulate([knots[place] for place in places])
    drawn: npt.NDArray[np.float64] = np.interp(ranks, places, values)
    return drawn


def _round_trips(link: LinkClass, weak: npt.NDArray[np.bool_], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """(n,): round trips around the median, wandering by the jitter, longer in weak states."""
    median_s = np.where(weak, _WEAK_RTT_RATIO * link.rtt_s, link.rtt_s)
    wandered = median_s + link.jitter_s * _wander(len(weak), _CALM_RATIO, random)
    return np.maximum(wandered, link.rtt_s / 2)
