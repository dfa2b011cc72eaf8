"""The scheduler against every other way to place a model: the whole matrix of `hybrid bench`, written into the docs.

    python benchmarks/matrix.py [--quick] [--kept DIR] [--processes N]

Figures: benchmarks/results/matrix.json; tables: docs/benchmarks.md and docs/matrix.md; pictures: docs/pictures/.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.report import HEAD, PAGE, RESULTS, _placed, this_machine  # noqa: E402
from hybrid.bench.contest import Kept, contest, fingerprint  # noqa: E402
from hybrid.bench.figures import CellFigures  # noqa: E402
from hybrid.bench.matrix import Matrix, Place, cells_of, narrowed, read  # noqa: E402
from hybrid.bench.pages import pages  # noqa: E402
from hybrid.bench.shelf import shelved  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute of each stream, one device, two links")
    parser.add_argument("--kept", type=Path, default=ROOT / ".cache" / "matrix", help="finished cells are kept here")
    parser.add_argument("--only-kept", action="store_true", help="write what is there, run nothing")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    matrix, parts = read(), shelved()
    if given.quick:
        matrix = narrowed(matrix, {"devices": ["rpi-4b"], "links": ["wifi-good", "lte"]}, quick=True)
    mark = fingerprint(matrix, parts)
    kept = Kept(given.kept / "cells.jsonl")
    if given.only_kept:
        found = kept.all(matrix)
    else:
        places = cells_of(matrix, parts)
        run_beside(matrix, places, kept, mark, n_processes=given.processes)
        found = contest(matrix, (place.build() for place in places), kept, mark)
    if given.quick:
        return 0
    made = pages(matrix, parts, found, pictures_at="pictures/")
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"matrix": matrix, "machine": this_machine(), "cells": found}
    text = json.dumps(rounded(msgspec.to_builtins(record)), separators=(",", ":"))
    (RESULTS / "matrix.json").write_text(text + "\n", encoding="utf-8")
    head = "## The scheduler against every other way to place a model\n\n"
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else HEAD
    PAGE.write_text(_placed(page, "matrix", head + made.summary), encoding="utf-8")
    (ROOT / "docs" / "matrix.md").write_text(made.every_cell, encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name, picture in made.pictures.items():
        (PICTURES / name).write_text(picture, encoding="utf-8")
    bars = [bar for cell in found for objective in cell.objectives for bar in objective.bars]
    return int(not all(bar.held for bar in bars))


def run_beside(
    matrix: Matrix,
    places: Sequence[Place],
    kept: Kept,
    mark: str,
    *,
    n_processes: int,
    policies: Sequence[str] | None = None,
) -> None:
    """Runs the cells that are not kept yet in several processes, each kept as soon as it is done."""
    missing = [place for place in places if kept.get(name_of(place), mark) is None]
    with Pool(n_processes) as pool:
        for cell in pool.imap_unordered(partial(run_one, matrix, mark, policies), missing):
            kept.put(cell)
            said(cell)


def name_of(place: Place) -> str:
    return f"{place.model.name} / {place.device.name} / {place.link.name} / {place.trace}"


def run_one(matrix: Matrix, mark: str, policies: Sequence[str] | None, place: Place) -> CellFigures:
    return contest(matrix, [place.build()], Kept(None), mark, policies=policies)[0]


def rounded(value: Any) -> Any:
    """The same with numbers of five digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def said(cell: CellFigures) -> None:
    bars = [bar for objective in cell.objectives for bar in objective.bars]
    print(f"{cell.name}: {sum(bar.held for bar in bars)} of {len(bars)} bars", flush=True)


if __name__ == "__main__":
    sys.exit(main())
