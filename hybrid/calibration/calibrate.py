"""From a model and data to a calibration: references first, then every codec at every cut, within a budget."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import onnxruntime

from compression.tensor import TensorSpec
from devices.onnx_engine import ports
from hybrid.artifact.attachments import Attachment, attachment_of
from hybrid.artifact.signature import public_key_of, sign
from hybrid.artifact.splits import SplitFiles
from hybrid.calibration.draft import Draft
from hybrid.calibration.judge import TOLERANCE, Judge, Tally, judge_for
from hybrid.calibration.record import Calibration, Cell, Metric
from hybrid.calibration.samples import Samples, chosen, feed_digest
from hybrid.calibration.trial import Feeds, Trial, Watch, cell_name, cuts_of, opened, try_cuts
from hybrid.errors import BadMessage, EngineFailed, TensorMismatch, UnknownCut
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import prepare
from hybrid.serving.engines.session import DATATYPE_OF_ENGINE

N_SAMPLES: Final = 400
"""Enough to show a drop of at most 1 % where no answer changes: 0 of 400 leaves 0.95 % at the interval's end."""

WHOLE: Final = "output"
"""The cut of a cell that is about a local variant as a whole."""

MOST_BYTES: Final = 1 << 30
"""Memory for samples and reference answers; more samples than fit are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user wants to have calibrated.

    Attributes:
        codecs: names.
        splits: of the model's artifact; those for other shapes than the samples' are left out.
        cuts: ids of cuts, `input` for the input cut; None for the Pareto cuts and the input cut.
        n_samples: at most so many.
        seed: of their choice.
        budget_s: seconds in all.
        metric, output, tolerance: as `judge_for`.
        again: also cuts that an earlier call has measured.
    """

    codecs: tuple[str, ...]
    cuts: tuple[str, ...] | None = None
    n_samples: int = N_SAMPLES
    seed: int = 0
    budget_s: float = 600.0
    metric: Metric | None = None
    output: str | None = None
    tolerance: float = TOLERANCE
    again: bool = False
    splits: tuple[SplitFiles, ...] = ()


@dataclass(slots=True, kw_only=True)
class Material:
    """The samples that are used, in memory, and what the uncompressed model makes of them."""

    feeds: list[Feeds] = field(default_factory=list)
    judge: Judge | None = None
    shape_key: ShapeKey | None = None
    digest: str = ""
    n_right: int = 0


