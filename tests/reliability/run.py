"""Plays seeds of the simulated fleet, with or without a planted bug.

PYTHONHASHSEED=0 python -m tests.reliability.run 17 --told       # one seed, and its history
PYTHONHASHSEED=0 python -m tests.reliability.run 0-999 --json    # many; one line of JSON a seed
PYTHONHASHSEED=0 python -m tests.reliability.run 0-999 --bug NAME --until-found
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence

from tests.reliability.planted import BUGS, planted
from tests.reliability.swarm import FAULTS
from tests.reliability.world import Outcome, play


def command(seed: int, bug: str = "") -> str:
    """What replays a seed."""
    return f"PYTHONHASHSEED=0 python -m tests.reliability.run {seed}" + (f" --bug '{bug}'" if bug else "") + " --told"


def seeds(text: str) -> range:
    """`7` or `0-999`."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def tell(outcome: Outcome, bug: str, *, as_json: bool, told: bool) -> None:
    """What came of one seed."""
    if as_json:
        facts = {
            "seed": outcome.seed,
            "digest": outcome.digest,
            "broken": outcome.broken,
            "n_events": len(outcome.history.events),
            "virtual_s": round(outcome.virtual_s, 1),
            "faults": outcome.faults,
            "n_faults": Counter(event.what for event in outcome.history.of(*FAULTS)),
        }
        print(json.dumps(facts), flush=True)
        return
    if told:
        print("\n".join(map(str, outcome.history.events)))
    if told or outcome.broken:
        print(f"seed {outcome.seed}: {outcome.digest}, {len(outcome.history.events)} events, {outcome.faults}")
        for line in outcome.broken[:20]:
            print(f"  {line}")
    if outcome.broken:
        print(f"  replay: {command(outcome.seed, bug)}", flush=True)


def main(words: Sequence[str]) -> int:
    """Play them; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", type=seeds)
    parser.add_argument("--bug", choices=sorted(BUGS), default="")
    parser.add_argument("--until-found", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--told", action="store_true")
    chosen = parser.parse_args(words)
    logging.disable(logging.CRITICAL)
    is_broken = False
    with planted(chosen.bug):
        for seed in chosen.seeds:
            outcome = play(seed)
            tell(outcome, chosen.bug, as_json=chosen.json, told=chosen.told)
            is_broken |= bool(outcome.broken)
            if is_broken and chosen.until_found:
                break
    return int(is_broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
