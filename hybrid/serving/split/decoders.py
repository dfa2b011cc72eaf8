"""Decoders of splits: found by digest in the artifacts of this service, opened beside tails, run before them.

Design: a decoder is a session like a tail, under the same budget and in the same queue; only its entropy coder is
Python's, in a thread, its memory held of the bodies' budget. It is not joined to the tail: a tail serves every codec.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod
from time import monotonic, perf_counter
from typing import Final, NamedTuple, TypeVar

import numpy as np

from compression.tensor import TensorSpec
from hybrid.artifact.splits import PREFIX, SplitFiles
from hybrid.errors import ModelError, ModelInvalid, Overloaded, StorageError, UnknownSplit, Warming
from hybrid.partition.cut import Cut
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import open_engine
from hybrid.serving.engines.session import EngineSession
from hybrid.serving.engines.session_cache import Opening
from hybrid.wire.message import InferRequest
from hybrid.wire.split_coding import LatentPrior, latent_of, latent_shape, read_prior
from hybrid.wire.tensor import Tensor

MAX_KNOWN: Final = 64
LISTED_S: Final = 1.0
WARMING_RETRY_S: Final = 0.2

K = TypeVar("K")
V = TypeVar("V")

FindSplits = Callable[[str], Sequence[SplitFiles]]
"""Model digest -> the splits of all artifacts with that model; reads small files."""


def no_splits(_: str) -> Sequence[SplitFiles]:
    """Of a service whose models come without artifacts."""
    return ()


class Decoded(NamedTuple):
    """A decoded tensor, with the seconds that it waited and took."""

    array: np.ndarray
    queue_s: float
    compute_s: float


class _Known(NamedTuple):
    """A split that was asked for: its files, and its entropy coder's tables."""

    split: SplitFiles
    prior: LatentPrior


