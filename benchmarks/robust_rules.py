"""What each rule of aggregation makes of a hundred devices with unlike data, a fifth of them hostile.

No sockets and no clock: forms, gates and rules are the library's, devices are a loop. Nothing here is a bar: the table
shows what a rule costs where nobody attacks, and which attacks it does not see.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.cascade import data_folder
from benchmarks.federated_parts.attackers import (
    ATTACKS,
    COLUMNS,
    LAYOUT,
    N_ATTACKERS,
    N_DEVICES,
    N_ROUNDS,
    RULES,
    Curve,
    curve,
)
from benchmarks.report import Record, publish

CACHE: Final = Path(__file__).resolve().parent.parent / ".cache"


def record(curves: Sequence[Curve]) -> Record:
    """The table."""
    n_seeds = len(curves[0].outcomes)
    return Record(
        name="robust_rules",
        claim="Robust rules help against coarse attacks, cost accuracy without one, and do not see careful ones",
        method=(
            f"Fashion-MNIST (60,000 and 10,000 images), {N_DEVICES} virtual devices, Dirichlet 0.1, a 784-32-10 network"
            f" ({LAYOUT.n_elements:,} weights), one epoch a round, {N_ROUNDS} rounds of all devices, uniform weights,"
            f" plain step, the gates on. {N_ATTACKERS} devices attack: *turned labels*: they train on 9 - label;"
            " *reversed*: they send -3 times what they learned; *a little*: all send the mean of their honest updates"
            " less one standard deviation of each coordinate (Baruch 2019). Rules are told the right share. Test"
            f" accuracy in %, medians of {n_seeds} seeds; refused: updates that the gates refused, in all rounds."
        ),
        seed=0,
        columns=COLUMNS,
        rows=[each.row() for each in curves],
    )


def main() -> int:
    """Every rule under every attack: ten seconds or so for each seed and pair."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    n_seeds = parser.parse_args().seeds
    folder = data_folder(CACHE)
    curves = []
    for attack in ATTACKS:
        for rule in RULES:
            curves.append(curve(folder, attack, rule, range(n_seeds)))
            print(*curves[-1].row(), file=sys.stderr, flush=True)
    return publish(record(curves))


if __name__ == "__main__":
    sys.exit(main())
