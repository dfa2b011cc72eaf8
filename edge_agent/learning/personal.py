"""Personal layers answer: fitted to the version that came of their campaign, judged here, and put in its place.

Design: what answers is a composition in memory, the installed files with a few tensors of this box; on the disk these
lie sealed in learning's own database, and nowhere else. So an installed file is never written, and a composition is
never half there: after whatever end of the service it is made again from what one transaction kept. Whatever is wrong
with it, the version itself answers. A box that took no part in the campaign has layers of its own all the same: the
version says how they are trained.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import numpy as np

from edge_agent.learning.offers import Candidate, Offers
from edge_agent.learning.records import CampaignNote, Judged
from edge_agent.learning.standing import PersonalStatus
from edge_agent.learning.store import LearningStore
from edge_agent.models.source import Answering
from edge_agent.models.version import ModelVersion, PersonalCopy
from edge_agent.part import Problem
from hybrid.artifact.manifest import CascadeRule
from hybrid.errors import Cancelled, HybridError, NotFound, Overloaded, StorageError
from hybrid.federated.campaign import Training
from hybrid.federated.layout import Layout
from hybrid.federated.lineage import campaign_of, training_of
from hybrid.federated.messages import Terms

if TYPE_CHECKING:
    from hybrid.federated.box.personal import Fitted

Fit = Callable[[Candidate, str, Training, np.ndarray | None], "Awaitable[tuple[Fitted, Layout, Layout]]"]
"""`Doing.fitted`."""

DAMAGED: Final = "the disk has damaged them"
_MORE: Final = 2
"""Layers are fitted and judged anew once there are so many times as many labelled samples."""

_GIVEN_UP: Final = "fitting them was given up; it is tried again later"
_RESTS: Final = 6
"""Layers whose fitting was given up rest for so many times as long as it took: tasks have their turn meanwhile."""

_log = logging.getLogger("hybrid.agent.learning")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """The campaign that a version came of.

    Attributes:
        id: of it.
        training: its plan.
        note: None where this box took no part in it, and has not fitted layers to its version yet.
    """

    id: str
    training: Training
    note: CampaignNote | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unfit:
    """A version for which no layers could be fitted, on a box that took no part.

    Attributes:
        ids: of the labelled samples that there were then.
        why: in words.
    """

    ids: frozenset[str]
    why: str


class Host(Protocol):
    """Changes what answers a name; see `edge_agent.models.host.Host`."""

    async def personalize(self, copy: PersonalCopy) -> None:
        """Answer with a personal copy from now on."""
        ...

    async def plainly(self, name: str) -> None:
        """Answer with the version as it was shipped from now on."""
        ...


class Personal:
    """Personal layers of this box; methods are for the event loop.

    Args:
        store: of learning.
        answering: what answers.
        host: changes it.
        offers: samples of models.
        why_not: what keeps a model from answering with personal layers, in words; empty where nothing does.
        wall_s: the box's calendar.
        now_s: a clock that only runs forward.

    Attributes:
        n_left_out: samples for which what is learned from had no room; asked after a fitting.
        n_judged, n_worse: how often layers were tried since the start, and found to answer worse than the version.
    """

    def __init__(
        self,
        store: LearningStore,
        answering: Answering,
        host: Host,
        *,
        offers: Offers,
        why_not: Callable[[str], str] = lambda _: "",
        wall_s: Callable[[], float],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._answering, self._host = store, answering, host
        self._offers, self._why_not, self._wall_s, self._now_s = offers, why_not, wall_s, now_s
        self._failures: dict[str, tuple[str, HybridError]] = {}
        self._campaigns: dict[str, str] = {}
        self._up: dict[str, str] = {}
        self._waits: dict[str, str] = {}
        self._unfit: dict[str, _Unfit] = {}
        self._rests: dict[str, float] = {}
        self._without: dict[str, PersonalStatus] = {}
        self.n_left_out: Callable[[], int] = lambda: 0
        self.n_judged = self.n_worse = 0

    async def look(self, candidates: Sequence[Candidate], fit: Fit | None) -> None:
        """Have every model answered as it should be.

        Args:
            candidates: models with something that learns.
            fit: fits layers to a version; None while this box may not train.

        Raises:
            StorageError: what was found could not be kept; what answered does.
        """
        self._keep_to(candidates)
        for one in candidates:
            name = one.version.name
            origin = self._origin(one)
            if origin is None:
                self._without.pop(name, None)
                self._campaigns.pop(name, None)
                self._failures.pop(name, None)
                await self.plainly(name)
                continue
            self._campaigns[name] = origin.id
            self._waits[name] = self._obstacle(one)
            if not await self._may_be_fitted(one, origin, fit) or self._waits[name]:
                await self.plainly(name)
                continue
            judged = await self._judged(one, origin, fit)
            if judged is None or not judged.answers or not await self._answer(one, origin.id, judged):
                await self.plainly(name)

    async def plainly(self, name: str = "") -> None:
        """Answer a name, or all of them, with what was shipped."""
        for version in self._answering.versions():
            if name in ("", version.name) and self._answering.personal(version.name) is not None:
                await self._host.plainly(version.name)

    async def forget(self, what: str) -> Sequence[str]:
        """Remove personal layers, by campaign or model; the campaigns whose layers are gone.

        Raises:
            NotFound: there are none. StorageError: they could not be removed.
        """
        found = [note for note in self._store.notes.values() if what in (note.id, note.terms.model) and _has_any(note)]
        if not found:
            raise NotFound(
                f"this box keeps no personal layers of {what[:80]!r}; `hybrid agent rounds` shows whose it has"
            )
        for note in found:
            await asyncio.to_thread(self._store.forget, note.id)
            _log.info("personal.forgotten campaign=%s model=%s", note.id, note.terms.model)
            if note.judged is not None and self._answering.copy_of(note.judged.digest) is not None:
                await self.plainly(note.terms.model)
        return [note.id for note in found]

    def relabelled(self, sample_id: str) -> None:
        """A sample has a label, its first or another one: what could not be fitted with it may be now."""
        self._unfit = {digest: one for digest, one in self._unfit.items() if sample_id not in one.ids}

    def failed(self, copy: PersonalCopy, error: HybridError) -> None:
        """A run failed by a copy and not by its version, which answers from the next look on."""
        self._failures[copy.version.name] = (copy.digest, error)

    def problems(self) -> Sequence[Problem]:
        """What is wrong with personal layers."""
        found = []
        for name, campaign in self._campaigns.items():
            note = self._store.notes.get(campaign)
            judged = None if note is None else note.judged
            digest, error = self._failures.get(name, ("", None))
            without = f"{name} answers without the personal layers of campaign {campaign}"
            if judged is not None and judged.digest == digest:
                do = f"See the agent's log; `hybrid agent rounds forget {campaign}` removes them for good."
                found.append(Problem(code="personal_failed", what=f"{without}: the engine fails: {error}", do=do))
            elif judged is not None and judged.why_not == DAMAGED:
                do = f"Look at the disk's health; `hybrid agent rounds forget {campaign}` ends this message."
                found.append(Problem(code="personal_lost", what=f"{without}: {DAMAGED}", do=do))
        return found

    def status(self) -> tuple[PersonalStatus, ...]:
        """Of each model whose personal layers were judged, or that came of a campaign without this box."""
        found = []
        for note in self._store.notes.values():
            name = note.terms.model
            if note.judged is not None and (name not in self._without or self._without[name].campaign != note.id):
                is_current = self._campaigns.get(name) == note.id
                wait = self._waits.get(name, "") if is_current else "another version answers"
                copy = self._answering.personal(name)
                is_up = copy is not None and copy.digest == note.judged.digest == self._up.get(name)
                found.append(PersonalStatus.of(note, note.judged, is_up=is_up, why_not=note.judged.why_not or wait))
        return (*found, *self._without.values())

    # Inside.

    def _origin(self, one: Candidate) -> _Origin | None:
        """The campaign that the version came of, where it has personal layers, and these are wanted here."""
        campaign = campaign_of(one.manifest)
        note = self._store.notes.get(campaign)
        if not campaign:
            return None
        if note is None or _tried_with_another(note, one):
            training = training_of(one.manifest)
            return None if training is None else _Origin(id=campaign, training=training, note=None)
        is_its = (note.terms.model, note.terms.variant) == (one.version.name, one.variant)
        return _Origin(id=campaign, training=note.terms.training, note=note) if is_its and _has_any(note) else None

    def _keep_to(self, candidates: Sequence[Candidate]) -> None:
        """Forget what is known of versions that answer no more."""
        names = {one.version.name for one in candidates}
        digests = {one.version.artifact_digest for one in candidates}
        self._without = {name: told for name, told in self._without.items() if name in names}
        self._unfit = {digest: one for digest, one in self._unfit.items() if digest in digests}
        self._rests = {digest: until_s for digest, until_s in self._rests.items() if digest in digests}

    async def _may_be_fitted(self, one: Candidate, origin: _Origin, fit: Fit | None) -> bool:
        """Whether there are layers, or such can be fitted now on a box that took no part; says why not."""
        version, why_not = one.version, ""
        if origin.note is None:
            n_samples, unfit = len(await self._offers.samples(one)), self._unfit.get(version.artifact_digest)
            if not n_samples:
                why_not = "this box took no part and has no labelled samples to fit any to"
            elif self._waits[version.name]:
                why_not = self._waits[version.name]
            elif unfit is not None and n_samples < _MORE * max(1, len(unfit.ids)):
                why_not = unfit.why
            elif self._is_resting(one):
                why_not = _GIVEN_UP
            elif fit is None:
                why_not = "this box took no part; layers of its own are fitted when it may learn"
        if why_not:
            self._tell_none(version, origin, why_not)
        else:
            self._without.pop(version.name, None)
        return not why_not

    def _is_resting(self, one: Candidate) -> bool:
        return self._now_s() < self._rests.get(one.version.artifact_digest, float("-inf"))

    def _tell_none(self, version: ModelVersion, origin: _Origin, why_not: str) -> None:
        told = PersonalStatus.none(version.name, version.version, origin.id, why_not=why_not)
        self._without[version.name] = told

    def _obstacle(self, one: Candidate) -> str:
        rule = one.manifest.cascade
        if isinstance(rule, CascadeRule) and rule.small == one.variant:
            return "it is the small one of a cascade, whose threshold was fitted to the shipped head"
        return self._why_not(one.version.name)

    async def _judged(self, one: Candidate, origin: _Origin, fit: Fit | None) -> Judged | None:
        """What is known of the layers beside this version; found out where it is time, and the box may train."""
        version, note = one.version, origin.note
        known = None if note is None else note.judged
        if known is not None and not known.is_of(version.artifact_digest, one.variant):
            known = None
        ids = await self._offers.samples(one)
        n_samples, is_lost = len(ids), False
        if known is not None and known.answers and self._answering.copy_of(known.digest) is None:
            is_lost = await asyncio.to_thread(self._store.vector, origin.id, "fitted") is None
        is_due = known is None or is_lost or n_samples >= _MORE * max(1, known.n_samples)
        if not is_due or self._is_resting(one) or (fit is None and not is_lost):
            return known
        found = Judged(
            artifact_digest=version.artifact_digest, version=version.version, variant=one.variant,
            digest=secrets.token_hex(32), at_s=self._wall_s(), n_samples=n_samples,
        )  # fmt: skip
        content = await asyncio.to_thread(self._store.vector, origin.id, "personal")
        is_damaged = content is None and note is not None and bool(note.loss_before)  # it was trained here
        if (is_damaged or fit is None) and note is not None:
            if known is not None and known.why_not == DAMAGED:
                return known
            return await self._kept(note, msgspec.structs.replace(found, why_not=DAMAGED, n_samples=0), None)
        assert fit is not None
        personal = None if content is None else np.frombuffer(content, "<f4").astype(np.float32)
        began_s = self._now_s()
        try:
            fitted, shared, layout = await fit(one, origin.id, origin.training, personal)
        except (Cancelled, StorageError) as exc:
            ended_s = self._now_s()
            self._rests[version.artifact_digest] = ended_s + _RESTS * (ended_s - began_s)
            _log.info("personal.judged_later campaign=%s why=%s", origin.id, exc)
            if note is None:
                self._tell_none(version, origin, _GIVEN_UP)
            return known
        except HybridError as exc:
            if note is None:
                _log.warning("personal.unfit campaign=%s version=%s error=%s", origin.id, version.version, exc)
                self._unfit[version.artifact_digest] = _Unfit(ids=frozenset(ids), why=str(exc))
                self._tell_none(version, origin, str(exc))
                return None
            return await self._kept(note, msgspec.structs.replace(found, why_not=str(exc)), None)
        self.n_judged += 1
        found = msgspec.structs.replace(
            found, answers=fitted.is_better, n=fitted.plain.n, n_right=fitted.personal.n_right,
            n_plain_right=fitted.plain.n_right, loss=fitted.personal.loss, plain_loss=fitted.plain.loss,
            why_not="" if fitted.is_better else _worse(fitted.plain.n, self.n_left_out()), layout=layout,
        )  # fmt: skip
        self.n_worse += not fitted.is_better and bool(fitted.plain.n)
        note = note or _new_note(one, origin, shared)
        return await self._kept(note, found, fitted.vector if fitted.is_better else None)

    async def _kept(self, note: CampaignNote, judged: Judged, vector: np.ndarray | None) -> Judged | None:
        """Keep what was found, with the layers that are to answer, in one transaction."""
        campaign = note.id
        kept = self._store.notes.get(campaign, note)
        if kept.is_forgotten:
            return None
        content = None if vector is None else vector.astype("<f4").tobytes()
        note = msgspec.structs.replace(kept, terms=note.terms, judged=judged)
        await asyncio.to_thread(self._store.keep, note, {"fitted": content})
        self._without.pop(note.terms.model, None)
        _log.info(
            "personal.judged campaign=%s version=%s answers=%s right=%d plain_right=%d n=%d why_not=%r",
            campaign, judged.version, judged.answers, judged.n_right, judged.n_plain_right, judged.n, judged.why_not,
        )  # fmt: skip
        return self._store.notes[campaign].judged

    async def _answer(self, one: Candidate, campaign: str, judged: Judged) -> bool:
        """Have the layers answer; whether they do."""
        up = self._answering.personal(one.version.name)
        if up is not None and up.digest == judged.digest:
            digest, error = self._failures.get(one.version.name, ("", None))
            return digest != judged.digest or error is None
        digest, error = self._failures.get(one.version.name, ("", None))
        if digest == judged.digest and not isinstance(error, Overloaded):
            return False
        content = await asyncio.to_thread(self._store.vector, campaign, "fitted")
        layout = judged.layout
        if content is None or layout is None or len(content) != 4 * layout.n_elements:
            return False
        arrays = layout.arrays(np.frombuffer(content, "<f4").astype(np.float32))
        try:
            await self._host.personalize(PersonalCopy(version=one.version, digest=judged.digest, tensors=arrays))
        except NotFound:
            return False  # another version answers by now
        except HybridError as exc:
            self._failures[one.version.name] = (judged.digest, exc)
            _log.warning("personal.failed campaign=%s code=%s error=%s", campaign, exc.code, exc)
            return False
        self._failures.pop(one.version.name, None)
        self._up[one.version.name] = judged.digest
        note = self._store.notes.get(campaign)
        return note is not None and not note.is_forgotten


def _has_any(note: CampaignNote) -> bool:
    return bool(note.terms.training.personal) and not note.is_forgotten


def _tried_with_another(note: CampaignNote, one: Candidate) -> bool:
    """Whether a box that trained nothing in a campaign tried layers with another variant of the model alone."""
    is_another = note.terms.model == one.version.name and note.terms.variant != one.variant
    return is_another and note.is_over and not note.loss_before and _has_any(note)


def _new_note(one: Candidate, origin: _Origin, shared: Layout) -> CampaignNote:
    """Of a campaign that this box took no part in."""
    terms = Terms(
        model=one.version.name, artifact_digest=one.manifest.base or "", variant=one.variant, layout=shared,
        training=origin.training,
    )  # fmt: skip
    return CampaignNote(id=origin.id, terms=terms, is_over=True, last="took no part; layers of its own were tried")


def _worse(n: int, n_left_out: int) -> str:
    from hybrid.federated.box.personal import LEAST_APART

    if n >= LEAST_APART:
        return "the version answers better without them"
    room = f"; {n_left_out} find no room: more with --learn-memory-bytes" if n_left_out else ""
    return f"{n} labelled samples are kept apart to judge them on, {LEAST_APART} are wanted{room}"
