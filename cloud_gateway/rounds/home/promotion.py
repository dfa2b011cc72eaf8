"""A step comes home: judged here and by boxes, made a version, signed, in the registry, rolled out.

Design: each stage is a row before the next begins, and each can be done again: the same step makes the same version,
and a rollout of it that runs already is the one that was wanted.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloud_gateway.blobs import BlobStore
from cloud_gateway.fleet.assignments import Assignment, deciding, shown
from cloud_gateway.fleet.rollouts.rollout import RUNNING, Plan
from cloud_gateway.fleet.steering.steering import Steering
from cloud_gateway.rounds.campaigns import Campaigns
from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.home.rounds_key import Signer
from cloud_gateway.rounds.home.statements import statement_of
from cloud_gateway.rounds.kept.commits import Commits
from cloud_gateway.rounds.kept.steps import as_vector
from cloud_gateway.rounds.kept.store import RoundStore, put_promotion
from cloud_gateway.rounds.messages import PromoteWish, PromotionView
from cloud_gateway.rounds.origin import Library, laid_out
from hybrid.artifact.manifest import parse
from hybrid.errors import Conflict, CorruptContent, Forbidden, HybridError, NotFound, StorageError
from hybrid.federated.campaign import Campaign
from hybrid.federated.candidate import candidate
from hybrid.federated.lineage import learned_from

ENOUGH: Final = 3
"""So many boxes that evaluated a candidate are asked for at least, where the cohort has them."""
_WORD: Final = 64
_log = logging.getLogger("hybrid.gateway.rounds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What coming home leans on.

    Attributes:
        folder: of all campaigns.
        library: the registry of models.
        files: of the registry; None where it takes none.
        signer: the gateway's rounds key.
        steering: begins rollouts; None where there are none.
        is_delegated: whether boxes believe the key with that id in what rounds learn.
        store, commits: of rows.
        committed: called with a model's name after a version of it came.
        clock_s: a clock that only runs forward.
        wall_s: seconds since 1970, for people.
    """

    folder: Path
    library: Library
    files: BlobStore | None
    signer: Signer
    steering: Steering | None
    is_delegated: Callable[[str], bool]
    store: RoundStore
    commits: Commits
    committed: Callable[[str], object]
    clock_s: Callable[[], float]
    wall_s: Callable[[], float]


