"""Traces: how a link changed over time, read from files or drawn, seeded, from the states of a link class."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from devices.errors import TraceInvalid, TraceMissing
from devices.link_class import LinkClass

COLUMNS: Final = ("time_s", "up_bps", "down_bps", "rtt_s", "loss_ratio")

Series = npt.NDArray[np.float64]


class TracePoint(NamedTuple):
    """The link at one moment: goodput each way in bit/s (0: nothing passes), round trip, packets lost each way."""

    up_bps: float
    down_bps: float
    rtt_s: float
    loss_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """A link over time, piecewise constant: row i holds from `time_s[i]` until `time_s[i + 1]`.

    Attributes:
        time_s: (n,) float64, strictly rising from 0.
        up_bps: (n,) goodput from device to gateway, bit/s; 0 is an outage.
        down_bps: (n,) goodput from gateway to device, bit/s.
        rtt_s: (n,) round trip on the idle link.
        loss_ratio: (n,) packets lost in each direction, 0 to 1.
        duration_s: where the last row ends.
        name: what the trace is of.
    """

    time_s: Series
    up_bps: Series
    down_bps: Series
    rtt_s: Series
    loss_ratio: Series
    duration_s: float
    name: str = ""

    def __post_init__(self) -> None:
        for column in COLUMNS:
            series = np.ascontiguousarray(getattr(self, column), np.float64)
            if series.ndim != 1 or series.shape != np.shape(self.time_s):
                raise TraceInvalid(f"trace {self.name!r}: {column} has shape {series.shape}; columns are equally long")
            if not np.isfinite(series).all() or (series < 0).any():
                raise TraceInvalid(f"trace {self.name!r}: {column} holds what is negative or no number")
            series = series.copy()
            series.flags.writeable = False
            object.__setattr__(self, column, series)
        if not self.n_points or self.time_s[0] != 0 or (np.diff(self.time_s) <= 0).any():
            raise TraceInvalid(f"trace {self.name!r}: time_s must begin at 0 and rise from row to row")
        if not self.duration_s > self.time_s[-1]:
            raise TraceInvalid(f"trace {self.name!r} ends at {self.duration_s} s, before its last row's own time")
        if (self.loss_ratio > 1).any():
            raise TraceInvalid(f"trace {self.name!r}: loss_ratio is a share of packets, at most 1")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        same = all(np.array_equal(getattr(self, column), getattr(other, column)) for column in COLUMNS)
        return same and self.duration_s == other.duration_s

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash

    @property
    def n_points(self) -> int:
        """Number of rows."""
        return len(self.time_s)

    def at(self, time_s: float) -> TracePoint:
        """The link at a time; after the end the trace begins anew.

        Raises:
            TraceInvalid: the time is negative.
        """
        if time_s < 0:
            raise TraceInvalid(f"a trace begins at 0 s; there is nothing at {time_s} s")
        row = int(np.searchsorted(self.time_s, time_s % self.duration_s, side="right")) - 1
        return TracePoint(
            float(self.up_bps[row]), float(self.down_bps[row]), float(self.rtt_s[row]), float(self.loss_ratio[row])
        )

    @classmethod
    def steady(cls, link: LinkClass, duration_s: float = 60.0) -> Self:
        """A link that never leaves its median."""
        return cls.of_rows([(0.0, link.up_bps, link.down_bps, link.rtt_s, link.loss_ratio)], duration_s, link.name)

    @classmethod
    def of_rows(cls, rows: list[tuple[float, float, float, float, float]], duration_s: float, name: str = "") -> Self:
        """A trace from rows of (time_s, up_bps, down_bps, rtt_s, loss_ratio)."""
        table = np.array(rows, np.float64).reshape(-1, len(COLUMNS))
        columns = dict(zip(COLUMNS, table.T, strict=True))
        return cls(**columns, duration_s=duration_s, name=name)

    def to_csv(self) -> str:
        """Comma separated, a header first; the last row repeats the last values at `duration_s`."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        rows = np.stack([getattr(self, column) for column in COLUMNS], axis=1)
        writer.writerows([[repr(float(cell)) for cell in row] for row in rows])
        writer.writerow([repr(float(self.duration_s)), *(repr(float(cell)) for cell in rows[-1][1:])])
        return out.getvalue()

    @classmethod
    def from_csv(cls, text: str, name: str = "") -> Self:
        """The trace that `to_csv` wrote; the time of the last row is where the trace ends.

        Raises:
            TraceInvalid: another header, a cell that is no number, fewer than two rows, or times that do not rise.
        """
        lines = [line for line in csv.reader(io.StringIO(text)) if line]
        if not lines or tuple(cell.strip() for cell in lines[0]) != COLUMNS:
            raise TraceInvalid(f"trace {name!r}: the first line must be {','.join(COLUMNS)}")
        try:
            rows = [tuple(float(cell) for cell in line) for line in lines[1:]]
        except ValueError as exc:
            raise TraceInvalid(f"trace {name!r}: {exc}; every cell is a number") from exc
        if len(rows) < 2 or any(len(row) != len(COLUMNS) for row in rows):
            raise TraceInvalid(f"trace {name!r}: wanted at least two rows of {len(COLUMNS)} cells; the last is the end")
        return cls.of_rows([(a, b, c, d, e) for a, b, c, d, e in rows[:-1]], rows[-1][0], name)

    def to_json(self) -> str:
        """One object: `name`, `duration_s`, and a list for each column."""
        columns = {column: getattr(self, column).tolist() for column in COLUMNS}
        return json.dumps({"name": self.name, "duration_s": self.duration_s, **columns})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The trace that `to_json` wrote.

        Raises:
            TraceInvalid: no object of that form.
        """
        try:
            data = json.loads(text)
            columns = {column: np.array(data[column], np.float64) for column in COLUMNS}
            duration_s, name = float(data["duration_s"]), str(data.get("name", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise TraceInvalid(f"no trace: {type(exc).__name__} {exc}; wanted what `to_json` writes") from exc
        return cls(**columns, duration_s=duration_s, name=name)

    @classmethod
    def read(cls, path: Path) -> Self:
        """A trace from a `.csv` or `.json` file.

        Raises:
            TraceMissing: no file there.
            TraceInvalid: no trace in it.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as exc:
            raise TraceMissing(f"there is no file {path}; a trace is a .csv or .json file") from exc
        except OSError as exc:
            raise TraceInvalid(f"trace {path}: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise TraceInvalid(f"trace {path}: {exc}") from exc
        return cls.from_json(text) if path.suffix == ".json" else cls.from_csv(text, path.stem)

    def write(self, path: Path) -> None:
        """Writes the trace in the form that the suffix says: `.json`, else CSV."""
        path.write_text(self.to_json() if path.suffix == ".json" else self.to_csv(), encoding="utf-8")
