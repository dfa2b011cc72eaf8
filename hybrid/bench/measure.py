"""Measures the parts of a model: whole, heads and tails as real sessions, and every codec at every cut.

Design: plain onnxruntime sessions and a clock, nothing of the session's own timing, since the oracle is made of these
seconds too. Whole, heads and tails run in turn, round by round, so that what else the machine does meets all of them
alike; the lower quartile stands for the service time, since noise only adds.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
import numpy as np
import onnxruntime

from compression.codecs import catalog
from devices.onnx_engine import open_session
from hybrid.artifact.digest import model_digest
from hybrid.bench.layers import head_layers, layers_of
from hybrid.bench.parts import CodecPart, CutPart, ModelParts
from hybrid.calibration.calibrate import Wish, calibrate
from hybrid.calibration.record import Calibration
from hybrid.errors import BadMessage, TensorMismatch
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, prepare
from hybrid.partition.wiring import Wiring
from hybrid.wire.tensor import Tensor

Feeds = Mapping[str, np.ndarray]

MAX_CUTS: Final = 8
"""Interior cuts that are measured, spread over the Pareto set: one with few bytes of each depth."""

N_CODEC_SAMPLES: Final = 12
N_REPLY_SAMPLES: Final = 4
LEAST_RUNS: Final = 5
MOST_RUNS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to be measured.

    Attributes:
        name: short.
        title: what it is, and where its weights come from.
        data: what the samples are.
        path: the model.
        samples: real inputs of one shape.
        n_threads: of the engine.
    """

    name: str
    path: Path
    samples: Sequence[Feeds]
    title: str = ""
    data: str = ""
    n_threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much time a measurement may take: seconds of timing, and seconds of calibrating codecs (0: none)."""

    timing_s: float = 20.0
    calibration_s: float = 60.0


@dataclass(frozen=True, slots=True)
class _List:
    """Samples as calibration takes them."""

    samples: Sequence[Feeds]

    @property
    def names(self) -> Sequence[str]:
        return [str(number) for number in range(len(self.samples))]

    def feeds(self, index: int) -> dict[str, np.ndarray]:
        return dict(self.samples[index])


def measure(
    subject: Subject,
    effort: Effort,
    *,
    cache: Path,
    known: ModelParts | None = None,
    step: Callable[[str], None] = lambda _stage: None,
) -> ModelParts:
    """All parts of a model.

    Args:
        subject: the model and its inputs.
        effort: how long it may take.
        cache: folder for prepared graphs.
        known: earlier parts, whose calibration stands where none is made now.
        step: told what begins: preparing, timing, codecs, calibrating, layers.

    Raises:
        BadMessage: no sample.
        ModelError, DeviceError: the model cannot be used.
    """
    if not subject.samples:
        raise BadMessage(f"{subject.name}: no input to measure with; give at least one")
    step("preparing")
    digest, shape_key = model_digest(subject.path), ShapeKey.of(subject.samples[0])
    prepared = prepare(subject.path, digest, shape_key, cache)
    cuts = [prepared.table.cuts[0], *worth_measuring(prepared)]
    step("timing")
    timed = _timed(prepared, cuts, subject, effort.timing_s)
    step("codecs")
    coded = {cut.id: Coded(_coded(prepared, cut, subject), _replied(prepared, cut, subject)) for cut in cuts}
    calibration = None
    if effort.calibration_s:
        step("calibrating")
        calibration = _calibrated(subject, digest, cuts, effort.calibration_s, cache)
    drops = _drops(calibration, known)
    for cut in cuts:
        coded[cut.id].permit("" if cut.kind == "input" else cut.id, drops)
    step("layers")
    layers, wiring = layers_of(prepared, subject.samples[0])
    whole = timed["whole"]
    judged = calibration or known
    return ModelParts(
        name=subject.name,
        title=subject.title,
        data=subject.data,
        model_digest=digest,
        shape_key=shape_key.text,
        whole_s=_service_s(whole),
        spread_ratio=float((np.quantile(whole, 0.95) - np.quantile(whole, 0.05)) / np.median(whole)),
        metric=judged.metric if judged is not None else "",
        n_samples=judged.n_samples if judged is not None else 0,
        cuts=tuple(_part(cut, timed, coded[cut.id], wiring) for cut in cuts),
        layers=layers,
        wiring=wiring,
        machine=this_machine(),
        n_threads=subject.n_threads,
    )


@dataclass(slots=True)
class Coded:
    """What was measured of the codecs at one cut, and of its reply."""

    codecs: list[CodecPart]
    reply: tuple[int, float, float]

    def permit(self, cut: str, drops: Mapping[tuple[str, str], float]) -> None:
        """Writes the calibrated drops beside the lossy codecs."""
        self.codecs = [
            msgspec.structs.replace(part, drop=drops.get((cut, catalog.values_of(part.codec))))
            if part.is_lossy
            else part
            for part in self.codecs
        ]


def worth_measuring(prepared: Prepared, most: int = MAX_CUTS) -> list[Cut]:
    """Interior Pareto cuts, spread over the depth of the graph where there are too many."""
    table = prepared.table
    pareto = [cut for cut in table.interior if cut.id in table.pareto]
    if len(pareto) <= most:
        return pareto
    wanted = np.linspace(0.0, 1.0, most)
    depths = np.array([cut.head_work_ratio for cut in pareto])
    chosen = {int(np.abs(depths - depth).argmin()) for depth in wanted}
    # The lightest ones are what links ask for; they stay, whatever their depth.
    return [cut for number, cut in enumerate(pareto) if number in chosen or number == len(pareto) - 1]


def this_machine() -> dict[str, str]:
    """What must be known to read the seconds."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": named[0] if named else platform.processor() or "unknown",
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": onnxruntime.__version__,
    }