class Promotions:
    """Makes steps versions. Belongs to the event loop."""

    def __init__(self, home: Home, campaigns: Campaigns, changed: Callable[[str], None]) -> None:
        self._home = home
        self._campaigns = campaigns
        self._changed = changed
        self._until_s: dict[str, float] = {}

    async def begin(self, course: Course, wish: PromoteWish) -> None:
        """Begin to make a step a version; it is on the disk when this returns.

        Raises:
            NotFound: there is no such step. Conflict: another one is under way.
        """
        step = course.row.step if wish.step is None else wish.step
        if course.candidate_step is not None:
            raise Conflict(
                f"step {course.candidate_step} of campaign {course.id} is being evaluated",
                advice=f"Wait until that is over: hybrid rounds watch {course.id}.",
            )
        if not course.row.step:
            raise NotFound(
                f"campaign {course.id} has made no step yet: no round of it has closed, nothing can come home",
                advice=f"hybrid rounds show {course.id} tells how its rounds stand.",
            )
        if not 1 <= step <= course.row.step:
            raise NotFound(
                f"campaign {course.id} has steps 1 to {course.row.step}, not {step}",
                advice="Name one of these with --step, or none for the newest.",
            )
        file = await asyncio.to_thread(course.steps.read, step)
        right = await asyncio.to_thread(self._campaigns.accuracy, course, as_vector(file.weights))
        view = PromotionView(
            step=step,
            state="evaluating",
            accuracy=right,
            base_accuracy=course.row.base_accuracy,
            policy=wish.policy,
            begun_s=self._home.wall_s(),
        )
        tolerance = course.order.promotion.tolerance
        base = view.base_accuracy
        if right is not None and base is not None and right < base - tolerance - 1e-9:
            reason = (
                f"accuracy {right:.4f} on the evaluation set, the base has {base:.4f}; {tolerance:g} less is allowed"
            )
            view = msgspec.structs.replace(view, state="refused", reason=reason)
        await self._keep(course, view)
        if view.state == "evaluating":
            await self._take_up(course, view)

    async def begin_by_itself(self, course: Course) -> None:
        """What a campaign's order wishes of its newest step; why that cannot be is kept as a refusal.

        Raises:
            StorageError: it could not be kept; it is begun at the gateway's next start.
        """
        wish = PromoteWish(policy=course.order.promotion.policy)
        try:
            await self.begin(course, wish)
        except HybridError as exc:
            if _is_of_disk(exc):
                raise
            _log.warning("rounds.not_promoted campaign=%s error=%s", course.id, exc)
            begun_s = self._home.wall_s()
            refused = PromotionView(
                step=course.row.step, state="refused", reason=str(exc), policy=wish.policy, begun_s=begun_s
            )
            await self._keep(course, refused)

    async def go_on(self, course: Course) -> None:
        """Take up what was under way when the process ended; a step that the disk has damaged meanwhile is refused."""
        for view in await asyncio.to_thread(self._home.store.promotions, course.id):
            if view.state != "evaluating":
                continue
            try:
                await self._take_up(course, view)
            except (CorruptContent, NotFound) as exc:
                await self._keep(course, msgspec.structs.replace(view, state="refused", reason=str(exc)))

    async def _take_up(self, course: Course, view: PromotionView) -> None:
        """Boxes evaluate the step from now on."""
        weights = await asyncio.to_thread(course.steps.exact, view.step, is_inline=True)
        course.evaluated = await asyncio.to_thread(self._home.store.counts, course.id, view.step)
        course.candidate_weights, course.candidate_step = weights, view.step
        course.promotion = view
        self._until_s[course.id] = self._home.clock_s() + course.order.deadline_s

    def is_due(self, course: Course) -> bool:
        """Whether a candidate has been evaluated by enough boxes, or for long enough."""
        if course.promotion is None or course.is_promoting:
            return False
        if not course.order.promotion.cohort_evaluation:
            return True
        boxes = {*self._campaigns.cohorts.of(course.order)}
        if boxes and boxes <= course.declined:
            return True
        able = {*self._campaigns.cohorts.that_may_try(course), *course.evaluated} - course.declined
        wanted = min(max(ENOUGH, course.order.n_least), max(1, len(able)))  # until the deadline one may come back
        return len(course.evaluated) >= wanted or self._home.clock_s() >= self._until_s[course.id]

    async def finish(self, course: Course) -> None:
        """Judge what boxes counted, and make the version.

        Raises:
            StorageError: the disk refuses; the same again later.
        """
        view = course.promotion
        assert view is not None
        course.is_promoting = True
        try:
            try:
                view = _counted(view, list(course.evaluated.values()))
                if view.state != "refused":
                    view = await self._home_with(course, view)
            except Exception as exc:  # a fault of ours, too, ends this step's way home, and is told
                if _is_of_disk(exc):
                    raise
                is_known = isinstance(exc, HybridError)
                _log.warning("rounds.not_promoted campaign=%s step=%d", course.id, view.step, exc_info=not is_known)
                reason = str(exc) if is_known else f"{type(exc).__name__}: {exc}; the gateway's log has more"
                view = msgspec.structs.replace(view, state="refused", reason=reason)
            await self._keep(course, view)
            course.trouble = ""
            course.candidate_step = course.candidate_weights = course.promotion = None
            course.evaluated, course.declined = {}, set()
        finally:
            course.is_promoting = False
            self._changed(course.id)

    async def _home_with(self, course: Course, view: PromotionView) -> PromotionView:
        version, digest = await asyncio.to_thread(self._made, course, view.step)
        await asyncio.to_thread(self._campaigns.note_version, digest)
        self._home.committed(course.order.model)
        view = msgspec.structs.replace(view, state="candidate", version=f"{course.order.model}:{version}")
        if view.policy != "rollout":
            return view
        if not view.rollout:
            try:  # its row says `evaluating` until then: a process that ends here finds or begins it when it starts
                view = msgspec.structs.replace(view, rollout=await self._rolled_out(course, version))
            except HybridError as exc:
                if _is_of_disk(exc):
                    raise
                return msgspec.structs.replace(view, reason=f"no rollout: {exc}")
            course.promotion = msgspec.structs.replace(view, state="evaluating")  # until its row is kept
        return msgspec.structs.replace(view, state="rollout")

    def _made(self, course: Course, step: int) -> tuple[str, str]:
        """The version of a step, signed and in the registry: its word and its digest; blocks."""
        home, order = self._home, course.order
        vector = as_vector(course.steps.read(step).weights)
        version = version_word(order.version, step, course.id)
        versions = home.library.list_versions(order.model)
        for each in versions:  # as it was made: what is said of a campaign that goes on would be another thing now
            if each.version == version and self._is_own(each.artifact_digest, course):
                return each.version, each.artifact_digest
        with laid_out(home.library, course.row.base_digest, home.folder) as base:
            detail = statement_of(home.store, course.row, step, base.manifest.lineage).detail()
            made = candidate(
                base,
                order.variant,
                course.layout.arrays(vector),
                version=version,
                sequence=max(each.sequence for each in versions) + 1,
                campaign=course.id,
                detail=detail,
                training=order.training,
            )
        for content in made.files.values():
            self._put(content)
        signature = home.signer.signature(made.manifest_bytes)
        record = home.library.commit_version(made.manifest_bytes, signature, name=order.model)
        return record.version, record.artifact_digest

    def _is_own(self, digest: str, course: Course) -> bool:
        """Whether a version was learned from a campaign's base, and signed here; blocks."""
        signature = self._home.library.signature(digest)
        bases = learned_from(parse(self._home.library.manifest_bytes(digest)))
        is_signed = signature is not None and signature.key_id == self._home.signer.public.key_id
        return is_signed and course.row.base_digest in bases

    def _put(self, content: bytes) -> None:
        if self._home.files is None:
            raise Conflict("nothing is kept of models here")
        sha256 = hashlib.sha256(content).hexdigest()
        if self._home.library.find_blob(sha256) is not None:
            return
        with self._home.files.begin(sha256, offset=self._home.files.offset(sha256), total_bytes=len(content)) as upload:
            upload.append(content[upload.offset :])
            upload.finish()

    async def _rolled_out(self, course: Course, version: str) -> str:
        steering, order = self._home.steering, course.order
        key = self._home.signer.public
        if not self._home.is_delegated(key.key_id):
            raise Forbidden(
                f"the fleet's trust bundle does not name this gateway's rounds key {key.public_key}: boxes would refuse"
                f" what it signs. `hybrid keys delegate --from OLD --rounds {key.public_key} --out NEW`, `hybrid fleet"
                " trust set NEW`, then promote again"
            )
        if steering is None:
            raise Conflict("this gateway steers no fleet")
        for rollout in steering.ledger.rollouts.values():
            plan = rollout.plan
            if plan.model == order.model and plan.version == version and rollout.course.state in RUNNING:
                return plan.id
        stages = tuple(percent / 100.0 for percent in order.promotion.stages)
        boxes = [steering.boxes.find(box_id) for box_id in self._campaigns.cohorts.of(order)]
        plan = Plan(
            id="",
            model=order.model,
            version=version,
            artifact_digest="",
            selector=rollout_tags(order, [box.tags for box in boxes if box is not None], steering.ledger.assignments),
            stages=stages,
            made_by=f"campaign {course.id}",
        )
        return (await steering.start(plan)).plan.id

    async def _keep(self, course: Course, view: PromotionView) -> None:
        body = msgspec.json.encode(view)
        await self._home.commits.write(lambda db: put_promotion(db, course.id, view.step, body))
        self._changed(course.id)


