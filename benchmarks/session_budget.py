"""Which sessions should leave memory first: what least-recently-used costs beside the gateway's own order.

Sizes and opening times are those of real sessions, the whole models and the tails of a part of their weights; requests
are drawn with popularities that drift. What counts is the time spent opening sessions again.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.report import Bar, Record, publish
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import EngineSettings, open_engine
from hybrid.serving.engines.session_cache import worth
from tests import zoo

MODELS = ("minilm", "ppocr_cls", "ppocr_rec", "ppocr_det", "squeezenet", "efficientnet", "magika", "resnet50")
SHARES = (1.0, 0.6, 0.3, 0.1)
BUDGETS = (0.2, 0.4, 0.7)


@dataclass(slots=True)
class Item:
    """One session that requests ask for."""

    n_bytes: float
    opened_s: float
    n_uses: int = 0
    clock: float = 0.0
    last: int = 0


def measured() -> list[tuple[float, float]]:
    """Bytes and opening seconds of real sessions."""
    found: list[tuple[float, float]] = []
    for name in MODELS:
        path = zoo.path(name)
        session = open_engine(path, EngineSettings(n_intra_threads=1), facts_of(path))
        found += [(session.n_bytes * share, session.opened_s * share) for share in SHARES]
    return found


def requests(n_items: int, n: int, random: np.random.Generator) -> np.ndarray:
    """Items asked for: Zipf popularity over an order that changes every so often."""
    weights = 1.0 / np.arange(1, n_items + 1) ** 0.9
    weights /= weights.sum()
    order = random.permutation(n_items)
    found = []
    for _ in range(n // 500):
        a, b = random.integers(n_items, size=2)
        order[a], order[b] = order[b], order[a]
        found.append(order[random.choice(n_items, size=500, p=weights)])
    return np.concatenate(found)


def opening_s(
    parts: list[tuple[float, float]], asked: np.ndarray, budget: float, rank: Callable[[Item, float], float]
) -> float:
    """Seconds spent opening sessions under a budget when the lowest rank leaves first."""
    items = [Item(*part) for part in parts]
    kept: set[int] = set()
    held, clock, spent_s = 0.0, 0.0, 0.0
    for now, number in enumerate(asked):
        item = items[number]
        if number not in kept:
            spent_s += item.opened_s
            while kept and held + item.n_bytes > budget:
                leaving = min(kept, key=lambda known: rank(items[known], clock))
                clock = max(clock, rank(items[leaving], clock))
                items[leaving].n_uses //= 2
                held -= items[leaving].n_bytes
                kept.remove(leaving)
            kept.add(number)
            held += item.n_bytes
        item.n_uses += 1
        item.last, item.clock = now, clock
    return spent_s


def main() -> int:
    """Measure, publish, and exit 1 where a bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=20_000, help="requests of one stream")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--quick", action="store_true", help="a short stream")
    given = arguments.parse_args()
    n = 2_000 if given.quick else given.n
    parts = measured()
    rows: list[list[str | float]] = []
    for share in BUDGETS:
        budget = share * sum(n_bytes for n_bytes, _ in parts)
        both: list[tuple[float, float]] = []
        for seed in range(given.seed, given.seed + 5):
            asked = requests(len(parts), n, np.random.default_rng(seed))
            lru_s = opening_s(parts, asked, budget, lambda item, _: item.last)
            ours_s = opening_s(
                parts, asked, budget, lambda item, _: worth(item.clock, item.n_uses, item.opened_s, item.n_bytes)
            )
            both.append((lru_s, ours_s))
        lru, ours = (statistics.median(pair[side] for pair in both) for side in (0, 1))
        rows.append([f"{share:.0%} of all", lru, ours, statistics.median(b / a for a, b in both)])
    return publish(
        Record(
            name="session_budget",
            claim="Sessions leave memory by what they are worth, not by when they were used last",
            method=f"Sizes and opening times of {len(MODELS)} real sessions and of shares of them; {n} requests, five "
            "streams with drifting Zipf popularity, medians; the policy is the gateway's own function.",
            seed=given.seed,
            columns=["budget", "LRU: s opening", "worth: s opening", "x LRU"],
            rows=rows,
            bars=[
                Bar(
                    name="time opening sessions, worst budget, against LRU",
                    measured=max(float(r[3]) for r in rows),
                    limit=1.0,
                )
            ],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
