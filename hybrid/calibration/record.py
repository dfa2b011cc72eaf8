"""A calibration: what each codec at each cut was measured to cost on data, and exactly what that holds for."""

from typing import Final, Literal

import msgspec

from hybrid.artifact.names import check_digest
from hybrid.artifact.paper import parse_paper
from hybrid.errors import BadMessage

SCHEMA: Final = 1
MAX_CALIBRATION_BYTES: Final = 1 << 20
MAX_CELLS: Final = 4096
_MAX_TEXT: Final = 200

Metric = Literal["accuracy", "agreement", "fidelity"]
"""How a drop was counted.

- `accuracy`: labels were given; the share of right answers before, less that after.
- `agreement`: the share of samples whose most likely class is another one than the uncompressed model's.
- `fidelity`: for outputs that are no classification: the share of samples whose outputs are further from the
  uncompressed model's than `tolerance` (‖a − b‖₂ / ‖b‖₂ of the worst output). It says how often an answer changes
  noticeably, not what that costs in the task: only labels can.
"""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One codec at one cut.

    Attributes:
        cut: cut id; empty for the input cut; `output` for a local variant as a whole.
        codec: its name; `split:ID` for a split of the artifact.
        split: digest of that split; empty for the codecs of the catalog.
        is_lossy: whether it may change values; where not, the drop is none and nothing needs to be permitted.
        n: samples.
        drop: the drop as counted, as a share.
        drop_low: lower end of its 95 % interval.
        drop_high: upper end; what planners take as the drop.
        raw_bytes: bytes of what crosses, unencoded (mean over the samples).
        n_bytes: bytes of what crosses, encoded (mean).
        encode_s: median seconds of encoding, on the machine that calibrated.
        decode_s: median seconds of decoding there.
        sqnr_db: signal to quantisation noise ratio of what crosses, in decibels over all samples; None where nothing
            was lost, or nothing that crosses is a float.
    """

    cut: str
    codec: str
    is_lossy: bool = True
    n: int
    drop: float
    drop_low: float
    drop_high: float
    raw_bytes: float = 0.0
    n_bytes: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    sqnr_db: float | None = None
    split: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether the numbers can be what they say."""
        return (
            self.n >= 1
            and -1 <= self.drop_low <= self.drop <= self.drop_high <= 1
            and min(self.raw_bytes, self.n_bytes, self.encode_s, self.decode_s) >= 0
        )


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What codecs cost for one (model digest, variant, shape key); an attachment of kind `calibration`.

    Attributes:
        shape_key: canonical text of the input shapes.
        metric: how drops were counted.
        output: name of the output that was compared, empty for all.
        tolerance: for `fidelity`: the relative distance up to which outputs count as the same.
        baseline: for `accuracy`: the uncompressed model's accuracy on the same samples.
        n_samples: samples that were used.
        data_digest: SHA-256 over the samples as the model got them, and the labels.
        seed: of the choice of samples.
        engine: name and version of the engine.
        made_s: seconds since 1970.
        publisher: raw public key of who signs, in hex; empty where nobody does. It makes the key's id checkable where
            only the id is known, it is no reason to trust it.
        cells: one a (cut, codec).
    """

    model_digest: str
    shape_key: str
    metric: Metric
    n_samples: int
    data_digest: str
    cells: tuple[Cell, ...]
    kind: Literal["calibration"] = "calibration"
    schema: int = SCHEMA
    variant: str = "original"
    output: str = ""
    tolerance: float | None = None
    baseline: float | None = None
    seed: int = 0
    engine: str = ""
    made_s: float = 0.0
    publisher: str = ""

    @property
    def content(self) -> bytes:
        """Its exact JSON: what is signed, kept and sent."""
        return msgspec.json.encode(self, order="sorted")


def parse_calibration(content: bytes) -> Calibration:
    """The calibration that these bytes say, every number checked; says nothing of whether to trust it.

    Raises:
        BadMessage: no calibration of this schema, or one that contradicts itself.
        TooLarge: more than 1 MiB.
    """
    found = parse_paper(content, Calibration, "calibration", schema=SCHEMA, most_bytes=MAX_CALIBRATION_BYTES)
    check_digest(found.data_digest)
    if len(found.cells) > MAX_CELLS or not all(cell.is_sound for cell in found.cells):
        raise BadMessage(f"the calibration holds more than {MAX_CELLS} cells, or one whose numbers contradict")
    if len({(cell.cut, cell.codec) for cell in found.cells}) != len(found.cells):
        raise BadMessage("the calibration names a codec at a cut twice")
    if any(len(text) > _MAX_TEXT for cell in found.cells for text in (cell.cut, cell.codec, cell.split)):
        raise BadMessage(f"the calibration names a cut or codec of more than {_MAX_TEXT} characters")
    return found