def _service_s(samples: Sequence[float]) -> float:
    return float(np.quantile(samples, 0.25))


def _opened(path: Path, n_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, n_threads
    return open_session(path, options, ["CPUExecutionProvider"])


def _timed(prepared: Prepared, cuts: Sequence[Cut], subject: Subject, budget_s: float) -> dict[str, list[float]]:
    """Seconds of single runs, by `whole`, `head ID` and `tail ID`."""
    feeds = dict(subject.samples[0])
    whole = _opened(subject.path, subject.n_threads)
    runs: dict[str, tuple[onnxruntime.InferenceSession, dict[str, np.ndarray]]] = {"whole": (whole, feeds)}
    for cut in cuts:
        if cut.kind != "interior":
            continue
        head, tail = (
            _opened(path, subject.n_threads) for path in (prepared.head_path(cut.id), prepared.tail_path(cut.id))
        )
        given = {port.name: feeds[port.name] for port in head.get_inputs()}
        crossing = feeds | _outputs(head, given)
        runs[f"head {cut.id}"] = (head, given)
        runs[f"tail {cut.id}"] = (tail, {port.name: crossing[port.name] for port in tail.get_inputs()})
    samples: dict[str, list[float]] = {name: [] for name in runs}
    until_s = time.monotonic() + budget_s
    for session, given in runs.values():
        session.run(None, given)
    while len(samples["whole"]) < MOST_RUNS and (time.monotonic() < until_s or len(samples["whole"]) < LEAST_RUNS):
        for name, (session, given) in runs.items():
            before_s = time.perf_counter()
            session.run(None, given)
            samples[name].append(time.perf_counter() - before_s)
    return samples


def _outputs(session: onnxruntime.InferenceSession, feeds: Feeds) -> dict[str, np.ndarray]:
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _coded(prepared: Prepared, cut: Cut, subject: Subject) -> list[CodecPart]:
    """Bytes and seconds of each codec that carries at least one of the cut's tensors."""
    head = _opened(prepared.head_path(cut.id), subject.n_threads) if cut.kind == "interior" else None
    crossings = []
    for feeds in subject.samples[:N_CODEC_SAMPLES]:
        made = dict(feeds)
        if head is not None:
            made |= _outputs(head, {port.name: feeds[port.name] for port in head.get_inputs()})
        crossings.append({spec.name: made[spec.name] for spec in cut.tensors})
    found = []
    for name, codec in catalog.CODECS.items():
        carried = [_carry(crossing, name) for crossing in crossings]
        if any(is_carried for *_, is_carried in carried):
            n_bytes, encode_s, decode_s, _ = zip(*carried, strict=True)
            part = CodecPart(
                codec=name, n_bytes=n_bytes, encode_s=median(encode_s), decode_s=median(decode_s), is_lossy=codec.lossy
            )
            found.append(part)
    return found


def _carry(crossing: Feeds, codec: str) -> tuple[int, float, float, bool]:
    """Bytes, seconds of encoding and of decoding, and whether this codec carries any of it; the rest goes raw."""
    n_bytes, encode_s, decode_s, is_carried = 0, 0.0, 0.0, False
    for name, array in crossing.items():
        before_s = time.perf_counter()
        try:
            tensor = Tensor.of(name, array, codec)
            is_carried = True
        except TensorMismatch:
            tensor = Tensor.of(name, array)
        encoded_s = time.perf_counter()
        tensor.to_array()
        encode_s, decode_s = encode_s + encoded_s - before_s, decode_s + time.perf_counter() - encoded_s
        n_bytes += tensor.n_bytes
    return n_bytes, encode_s, decode_s, is_carried


def _calibrated(subject: Subject, digest: str, cuts: Sequence[Cut], budget_s: float, cache: Path) -> Calibration:
    wish = Wish(
        codecs=tuple(name for name, codec in catalog.CODECS.items() if codec.lossy and catalog.values_of(name) == name),
        cuts=tuple("input" if cut.kind == "input" else cut.id for cut in cuts),
        n_samples=len(subject.samples),
        budget_s=budget_s,
    )
    return calibrate(subject.path, digest, _List(subject.samples), wish, cache=cache)


def _replied(prepared: Prepared, cut: Cut, subject: Subject) -> tuple[int, float, float]:
    """Mean bytes of a losslessly coded reply, and median seconds of encoding and of decoding it."""
    whole = _opened(prepared.graph_path, subject.n_threads)
    names = list(cut.tail_outputs)
    made = []
    for feeds in subject.samples[:N_REPLY_SAMPLES]:
        answers = dict(zip(names, whole.run(names, dict(feeds)), strict=True)) if names else {}
        made.append(_carry(answers, "lossless"))
    n_bytes, encode_s, decode_s, _ = zip(*made, strict=True)
    return round(float(np.mean(n_bytes))), median(encode_s), median(decode_s)


def _drops(calibration: Calibration | None, known: ModelParts | None) -> dict[tuple[str, str], float]:
    """Calibrated drops by cut and codec: measured now, or known from before."""
    if calibration is not None:
        return {(cell.cut, cell.codec): cell.drop_high for cell in calibration.cells}
    cuts = known.cuts if known is not None else ()
    parts = ((cut.cut, part) for cut in cuts for part in cut.codecs)
    return {(cut, part.codec): part.drop for cut, part in parts if part.drop is not None}


def _part(cut: Cut, timed: Mapping[str, Sequence[float]], coded: Coded, wiring: Wiring) -> CutPart:
    is_input = cut.kind == "input"
    coded_bytes, encode_s, decode_s = coded.reply
    return CutPart(
        cut="" if is_input else cut.id,
        kind=cut.kind,
        tensors=tuple(spec.name for spec in cut.tensors),
        depth_ratio=cut.head_work_ratio,
        raw_bytes=cut.n_bytes,
        reply_bytes=cut.reply_bytes,
        reply_coded_bytes=coded_bytes,
        reply_encode_s=encode_s,
        reply_decode_s=decode_s,
        head_s=0.0 if is_input else _service_s(timed[f"head {cut.id}"]),
        tail_s=_service_s(timed["whole" if is_input else f"tail {cut.id}"]),
        head_layers=() if is_input else head_layers(wiring, cut),
        codecs=tuple(coded.codecs),
    )
