"""How a calibration reads for people: its table, what its numbers mean, where it lies, and what to do next."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from hybrid.cli.table import fits, table, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybrid.artifact.attachments import Attachment
    from hybrid.calibration.record import Calibration, Cell

HEADINGS: Final = ("cut", "codec", "bytes", "of raw", "encode ms", "decode ms", "SQNR dB", "drop", "at most", "samples")

_NARROW: Final = ("cut", "codec", "of raw", "drop", "at most")
"""What a terminal shows that is too narrow for all columns."""


def text(calibration: "Calibration") -> str:
    """The table of a calibration, and what its numbers mean."""
    if calibration.variant != "original":
        cell = calibration.cells[0]
        return (
            f"variant {calibration.variant}: {calibration.metric} drop {cell.drop:.2%}, at most {cell.drop_high:.2%} "
            f"({cell.n} samples)"
        )
    rows = [HEADINGS, *(_row(cell) for cell in calibration.cells)]
    if not fits(rows):
        rows = [tuple(row[HEADINGS.index(heading)] for heading in _NARROW) for row in rows]
    lines = table(rows)
    kind = {
        "accuracy": f"of the accuracy on the labels, which is {calibration.baseline or 0:.2%} uncompressed",
        "agreement": "share of samples whose most likely class is another one",
        "fidelity": f"share of samples whose outputs move by more than {calibration.tolerance or 0:.1%}",
    }[calibration.metric]
    return "\n".join([*lines, "", *wrapped(f"drop: {kind}; at most: upper end of its 95 % interval")])


def _row(cell: "Cell") -> tuple[str, ...]:
    return (
        cell.cut or "input",
        cell.codec,
        f"{cell.n_bytes:.0f}",
        f"{cell.n_bytes / cell.raw_bytes:.3f}" if cell.raw_bytes else "",
        f"{1e3 * cell.encode_s:.2f}",
        f"{1e3 * cell.decode_s:.2f}",
        "" if cell.sqnr_db is None else f"{cell.sqnr_db:.1f}",
        f"{cell.drop:.2%}" if cell.is_lossy else "none",
        f"{cell.drop_high:.2%}" if cell.is_lossy else "",
        str(cell.n),
    )


def remarks(calibration: "Calibration", *, is_signed: bool) -> list[str]:
    """What a reader should know before trusting the numbers."""
    from hybrid.calibration.intervals import samples_for, wilson

    least = min(cell.n for cell in calibration.cells)
    lines = []
    best = wilson(0, least)[1]
    if best > 0.01:
        lines.append(
            f"{least} samples cannot show a drop below {best:.1%}; the default max_accuracy_drop of 1 % needs "
            f"{samples_for(0.01)} without a change"
        )
    if calibration.metric == "agreement":
        lines.append(f"output {calibration.output!r} was taken for class scores; --metric fidelity if it is not")
    if not is_signed:
        lines.append("not signed: sessions will not use it; sign it with --sign own")
    return lines


def whereabouts(kept: "Sequence[Path]", attachment: "Attachment", key_path: Path | None, pushed_to: str | None) -> str:
    """Where the calibrations lie, whose word they are, and where they were brought."""
    lines = [f"kept    {path}" for path in kept]
    if attachment.signature is not None:
        lines.append(f"signed  by key {attachment.signature.key_id} ({key_path})")
    if pushed_to is not None:
        lines.append(f"pushed  to {pushed_to}")
    return "\n".join(lines)
