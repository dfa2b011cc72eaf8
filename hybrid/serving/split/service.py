"""Answers the messages of devices: whole models by name or digest, tails by digest, shape key and cut."""

import asyncio
from collections.abc import Mapping
from math import prod
from time import perf_counter

import msgspec
import numpy as np

from compression.tensor import datatype_of
from hybrid.errors import BadMessage, DeadlinePassed, DigestMismatch, HybridError, NotFound, TensorMismatch, TooLarge
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.computing import Asked, Compute, ComputeHere
from hybrid.serving.engines.executor import Computed, Executor
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.session import EngineSession
from hybrid.serving.engines.statistics import StatisticsBoard
from hybrid.serving.rest.classification import classify
from hybrid.serving.split.decode import OFF_LOOP_BYTES, decoded, feeds_of, work_bytes
from hybrid.serving.split.decoders import Decoders, is_split
from hybrid.serving.split.tail_shelf import PreparedReply, TailShelf
from hybrid.wire.limits import Limits
from hybrid.wire.message import InferRequest, InferResponse, OutputRequest
from hybrid.wire.tensor import RAW, Tensor

_VALUE_BYTES = 8
"""What a value of an input may take, whatever its type; shapes are judged before their model is known."""


class SplitService:
    """Runs what devices ask for.

    Args:
        executor: runs it.
        models: what there is.
        shelf: tails.
        statistics: counters by model version.
        bodies: memory of all requests, what they decode to included.
        compute: computes them; None: the executor does.
        decoders: of the splits of artifacts; None for none.

    Attributes:
        n_active: requests between their message and their answer.
    """

    def __init__(
        self,
        executor: Executor,
        models: LoadedModels,
        shelf: TailShelf,
        statistics: StatisticsBoard,
        bodies: BodyBudget | None = None,
        *,
        compute: Compute | None = None,
        decoders: Decoders | None = None,
    ) -> None:
        self._compute = compute or ComputeHere(executor)
        self._executor = executor
        self._bodies = bodies or BodyBudget()
        self._decoders = decoders or Decoders(executor)
        self._models = models
        self._shelf = shelf
        self._statistics = statistics
        self._shape_keys: dict[str, ShapeKey] = {}
        self.n_active = 0

    async def infer(self, request: InferRequest, receive_s: float = 0.0) -> InferResponse:
        """Answer one message; cancelling the call ends its work.

        Args:
            request: a whole model's inputs, or a cut's tensors.
            receive_s: how long the message took to arrive; counts against its deadline.

        Raises:
            NotFound: no such model here, or it is not loaded.
            DigestMismatch: the name's model has another digest.
            UnknownCut: the cut is not in this gateway's table.
            UnknownSplit: no artifact here has the split by which it was encoded.
            Warming: the tail is not ready yet.
            TooLarge: inputs of the shape key would not fit a message.
            DeadlinePassed, Overloaded, TensorMismatch, EngineFailed.
        """
        self.n_active += 1
        started_s = perf_counter()
        deadline_s = None if request.deadline_s is None else started_s + request.deadline_s - receive_s
        model: ServedModel | None = None
        try:
            if deadline_s is not None and deadline_s <= started_s:
                raise DeadlinePassed("the deadline passed while the request was on its way; allow more time")
            async with asyncio.timeout(None if deadline_s is None else deadline_s - started_s):
                model = await self._model(request)
                session, cut = await self._session(model, request)
                response, computed = await self._answer(model, session, request, deadline_s, cut)
        except HybridError:  # DeadlinePassed among them, which is a TimeoutError too
            self._count_failure(model, started_s)
            raise
        except TimeoutError:
            self._count_failure(model, started_s)
            raise DeadlinePassed("the deadline passed before the gateway could answer; allow more time") from None
        finally:
            self.n_active -= 1
        counters = self._statistics.of(model.name, model.version)
        counters.succeeded(
            total_s=perf_counter() - started_s,
            input_s=0.0,
            queue_s=computed.queue_s,
            infer_s=computed.compute_s,
            output_s=0.0,
        )
        if computed.n_together:
            counters.shared(computed.n_together, computed.compute_s, leads=computed.leads)
        return InferResponse(
            model_name=model.name,
            model_version=model.version,
            id=request.id,
            outputs=response.outputs,
            receive_s=receive_s,
            queue_s=computed.queue_s,
            compute_s=computed.compute_s,
            via="" if computed.place is None else computed.place.gateway,
        )

    async def prepare(self, model_digest: str, shape_key: str) -> PreparedReply:
        """How far this gateway is with a model and shape key; begins what is missing.

        Raises:
            BadMessage: no shape key.
            TooLarge: inputs of these shapes would not fit a message.
            HybridError: the preparation failed.
        """
        key = self._key(shape_key)
        try:
            model = await self._models.by_digest(model_digest)
        except NotFound:
            return PreparedReply(state="unknown")
        reply = self._shelf.reply(model, key)
        if reply.state != "unknown":
            reply = msgspec.structs.replace(reply, splits=await self._decoders.offered(model_digest, key.text))
        return reply

    async def _model(self, request: InferRequest) -> ServedModel:
        if request.model_digest:
            model = await self._models.by_digest(request.model_digest)
            if request.model_name and request.model_name != model.name:
                named = await self._models.open(request.model_name, request.model_version)
                if named.model.model_digest != request.model_digest:
                    raise _mismatch(named.model, request.model_digest)
                return named.model
            return model
        if request.cut:
            raise BadMessage("a request for a cut names no model digest; tails are never composed by name")
        if not request.model_name:
            raise BadMessage("the request names no model; give hybrid_model_digest or hybrid_model_name")
        return (await self._models.open(request.model_name, request.model_version)).model

    async def _session(self, model: ServedModel, request: InferRequest) -> tuple[EngineSession, Cut | None]:
        if not request.cut:
            return await self._executor.open_whole(model), None
        session, cut = self._shelf.tail(model, self._key(request.shape_key), request.cut)
        return session if cut.kind == "interior" else await self._executor.open_whole(model), cut

    async def _answer(
        self,
        model: ServedModel,
        session: EngineSession,
        request: InferRequest,
        deadline_s: float | None,
        cut: Cut | None,
    ) -> tuple[InferResponse, Computed]:
        n_bytes = work_bytes(session, request)
        if request.split and cut is not None and any(map(is_split, request.inputs)):
            return await self._answer_split(model, session, request, deadline_s, cut=cut, n_bytes=n_bytes)
        if n_bytes <= OFF_LOOP_BYTES:
            return await self._computed(model, session, request, feeds_of(request), deadline_s)
        async with decoded(request, n_bytes, self._bodies) as feeds:
            return await self._computed(model, session, request, feeds, deadline_s)

    async def _answer_split(
        self,
        model: ServedModel,
        session: EngineSession,
        request: InferRequest,
        deadline_s: float | None,
        *,
        cut: Cut,
        n_bytes: int,
    ) -> tuple[InferResponse, Computed]:
        """The same where what crosses goes through a decoder first, whose seconds count with the tail's."""
        if len(request.inputs) != 1:
            raise TensorMismatch(f"{len(request.inputs)} tensors come by a split, which encodes one")
        (tensor,) = request.inputs
        self._bodies.take(n_bytes)
        try:
            found = await self._decoders.decode(request, tensor, cut, deadline_s)
            feeds = {tensor.spec.name: found.array}
            response, computed = await self._computed(model, session, request, feeds, deadline_s)
        finally:
            self._bodies.give(n_bytes)
        queue_s, compute_s = computed.queue_s + found.queue_s, computed.compute_s + found.compute_s
        return response, computed._replace(queue_s=queue_s, compute_s=compute_s)

    async def _computed(
        self,
        model: ServedModel,
        session: EngineSession,
        request: InferRequest,
        feeds: Mapping[str, np.ndarray],
        deadline_s: float | None,
    ) -> tuple[InferResponse, Computed]:
        names = [output.name for output in request.outputs] or session.output_names
        unknown = [name for name in names if name not in session.output_names]
        if unknown:
            raise TensorMismatch(f"outputs {unknown[:5]} wanted; there are {session.output_names[:50]}")
        asked = Asked(deadline_s=deadline_s, hops=request.hops)
        computed = await self._compute(model, session, feeds, names, asked)
        found = dict(zip(names, computed.outputs, strict=True))
        n_bytes = sum(array.nbytes for array in computed.outputs)
        packs = request.output_codec != RAW or any(array.dtype.kind == "O" for array in computed.outputs)
        if packs and n_bytes > OFF_LOOP_BYTES:
            outputs = await asyncio.to_thread(_outputs, request, model, found)
        else:
            outputs = _outputs(request, model, found)
        return InferResponse(outputs=outputs), computed

    def _count_failure(self, model: ServedModel | None, started_s: float) -> None:
        if model is not None:
            self._statistics.of(model.name, model.version).failed(perf_counter() - started_s)

    def _key(self, text: str) -> ShapeKey:
        key = self._shape_keys.get(text)
        if key is None:
            if not text:
                raise BadMessage("the request has no shape key; a tail belongs to one, send hybrid_shape_key")
            if len(self._shape_keys) >= 1024:
                self._shape_keys.clear()
            key = ShapeKey.parse(text)
            _check_size(key)
            self._shape_keys[text] = key
        return key


def _check_size(key: ShapeKey) -> None:
    limit_bytes = Limits().message_bytes
    if sum(prod(shape) * _VALUE_BYTES for _, shape in key.shapes) > limit_bytes:
        raise TooLarge(
            f"the inputs of this shape key have more than {limit_bytes // _VALUE_BYTES} values; send smaller ones"
        )


def _outputs(request: InferRequest, model: ServedModel, found: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    wanted = {output.name: output for output in request.outputs}
    return tuple(
        _output(name, array, request.output_codec, wanted.get(name), model.classes) for name, array in found.items()
    )


def _output(name: str, array: np.ndarray, codec: str, wanted: OutputRequest | None, classes: tuple[str, ...]) -> Tensor:
    if wanted is not None and wanted.classification:
        return Tensor.of(name, classify(name, datatype_of(array), array, wanted.classification, classes))
    return Tensor.of(name, array, codec)


def _mismatch(model: ServedModel, wanted: str) -> DigestMismatch:
    return DigestMismatch(
        f"{model.name}:{model.version} has the digest {model.model_digest[:16]}…, the request wants {wanted[:16]}…; "
        "use the same model on both sides"
    )
