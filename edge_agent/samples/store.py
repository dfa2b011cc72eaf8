"""Samples: inputs and outputs kept for learning, sealed, within bounds, and brought to the gateway where wished.

Design: one sealed file a sample and an index that can be made again from them. Most requests are nobody's business and
every write wears the box's flash, so what is offered after a request is taken once a minute and model, and bytes a day
are bounded; what a program brings itself, or labels, is taken while the day's bytes last.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from edge_agent.part import Problem
from edge_agent.samples.budget import WriteBudget
from edge_agent.samples.shelf import Kept, SampleShelf, ShelfLimits
from hybrid.errors import BadMessage, CorruptContent, HybridError, NotFound, OutboxFull, TooLarge
from hybrid.fleet.messages import SampleRule
from hybrid.fleet.sample import Sample, packed_arrays, parse_sample

Arrays = Mapping[str, np.ndarray]
Rules = Callable[[str], SampleRule]

_UPLOAD_S: Final = 60.0
_MOST_LABEL_BYTES: Final = 64 << 10
_GROUP: Final = 8
_log = logging.getLogger("hybrid.agent.samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLimits:
    """What samples may use of the box.

    Attributes:
        shelf: what is kept.
        offered_every_s: of what requests leave, one a model in so many seconds.
        day_bytes: written in a day, in all.
        waiting_items, waiting_bytes: offered and not yet on the disk.
    """

    shelf: ShelfLimits = ShelfLimits()
    offered_every_s: float = 60.0
    day_bytes: int = 512 << 20
    waiting_items: int = 16
    waiting_bytes: int = 64 << 20


@dataclass(slots=True)
class _Offer:
    model: str
    model_digest: str
    variant: str
    inputs: Arrays
    outputs: Arrays
    label: str
    n_bytes: int


class Samples:
    """The box's samples; a `Part`. All methods are for the event loop.

    Attributes:
        shelf: what is on the disk; its methods block.
        on_label: told of each sample that has a label now, its first or another one.
    """

    name = "samples"

    def __init__(
        self,
        place: Place,
        outbox: Outbox,
        *,
        rules: Rules,
        limits: SampleLimits | None = None,
        problems: Callable[[], Sequence[Problem]] = tuple,
    ) -> None:
        """Make the part.

        Args:
            place: where its files lie; its vault seals them.
            outbox: brings samples of models whose rule is `upload`.
            rules: by the model's name.
            limits: what it may use of the box.
            problems: of the vault.
        """
        self.limits = limits or SampleLimits()
        self.shelf = SampleShelf(place, self.limits.shelf)
        self._place = place
        self._outbox = outbox
        self._rules = rules
        self._vault_problems = problems
        self._budget = WriteBudget(self.limits.day_bytes)
        self._offered_s: dict[str, float] = {}
        self._hard_s: dict[str, float] = {}
        self._waiting: deque[_Offer] = deque()
        self._waiting_bytes = 0
        self._woken = asyncio.Event()
        self._brings = asyncio.Event()
        self._ready = asyncio.Event()
        self._trouble: HybridError | None = None
        self._n_passed_over = 0
        self.on_label: Callable[[str], None] = _unheard

    def offer(
        self,
        model: str,
        model_digest: str,
        variant: str = "",
        *,
        inputs: Arrays,
        outputs: Arrays,
        label: object = None,
        is_hard: bool = False,
    ) -> bool:
        """Offer what a request left, without waiting; whether it is taken. The arrays are copied if it is.

        Nothing is promised: with the power it may be lost before it is on the disk. Of requests of which a cascade's
        small model was not sure (`is_hard`) one in so many seconds is taken whatever ordinary ones came before: they
        are few among many, and the ones to learn from.
        """
        if self._rules(model) == "off":
            return False
        now_s = asyncio.get_running_loop().time()
        clock = self._hard_s if is_hard else self._offered_s
        if label is None and now_s - clock.get(model, float("-inf")) < self.limits.offered_every_s:
            return False
        n_bytes = sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
        if len(self._waiting) >= self.limits.waiting_items or self._waiting_bytes + n_bytes > self.limits.waiting_bytes:
            self._n_passed_over += 1
            return False
        if label is None:
            clock[model] = self._offered_s[model] = now_s
        copies = [{name: np.array(array) for name, array in arrays.items()} for arrays in (inputs, outputs)]
        self._waiting.append(_Offer(model, model_digest, variant, copies[0], copies[1], _text(label), n_bytes))
        self._waiting_bytes += n_bytes
        self._woken.set()
        return True

    async def put(
        self, model_digest: str, variant: str, inputs: Arrays, output: Arrays, label: object = None, *, model: str = ""
    ) -> str | None:
        """Keep a sample; on the disk when this returns its id.

        Args:
            model_digest: of the model that answered.
            variant: of it; empty for the model as it was shipped.
            inputs: by name.
            output: by name.
            label: what was right; anything that JSON holds.
            model: the name, by which the rule is found; empty takes the digest for it.

        Returns:
            Its id, or None where the model's rule is `off` or the bytes of this day are used up.

        Raises:
            OutboxFull: the disk is nearly full. StorageError: it refused otherwise.
            TensorMismatch, TooLarge: it cannot travel.
        """
        await self._ready.wait()
        offer = _Offer(model or model_digest, model_digest, variant, inputs, output, _text(label), 0)
        kept = await self._keep([offer])
        return kept[0]

    def why_not(self, model: str) -> str:
        """Why `put` kept nothing, in words."""
        if self._rules(model) == "off":
            return "the rule of this model is off"
        return f"the {self.limits.day_bytes} bytes that a day may write are used up; more come with the hours"

    async def read(self, sample_id: str) -> Sample:
        """One sample.

        Raises:
            NotFound: there is none, or not any more. CorruptContent: the disk damaged it.
        """
        await self._ready.wait()
        return parse_sample(await asyncio.to_thread(self.shelf.read, sample_id))

    async def list(self, model: str = "", *, limit: int = 1000) -> Sequence[Kept]:
        """The newest samples, of one model or of all, newest first."""
        await self._ready.wait()
        return await asyncio.to_thread(self.shelf.list, model, limit)

    async def labelled(self, model: str, limit: int) -> Sequence[str]:
        """Ids of the newest samples of a model of which somebody said what was right, newest first."""
        await self._ready.wait()
        return await asyncio.to_thread(self.shelf.labelled, model, limit)

    async def label(self, sample_id: str, label: object) -> None:
        """Say what was right, later than the sample was kept; what was uploaded before stays as it was there.

        Raises:
            NotFound, CorruptContent: it is not here any more. BadMessage: no label that JSON holds.
            DiskFull, StorageError: the disk refused; the label that was is the label that is.
        """
        text = _text(label)
        if not text:
            raise BadMessage("a label of null says nothing; name what was right")
        await self._ready.wait()
        n_bytes = await asyncio.to_thread(self.shelf.label, sample_id, text)
        self._budget.take(n_bytes, asyncio.get_running_loop().time())
        self.on_label(sample_id)

    async def forget(self, sample_id: str) -> None:
        """Remove one. Raises `NotFound`."""
        await self._ready.wait()
        await asyncio.to_thread(self.shelf.forget, sample_id)

    # A Part.

    async def run(self) -> None:
        """Keep what is offered and bring what is to be brought, until cancelled."""
        await asyncio.to_thread(self.shelf.open, asyncio.get_running_loop().time())
        self._ready.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_offers(), name="samples-keep")
                group.create_task(self._keep_bringing(), name="samples-bring")
        finally:
            self._ready.clear()
            await asyncio.to_thread(self.shelf.close)

    def problems(self) -> Sequence[Problem]:
        """What is wrong now."""
        found = list(self._vault_problems())
        if self._trouble is not None:
            found.append(
                Problem(
                    code="samples_not_kept",
                    what=f"samples cannot be kept: {self._trouble}",
                    do="Make room on the disk, or look at its health; inference goes on.",
                )
            )
        return found

    def status(self) -> dict[str, object]:
        """What is kept."""
        return {
            "n_items": self.shelf.n_items,
            "n_bytes": self.shelf.n_bytes,
            "n_to_upload": self.shelf.n_to_upload,
            "n_passed_over": self._n_passed_over,
            "day_bytes_left": int(self._budget.left_bytes),
        }

    async def _keep_offers(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(_GROUP, len(self._waiting)))]
                self._waiting_bytes -= sum(offer.n_bytes for offer in group)
                try:
                    await self._keep(group)
                    self._trouble = None
                except HybridError as exc:
                    self._trouble = exc
                    _log.warning("samples.not_kept n=%d code=%s error=%s", len(group), exc.code, exc)

    async def _keep(self, offers: Sequence[_Offer]) -> Sequence[str | None]:
        """Keep a group with one commit; the ids, None where one is not to be kept."""
        now_s = asyncio.get_running_loop().time()
        rules = [self._rules(offer.model) for offer in offers]
        wanted = [offer for offer, rule in zip(offers, rules, strict=True) if rule != "off"]
        packed = await asyncio.to_thread(lambda: [packed_arrays(offer.inputs, offer.outputs) for offer in wanted])
        samples: list[Sample | None] = []
        rest = iter(zip(wanted, packed, strict=True))
        for rule in rules:
            sample = None
            if rule != "off":
                offer, (inputs, output) = next(rest)
                if self._budget.take(len(inputs) + len(output), now_s):
                    sample = self._sample(offer, inputs, output)
                else:
                    self._n_passed_over += 1
            samples.append(sample)
        kept = [sample for sample in samples if sample is not None]
        if kept:
            uploads = {sample.id for sample, rule in zip(samples, rules, strict=True) if sample and rule == "upload"}
            await asyncio.to_thread(self.shelf.put, kept, uploads, now_s)
            for sample in kept:
                if sample.label:
                    self.on_label(sample.id)
            if uploads:
                self._brings.set()
        return [sample.id if sample is not None else None for sample in samples]

    def _sample(self, offer: _Offer, inputs: bytes, output: bytes) -> Sample:
        return Sample(
            id=self.shelf.next_id(),
            model=offer.model,
            model_digest=offer.model_digest,
            variant=offer.variant,
            made_s=self._place.wall_s(),
            label=offer.label,
            inputs=inputs,
            output=output,
        )

    async def _keep_bringing(self) -> None:
        while True:
            self._brings.clear()
            try:
                await self._bring()
            except OutboxFull:
                await asyncio.sleep(_UPLOAD_S)
                continue
            except HybridError as exc:
                _log.warning("samples.not_brought code=%s error=%s", exc.code, exc)
                await asyncio.sleep(_UPLOAD_S)
                continue
            await self._brings.wait()

    async def _bring(self) -> None:
        """Put every sample that is to be uploaded into the outbox."""
        while found := await asyncio.to_thread(self.shelf.to_upload, _GROUP):
            for sample_id in found:
                try:
                    content = await asyncio.to_thread(self.shelf.read, sample_id)
                except (NotFound, CorruptContent) as exc:
                    _log.warning("samples.not_readable id=%s code=%s", sample_id, exc.code)
                    continue
                try:
                    await self._outbox.put("sample", content, about=sample_id)
                except TooLarge as exc:  # for good; whatever else the outbox says, it waits and is brought later
                    _log.warning("samples.not_taken id=%s code=%s", sample_id, exc.code)
            await asyncio.to_thread(self.shelf.uploaded, found)


def _unheard(sample_id: str) -> None:
    """Nobody learns from samples."""
    del sample_id


def _text(label: object) -> str:
    if label is None:
        return ""
    try:
        text = msgspec.json.encode(label)
    except TypeError as exc:
        raise BadMessage(f"a label of type {type(label).__name__}: anything that JSON holds is wanted") from exc
    if len(text) > _MOST_LABEL_BYTES:
        raise BadMessage(f"a label of {len(text)} bytes: at most {_MOST_LABEL_BYTES} are kept")
    return text.decode()
