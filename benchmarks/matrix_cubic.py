"""The matrix under cubic instead of BBR, for its first device: how much of the figures is the congestion control's.

    python benchmarks/matrix_cubic.py [--kept DIR]

Figures: benchmarks/results/matrix_cubic.json; the table: docs/benchmarks.md.
"""

import argparse
import json
import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.matrix import rounded, run_beside  # noqa: E402
from benchmarks.report import HEAD, PAGE, RESULTS, _placed, this_machine  # noqa: E402
from hybrid.bench import tables  # noqa: E402
from hybrid.bench.contest import Kept, contest, fingerprint  # noqa: E402
from hybrid.bench.matrix import cells_of, narrowed, read  # noqa: E402
from hybrid.bench.shelf import shelved  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=Path, default=ROOT / ".cache" / "matrix_cubic", help="finished cells are kept")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    whole, parts = read(), shelved()
    matrix = narrowed(whole, {"devices": whole.devices[:1]})
    matrix = msgspec.structs.replace(matrix, congestion="cubic", front_s_per_j=())
    mark = fingerprint(matrix, parts, ["foresight"])
    kept = Kept(given.kept / "cells.jsonl")
    places = cells_of(matrix, parts)
    run_beside(matrix, places, kept, mark, n_processes=given.processes, policies=["foresight"])
    found = contest(matrix, (place.build() for place in places), kept, mark, policies=["foresight"])
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"matrix": matrix, "machine": this_machine(), "cells": found}
    text = json.dumps(rounded(msgspec.to_builtins(record)), separators=(",", ":"))
    (RESULTS / "matrix_cubic.json").write_text(text + "\n", encoding="utf-8")
    said_of = (
        f"The {len(found)} cells of {matrix.devices[0]} once more, with cubic at both ends (slow start after idle time,"
        " small windows under loss); all else is as above. Cells that hold each bar (median, worst):"
    )
    block = ["## The matrix under cubic", said_of, tables.at_a_glance(found)]
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else HEAD
    PAGE.write_text(_placed(page, "matrix_cubic", "\n\n".join(block)), encoding="utf-8")
    bars = [bar for cell in found for objective in cell.objectives for bar in objective.bars]
    return int(not all(bar.held for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