class Decoders:
    """The decoders of one service.

    Args:
        executor: opens and runs them.
        find: the splits of a model.
        bodies: memory of requests.
    """

    def __init__(self, executor: Executor, find: FindSplits = no_splits, bodies: BodyBudget | None = None) -> None:
        self._executor = executor
        self._find = find
        self._bodies = bodies or BodyBudget()
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._listed: OrderedDict[str, tuple[float, Sequence[SplitFiles]]] = OrderedDict()

    async def offered(self, model_digest: str, shape_key: str) -> tuple[str, ...]:
        """Digests of the splits by which requests of these shapes may come."""
        found = await self._splits(model_digest)
        return tuple({split.digest: None for split in found if split.shape_key == shape_key and split.is_learned})

    async def decode(self, request: InferRequest, tensor: Tensor, cut: Cut, deadline_s: float | None) -> Decoded:
        """The crossing tensor that a request's payload stands for.

        Args:
            request: names the split.
            tensor: its spec is the cut's.
            cut: where the model is cut.
            deadline_s: instant on the clock of `time.perf_counter`.

        Raises:
            UnknownSplit: no artifact here has this split at this cut.
            Warming: its decoder is being opened.
            CorruptContent, ModelError: its files are not what the manifest says, or cannot be opened.
            TensorMismatch: bytes that are no latent.
            Overloaded, DeadlinePassed, EngineFailed: as for any run.
        """
        known = await self._split(request, tensor, cut)
        try:
            session = self._session(known.split)
        except (ModelError, StorageError):
            self._known.pop((request.model_digest, request.split), None)  # its artifact may have been replaced
            raise
        shape = _latent_shape(session, known.split, cut.tensors[0])
        latent, decode_s = await self._latent(tensor, known, shape)
        feeds = {session.signature.inputs[0].name: latent}
        priority = self._executor.settings.priority_of(request.model_digest)
        computed = await self._executor.compute(session, feeds, None, deadline_s, priority=priority)
        return Decoded(computed.outputs[0], computed.queue_s, computed.compute_s + decode_s)

    async def _split(self, request: InferRequest, tensor: Tensor, cut: Cut) -> _Known:
        key = (request.model_digest, request.split)
        known = self._known.get(key)
        if known is None:
            split = _named(await self._splits(request.model_digest), request.split)
            known = _Known(split, await asyncio.to_thread(lambda: read_prior(split.prior_bytes())))
            _put(self._known, key, known)
        self._known.move_to_end(key)
        split = known.split
        if len(cut.tensors) != 1 or (split.cut, split.shape_key, split.codec) != (
            cut.id,
            request.shape_key,
            tensor.codec,
        ):
            raise UnknownSplit(
                f"split {split.id!r} is for another cut or other shapes than the request names; prepare anew",
                split=request.split,
            )
        return known

    async def _splits(self, model_digest: str) -> Sequence[SplitFiles]:
        """The splits of a model, from the disk at most once in a moment."""
        seen_s, found = self._listed.get(model_digest, (-LISTED_S, ()))
        if monotonic() - seen_s < LISTED_S:
            return found
        found = await asyncio.to_thread(self._find, model_digest)
        _put(self._listed, model_digest, (monotonic(), found))
        return found

    def _session(self, split: SplitFiles) -> EngineSession:
        key = (split.files["decoder"].sha256, "decoder")
        session = self._executor.sessions.get(key)
        if session is None:
            failure = self._executor.sessions.failure(key)
            if failure is not None:
                raise failure
            self._executor.sessions.start(key, lambda: self._look(split))
            raise Warming("the decoder of the split is being opened; ask again", retry_after_s=WARMING_RETRY_S)
        return session

    def _look(self, split: SplitFiles) -> Opening:
        path = split.graph_path("decoder")
        facts = facts_of(path)
        return Opening(facts.n_bytes, lambda: open_engine(path, self._executor.settings.engine, facts))

    async def _latent(self, tensor: Tensor, known: _Known, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
        """The latent, and the seconds that its entropy coder took; in a thread, which a caller that leaves leaves."""
        prior, n_bytes = known.prior, prod(shape)
        self._bodies.take(n_bytes)

        def work() -> tuple[np.ndarray, float]:
            started_s = perf_counter()
            try:
                latent = latent_of(tensor, prior, shape)
            except MemoryError as exc:
                raise Overloaded("there is no memory to decode the request; try again", retry_after_s=1.0) from exc
            return latent, perf_counter() - started_s

        task = asyncio.get_running_loop().run_in_executor(None, work)
        task.add_done_callback(lambda done: self._let_go(done, n_bytes))
        return await asyncio.shield(task)

    def _let_go(self, done: "asyncio.Future[tuple[np.ndarray, float]]", n_bytes: int) -> None:
        self._bodies.give(n_bytes)
        if not done.cancelled():
            done.exception()  # seen: whoever left does not ask


def is_split(tensor: Tensor) -> bool:
    """Whether a tensor travels by a split."""
    return tensor.codec.startswith(PREFIX)


def _named(splits: Sequence[SplitFiles], digest: str) -> SplitFiles:
    """The split with a decoder that has this digest.

    Raises:
        UnknownSplit: there is none.
    """
    found = next((split for split in splits if split.digest == digest and split.is_learned), None)
    if found is None:
        raise UnknownSplit(
            f"no artifact here has the split {digest[:16]}… for this model; push the one that the device has",
            split=digest[:64],
        )
    return found


def _put(kept: "OrderedDict[K, V]", key: K, value: V) -> None:
    kept[key] = value
    while len(kept) > MAX_KNOWN:
        kept.popitem(last=False)


def _latent_shape(session: EngineSession, split: SplitFiles, crossing: TensorSpec) -> tuple[int, ...]:
    """Of what a decoder takes, where it makes the crossing tensor of a latent.

    Raises:
        ModelInvalid: it makes something else.
    """
    what = f"the decoder of split {split.id!r}"
    inputs, outputs = session.signature.inputs, session.signature.outputs
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].dtype != "INT8" or outputs[0].dtype != "FP32":
        raise ModelInvalid(f"{what} has not one INT8 input and one FP32 output; make the split anew")
    if tuple(outputs[0].shape) != tuple(crossing.shape):
        raise ModelInvalid(f"{what} gives {list(outputs[0].shape)}, {list(crossing.shape)} crosses; make it anew")
    return latent_shape(inputs[0].shape, crossing, what)
