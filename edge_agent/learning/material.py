"""What a model can be trained on here: labelled samples as features, computed once, kept within a bound.

Design: sealed samples are opened one at a time, on the training thread, between two looks at whether somebody asks.
Features stay in memory: on the disk they would be inputs that nobody sealed. Samples that are kept for evaluation have
a share of that memory to themselves, since the others would fill it.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edge_agent.learning.offers import Candidate
from edge_agent.learning.yielding import Yielding
from edge_agent.samples.shelf import SampleShelf
from hybrid.errors import Cancelled, CorruptContent, DataUnfit, EngineFailed, NotFound, ProtocolError
from hybrid.federated.box.work import Learnable
from hybrid.federated.learning.body import Body, body_key
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.features import FeatureShelf
from hybrid.federated.learning.head import open_head, variant_of
from hybrid.federated.learning.labels import HELD_OUT_RATIO, Target, is_held_out, of_one_kind, target_of, targets_of
from hybrid.fleet.sample import parse_sample

_MOST_TRIES: Final = 5
_log = logging.getLogger("hybrid.agent.learning")


class Material:
    """Heads and features; all methods but `forget` and `release` are for the one training thread.

    Args:
        shelf: of the samples.
        yielding: asked between samples.
        most_bytes: of features.

    Attributes:
        n_unfit: samples of the last task that cannot be learned from, such as those with a label of another kind.
        why_unfit: of one of them.
    """

    def __init__(self, shelf: SampleShelf, yielding: Yielding, *, most_bytes: int) -> None:
        self._shelf, self._yielding = shelf, yielding
        held_out_bytes = int(most_bytes * HELD_OUT_RATIO)
        self._features = {False: FeatureShelf(most_bytes - held_out_bytes), True: FeatureShelf(held_out_bytes)}
        self._about: tuple[str, tuple[str, ...] | None] = ("", None)
        self._left_out: dict[bool, int] = {}
        self._targets: dict[str, Target] = {}
        self._unfit: dict[str, str] = {}
        self._relabelled: set[str] = set()
        self._opened: tuple[tuple[str, str], Learnable] | None = None
        self.n_unfit = 0
        self.why_unfit = ""

    @property
    def n_left_out(self) -> int:
        """Samples of the last model, to train on or to evaluate with, for which there is no room."""
        return sum(self._left_out.values())

    def release(self) -> None:
        """Let go of all that is in memory; the next task makes it anew. Nothing may run on the training thread."""
        for shelf in self._features.values():
            shelf.begin("", ())
        self._targets, self._unfit, self._opened = {}, {}, None
        self._relabelled.clear()

    def forget(self, sample_id: str) -> None:
        """A sample was labelled anew: the next task reads it again, whatever this one has read of it."""
        if any(shelf.expects(sample_id) for shelf in self._features.values()):  # else nothing was read of it
            self._relabelled.add(sample_id)

    def learnable(self, candidate: Candidate) -> Learnable:
        """What can learn of a model.

        Raises:
            ModelUntrainable, ModelInvalid, NotFound: it cannot, or not any more.
        """
        key = (candidate.version.artifact_digest, candidate.variant)
        if self._opened is None or self._opened[0] != key:
            self._opened = (key, Learnable.of(self._head(candidate)))
        return self._opened[1]

    def examples(self, candidate: Candidate, sample_ids: Sequence[str], *, held_out: bool) -> Examples:
        """Features and targets of a model's samples, the newest that fit.

        Args:
            candidate: the model.
            sample_ids: labelled ones, newest first.
            held_out: those that are never trained on, in place of the others.

        Raises:
            Cancelled: the task was given up. ModelUntrainable: the body cannot be run.
        """
        self.n_unfit, self.why_unfit = 0, ""
        while self._relabelled:
            sample_id = self._relabelled.pop()
            self._targets.pop(sample_id, None)
            self._unfit.pop(sample_id, None)
        key = body_key(candidate.manifest, variant_of(candidate.manifest, candidate.variant))
        about = (key, candidate.manifest.classes)
        if about != self._about:
            self._about, self._left_out, self._targets, self._unfit = about, {}, {}, {}
        features, other = self._features[held_out], self._features[not held_out]
        wanted, others = list[str](), list[str]()
        for one in sample_ids:
            (wanted if is_held_out(one) == held_out else others).append(one)
        features.begin(key, wanted)
        other.begin(key, others)
        self._targets = {one: it for one, it in self._targets.items() if one in features or one in other}
        known = set(sample_ids)
        self._unfit = {one: why for one, why in self._unfit.items() if one in known}
        self._take(candidate, [one for one in wanted if one not in self._targets], features)
        found = [one for one in wanted if one in self._targets and one in features]
        self._left_out[held_out] = len(wanted) - len(found) - self.n_unfit
        if not found:
            return Examples(np.zeros((0, 1), np.float32), np.zeros(0, np.int64))
        targets = of_one_kind({one: self._targets[one] for one in found})
        if len(targets) < len(found):
            self.n_unfit += len(found) - len(targets)
            self.why_unfit = "some labels are classes and others values, or of different lengths"
        return Examples(features.rows(list(targets)), targets_of(list(targets.values())))

    def _take(self, candidate: Candidate, missing: Sequence[str], features: FeatureShelf) -> None:
        body: Body | None = None
        for sample_id in missing:
            self._yielding.between()
            if sample_id in self._unfit:
                self.n_unfit, self.why_unfit = self.n_unfit + 1, self._unfit[sample_id]
                continue
            try:
                sample = parse_sample(self._shelf.read(sample_id))
                target = target_of(sample.label, candidate.manifest.classes)
                if target is None:
                    raise DataUnfit("its label says nothing")
                if sample_id not in features:
                    if not features.has_room(sample_id):
                        return
                    body = body or Body(self._head(candidate))
                    if not features.put(sample_id, self._run(body, sample.input_arrays())):
                        return
                self._targets[sample_id] = target
            except (DataUnfit, ProtocolError) as exc:
                self.n_unfit, self.why_unfit = self.n_unfit + 1, str(exc)
                self._unfit[sample_id] = str(exc)  # until it is labelled anew: it is not read again in each task
            except (NotFound, CorruptContent, EngineFailed) as exc:
                self.n_unfit, self.why_unfit = self.n_unfit + 1, str(exc)

    def _run(self, body: Body, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """One sample's features; a request that comes ends the run, which is then made again."""
        import onnxruntime as ort

        for attempt in range(_MOST_TRIES):
            options: Any = ort.RunOptions()
            try:
                with self._yielding.ending(options):
                    return body.features(feeds, options)
            except EngineFailed:
                if not options.terminate:
                    raise
                _log.debug("learning.run_ended attempt=%d", attempt)
            self._yielding.between()
        raise Cancelled("requests came too often for the features of one sample")

    @staticmethod
    def _head(candidate: Candidate) -> Any:
        folder = candidate.version.folder
        if folder is None:
            raise NotFound(f"{candidate.version.name} is no artifact any more")
        return open_head(folder, candidate.manifest, candidate.variant)