def signature_of(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """A model's inputs and outputs; raises as `signature`.

    Raises:
        DeviceError: the engine refuses the model.
    """
    return signature(path, opened(path))


def signature(path: Path, session: onnxruntime.InferenceSession) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and outputs of a model that is open.

    Raises:
        TensorMismatch: one that is no tensor.
    """
    sides: list[list[TensorSpec]] = []
    for side in ports(session):
        strange = next((port for port in side if port.type not in DATATYPE_OF_ENGINE), None)
        if strange is not None:
            raise TensorMismatch(f"{path}: {strange.name!r} is a {strange.type}; only tensors can be calibrated")
        sides.append(
            [
                TensorSpec(
                    name=port.name,
                    dtype=DATATYPE_OF_ENGINE[port.type],
                    shape=tuple(size if isinstance(size, int) and size >= 0 else None for size in port.shape),
                )
                for port in side
            ]
        )
    return sides[0], sides[1]


def calibrate(
    path: Path,
    model_digest: str,
    samples: Samples,
    wish: Wish,
    *,
    cache: Path,
    drafts: Path | None = None,
    labels: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> Calibration:
    """Measure every wished codec at every wished cut, and the splits there.

    Args:
        path: the shipped model.
        model_digest: its digest.
        samples: requests of one shape.
        wish: what is wanted.
        cache: folder for prepared graphs.
        drafts: folder for what is measured so far, so that an interrupted call is gone on with; None for no such thing.
        labels: the right class of each sample.
        watch: who is told how far it is.

    Raises:
        TensorMismatch: samples of different shapes, or outputs that the metric cannot compare.
        UnknownCut: a wished cut that this model does not have for these shapes.
        BadMessage: no sample, or no cell within the budget.
        EngineFailed: a sample that the model does not take.
        ModelError, DeviceError: the model cannot be used.
    """
    watch = watch or Watch()
    until_s = watch.now_s() + wish.budget_s
    material = gathered(path, samples, wish, labels=labels, watch=watch, until_s=until_s)
    shape_key, judge = material.shape_key, material.judge
    assert shape_key is not None
    assert judge is not None
    watch.stage("preparing")
    prepared = prepare(path, model_digest, shape_key, cache)
    here = [split for split in wish.splits if split.shape_key == shape_key.text]
    cuts = _wished(cuts_of(prepared, here), prepared.table.cuts, wish.cuts)
    facts = [*_facts(material, model_digest, wish), sorted(split.digest for split in here)]
    draft = Draft(drafts, facts, again=wish.again)
    known = draft.cells
    left = [cut for cut in cuts if cell_name(cut) not in known]
    watch.total(len(material.feeds) * len(left))
    trial = Trial(prepared=prepared, samples=material.feeds, judge=judge, codecs=wish.codecs, splits=here)
    fresh = try_cuts(
        trial,
        left,
        max(1.0, until_s - watch.now_s()),
        watch=watch,
        whole=lambda cut, cells: draft.keep(cell_name(cut), cells),
    )
    n_known = len(cuts) - len(left)
    watch.reached(len(cuts), len([cut for cut in cuts if cell_name(cut) in draft.cells]), n_known)
    cells = [*fresh, *(cell for name in {cell_name(cut) for cut in cuts} for cell in known.get(name, []))]
    order = [cell_name(cut) for cut in cuts]
    return _recorded(material, model_digest, "original", wish, sorted(cells, key=lambda cell: order.index(cell.cut)))


def _facts(material: Material, model_digest: str, wish: Wish) -> list[object]:
    """All that a cell depends on."""
    judge, shape_key = material.judge, material.shape_key
    assert judge is not None
    assert shape_key is not None
    judged = (judge.metric, judge.outputs, judge.tolerance)
    return [onnxruntime.__version__, model_digest, shape_key.text, material.digest, sorted(wish.codecs), judged]


def calibrate_variant(
    path: Path,
    variant_path: Path,
    model_digest: str,
    samples: Samples,
    wish: Wish,
    *,
    variant: str,
    labels: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> Calibration:
    """Measure what a local variant of a model costs as a whole, against the shipped one; raises as `calibrate`."""
    watch = watch or Watch()
    until_s = watch.now_s() + wish.budget_s
    material = gathered(path, samples, wish, labels=labels, watch=watch, until_s=until_s)
    judge = material.judge
    assert judge is not None
    watch.stage(f"variant {variant}")
    watch.total(len(material.feeds))
    session = opened(variant_path)
    names = [port.name for port in session.get_outputs()]
    tally = Tally(judge.metric)
    for index, feeds in enumerate(material.feeds):
        if index and watch.now_s() >= until_s:
            break
        answers = dict(zip(names, session.run(names, feeds), strict=True))
        tally.count(before=judge.before(index), after=judge.after(index, answers))
        watch.stepped()
    low, high = tally.interval
    cell = Cell(cut=WHOLE, codec="none", n=tally.n, drop=tally.drop, drop_low=low, drop_high=high)
    return _recorded(material, model_digest, variant, wish, [cell])


def gathered(
    path: Path, samples: Samples, wish: Wish, *, labels: Sequence[int] | None, watch: Watch, until_s: float
) -> Material:
    """The samples and their references; fewer where memory or a third of the budget ends."""
    session = opened(path)
    _, outputs = signature_of(path)
    names = [spec.name for spec in outputs]
    picked = chosen(len(samples.names), wish.n_samples, wish.seed)
    if not picked:
        raise BadMessage("there is no sample to calibrate with")
    watch.stage("reference answers")
    watch.total(len(picked))
    least_s = watch.now_s() + max(1.0, (until_s - watch.now_s()) / 3)
    material, digest, room_bytes = Material(), hashlib.sha256(), MOST_BYTES
    for index, number in enumerate(picked):
        feeds = samples.feeds(number)
        _check_shape(material, feeds, samples.names[number])
        answers = _answered(session, names, feeds, samples.names[number])
        if material.judge is None:
            known = [labels[at] for at in picked] if labels is not None else None
            material.judge = judge_for(
                outputs, answers, labels=known, metric=wish.metric, output=wish.output, tolerance=wish.tolerance
            )
        material.judge.learn(index, answers)
        material.feeds.append(feeds)
        material.n_right += material.judge.before(index)
        digest.update(feed_digest(feeds) + (str(labels[number]).encode() if labels is not None else b""))
        watch.stepped()
        room_bytes -= sum(array.nbytes for array in (*feeds.values(), *answers.values()))
        if room_bytes < 0 or watch.now_s() > least_s:
            break
    material.digest = digest.hexdigest()
    return material


def as_attachment(calibration: Calibration, private_key: bytes | None) -> Attachment:
    """The calibration as it is kept and sent: signed where there is a key, and then naming its public half."""
    import msgspec

    if private_key is None:
        return attachment_of(calibration.content)
    named = msgspec.structs.replace(calibration, publisher=public_key_of(private_key).hex())
    return attachment_of(named.content, sign(named.content, private_key))


def _recorded(material: Material, model_digest: str, variant: str, wish: Wish, cells: Sequence[Cell]) -> Calibration:
    judge, shape_key = material.judge, material.shape_key
    if judge is None or shape_key is None or not cells:
        raise BadMessage("the budget ended before anything was measured; allow more with --budget")
    n = len(material.feeds)
    return Calibration(
        model_digest=model_digest,
        variant=variant,
        shape_key=shape_key.text,
        metric=judge.metric,
        output=judge.outputs[0] if len(judge.outputs) == 1 else "",
        tolerance=judge.tolerance if judge.metric == "fidelity" else None,
        baseline=material.n_right / n if judge.metric == "accuracy" else None,
        n_samples=n,
        data_digest=material.digest,
        seed=wish.seed,
        engine=f"onnxruntime {onnxruntime.__version__}",
        made_s=time.time(),
        cells=tuple(cells),
    )


def _wished(usual: Sequence[Cut], every: Sequence[Cut], words: Sequence[str] | None) -> list[Cut]:
    if words is None:
        return list(usual)
    known = {cut.id: cut for cut in every if cut.kind != "output"} | {"input": every[0]}
    strange = next((word for word in words if word not in known), None)
    if strange is not None:
        raise UnknownCut(
            f"cut {strange!r} is not among this model's for the samples' shapes; `hybrid plan` lists them", cut=strange
        )
    return [known[word] for word in words]


def _answered(session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Feeds, sample: str) -> Feeds:
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as exc:
        raise EngineFailed(f"the model does not take sample {sample}: {exc}; give inputs as it wants them") from exc


def _check_shape(material: Material, feeds: Feeds, name: str) -> None:
    key = ShapeKey.of(feeds)
    if material.shape_key is None:
        material.shape_key = key
    elif key != material.shape_key:
        raise TensorMismatch(
            f"sample {name} has shapes {key.text}, the first one {material.shape_key.text}: cuts belong to one shape; "
            "calibrate each shape for itself"
        )
