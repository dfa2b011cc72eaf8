"""What a user asks `hybrid compress` for, as data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from hybrid.calibration.judge import TOLERANCE
from hybrid.errors import BadMessage

if TYPE_CHECKING:
    from hybrid.calibration.pixels import Pixels
    from hybrid.calibration.record import Metric
    from hybrid.graph.shape_key import ShapeKey

Objective = Literal["latency", "bytes", "energy"]

Emulation = Literal["auto", "quota", "scaled"]

THIS: Final = "this"
"""The device that is this machine."""

_WORDS: Final[dict[str, tuple[str | None, ...]]] = {
    "objective": get_args(Objective),
    "emulation": get_args(Emulation),
    "metric": (None, "accuracy", "agreement", "fidelity"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model, data to judge by, a device, a floor, and where the result goes.

    Attributes:
        model: an .onnx file, or an artifact's folder or zip; None with a training script takes the script's module.
        data: samples, as `hybrid.calibration.samples.open_samples` takes them.
        out: folder of the artifact; must not exist.
        labels: right classes, where known.
        pixels: how images become inputs.
        shape: sizes of an image input that leaves them open.
        metric, output, tolerance: how answers are compared, as `hybrid.calibration.judge.judge_for` takes them.
        train_script: `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`, whose call gives a `TrainingSet`.
        device: a machine of the catalog, `this`, or the URL of a box's agent.
        link: a link of the catalog, over which candidates that are cut are weighed; empty for no cuts.
        max_drop: the floor, as a share: no variant whose drop's 95 % interval reaches beyond it.
        objective: what is made small.
        budget_s: seconds for the search; the judgement comes on top.
        n_samples: at most so many are used.
        epochs: of a whole fine-tuning.
        seed: of every draw and every training.
        threads: of the engine while timed; 0 for one a core of the device.
        emulation: `quota` slows programs down in truth, `scaled` multiplies seconds, `auto` takes what is allowed.
        sign: a private key, 32 raw bytes, that signs calibrations.
        head: the tensor on which a trainable head stands, or `auto`: its weights become a file of their own, in float;
            empty keeps apart what an artifact has apart already.
        rank: of updates beside the products of that head, which alone learn; None: the head's own weights do.
        name, version: of the artifact; empty for those of the model, and for `1`.
        again: nothing that an earlier call did counts.
    """

    model: Path | None
    data: Path
    out: Path
    labels: Path | None = None
    pixels: "Pixels | None" = None
    shape: "ShapeKey | None" = None
    metric: "Metric | None" = None
    output: str | None = None
    tolerance: float = TOLERANCE
    train_script: str = ""
    device: str = THIS
    link: str = ""
    max_drop: float = 0.01
    objective: Objective = "latency"
    budget_s: float = 1800.0
    n_samples: int = 4000
    epochs: int = 12
    seed: int = 0
    threads: int = 0
    emulation: Emulation = "auto"
    sign: bytes | None = None
    head: str = ""
    rank: int | None = None
    name: str = ""
    version: str = ""
    again: bool = False

    def __post_init__(self) -> None:
        """Takes paths as text too, and refuses what no job can mean.

        Raises:
            BadMessage: a word that is none, or a number beyond its ends.
        """
        for name in ("model", "data", "out", "labels"):
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, Path(given))
        for name, words in _WORDS.items():
            if (said := getattr(self, name)) not in words:
                raise BadMessage(f"{name} {said!r} is none of {', '.join(map(repr, words))}")
        if not 0 < self.max_drop <= 1:
            raise BadMessage(
                f"max_drop is {self.max_drop}, wanted a share above 0 and at most 1, as 0.01 for one point"
            )
        for name, least in (("n_samples", 1), ("epochs", 1), ("threads", 0), ("budget_s", 0)):
            if not getattr(self, name) >= least:
                raise BadMessage(f"{name} is {getattr(self, name)}, wanted {least} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told how the work goes.

    Attributes:
        stage: told what is done now.
        total: told how many steps there will be, as far as is known.
        stepped: called after each step.
        said: told what a person should know, such as that an earlier call is gone on with.
    """

    stage: Callable[[str], None] = lambda _name: None
    total: Callable[[int], None] = lambda _n: None
    stepped: Callable[[], None] = lambda: None
    said: Callable[[str], None] = lambda _text: None