def _is_of_disk(error: Exception) -> bool:
    """Whether the same may well be done later."""
    if isinstance(error, HybridError):  # some of ours, such as Forbidden, are OSErrors too
        return isinstance(error, StorageError) and not isinstance(error, CorruptContent)
    return isinstance(error, OSError)


def rollout_tags(
    order: Campaign, tags_of_boxes: Sequence[Mapping[str, str]], assignments: Sequence[Assignment]
) -> dict[str, str]:
    """Where a rollout goes: to the cohort, or to the boxes of the one narrower assignment that decides on all of them.

    A rollout to `all` reaches no box that an assignment to `site=lab` decides on.

    Raises:
        Conflict: several narrower assignments decide.
    """
    cohort = order.cohort.tags
    found = [deciding(assignments, tags).get(order.model) for tags in tags_of_boxes]
    narrower = [each.selector for each in found if each is not None and len(each.selector) > len(cohort)]
    if not narrower or len(narrower) < len(found):
        return cohort
    if any(selector != narrower[0] for selector in narrower):
        wheres = "; ".join(sorted({shown(selector) for selector in narrower}))
        raise Conflict(
            f"several assignments of {order.model} decide on the boxes of {shown(cohort)}: {wheres}; "
            "begin a rollout of the version for each of these tags",
            advice="hybrid fleet rollout start MODEL:VERSION --tags TAGS, for each.",
        )
    return cohort | narrower[0]


def version_word(base: str, step: int, campaign: str) -> str:
    """What a learned version is called."""
    suffix = f".r{step}-{campaign}"
    return base[: _WORD - len(suffix)] + suffix


def _counted(view: PromotionView, counts: list[dict[str, int]]) -> PromotionView:
    """With what boxes counted on samples of their own."""
    counts = [each for each in counts if each["n"] > 0]
    n_won, n_lost = sum(each["n_won"] for each in counts), sum(each["n_lost"] for each in counts)
    view = msgspec.structs.replace(view, n_won=n_won, n_lost=n_lost, n_boxes=len(counts))
    if n_lost > n_won:
        reason = f"on their own samples {len(counts)} boxes lost {n_lost} answers by it and won {n_won}"
        return msgspec.structs.replace(view, state="refused", reason=reason)
    return view
