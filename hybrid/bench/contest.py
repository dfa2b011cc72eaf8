"""Runs all cells of a matrix, keeps each as soon as it is done, and goes on where it was interrupted."""

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from hybrid.bench.cell import Cell, Run, carry_out
from hybrid.bench.figures import CellFigures, figures_of
from hybrid.bench.matrix import Matrix
from hybrid.bench.parts import ModelParts
from hybrid.schedule.prices import Prices
from hybrid.simulation.scheduled import Scheduled
from hybrid.simulation.world import World

_ROOT: Final = Path(__file__).resolve().parents[1]
_RESTS_ON: Final = ("schedule", "cost", "simulation", "bench")
FRONT_TRACES: Final = ("changing",)


class Kept:
    """Figures of finished cells, one JSON line each.

    Args:
        path: the file; None keeps them in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._cells: dict[str, CellFigures] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    cell = msgspec.json.decode(line, type=CellFigures)
                except msgspec.DecodeError:
                    continue  # half a line of a run that was killed
                self._cells[cell.name] = cell

    def get(self, name: str, fingerprint: str) -> CellFigures | None:
        """A cell that was run on just the same."""
        cell = self._cells.get(name)
        return cell if cell is not None and cell.fingerprint == fingerprint else None

    def all(self, matrix: Matrix) -> list[CellFigures]:
        """Every kept cell of this matrix, in its order."""
        found = (
            self._cells.get(f"{model} / {device} / {link} / {trace}")
            for model in matrix.models
            for device in matrix.devices
            for link in matrix.links
            for trace in matrix.traces
        )
        return [cell for cell in found if cell is not None]

    def put(self, cell: CellFigures) -> None:
        """Keeps a cell."""
        self._cells[cell.name] = cell
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                # A newline first: the run before may have been killed in the middle of a line.
                file.write(b"\n" + msgspec.json.encode(cell) + b"\n")


def contest(
    matrix: Matrix,
    cells: Iterable[Cell],
    kept: Kept,
    mark: str,
    *,
    policies: Collection[str] | None = None,
    done: Callable[[CellFigures], None] = lambda _cell: None,
) -> list[CellFigures]:
    """The figures of all cells, in their order.

    Args:
        matrix: whose cells they are.
        cells: what is to be run.
        kept: where finished ones are and go.
        mark: see `fingerprint`.
        policies: names of the peers that take part, all unless given.
        done: told each finished cell.
    """
    found = []
    for cell in cells:
        figures = kept.get(f"{cell.model} / {cell.device} / {cell.link} / {cell.trace}", mark)
        if figures is None:
            runs = carry_out(
                _with_peers(cell, policies), matrix.objectives, foresight=_takes_part("foresight", policies)
            )
            is_drawn = cell.trace in FRONT_TRACES and cell.device == matrix.devices[0]
            front = front_of(cell, matrix.front_s_per_j) if is_drawn else []
            figures = figures_of(runs, mark, front)
            kept.put(figures)
        found.append(figures)
        done(figures)
    return found


def _takes_part(name: str, policies: Collection[str] | None) -> bool:
    return policies is None or name in policies


def _with_peers(cell: Cell, policies: Collection[str] | None) -> Cell:
    return replace(
        cell,
        fixed=tuple(policy for policy in cell.fixed if _takes_part(policy.name, policies)),
        elsewhere=tuple(pair for pair in cell.elsewhere if _takes_part(pair[1].name, policies)),
    )


def front_of(cell: Cell, prices: Iterable[float]) -> list[tuple[float, float, float]]:
    """The front between latency and energy: (price of a joule, mean latency in s, mean joules)."""
    found = []
    for s_per_j in prices:
        policy = Scheduled(
            cell.scene.work,
            Prices(s_per_j=s_per_j),
            power=cell.power,
            constraints=cell.constraints,
            n_cores=cell.scene.device.n_cores,
            congestion=cell.scene.link.congestion,
            seed=cell.scene.seed,
        )
        run = Run(name=policy.name, outcome=World(cell.scene, policy).run())
        latency_s, energy_j = run.outcome.latency_s, run.energy_j(cell.power)
        found.append((s_per_j, float(np.mean(latency_s)), float(np.mean(energy_j))))
    return found


def fingerprint(matrix: Matrix, parts: Iterable[ModelParts], policies: Collection[str] | None = None) -> str:
    """Changes with the matrix's settings, the parts, and every line of code that a result rests on."""
    settings = msgspec.structs.replace(matrix, models=(), devices=matrix.devices[:1], links=(), traces=())
    digest = hashlib.sha256(msgspec.json.encode((settings, sorted(policies) if policies is not None else None)))
    for one in sorted(parts, key=lambda one: one.name):
        digest.update(msgspec.json.encode(one))
    for room in _RESTS_ON:
        for file in sorted((_ROOT / room).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
