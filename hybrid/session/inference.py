"""The public session: onnxruntime's `InferenceSession`, computed here, at a gateway, or in both places."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import onnxruntime

from hybrid.route.engine import Settings, open_whole
from hybrid.route.feeds import Declared
from hybrid.schedule.options import Options, unavailable
from hybrid.schedule.prospect import Candidate, local_only
from hybrid.session.device import Device
from hybrid.session.report import ReportSlot, RunReport
from hybrid.session.source import Source, parse_model_string
from hybrid.session.trip import Answer, Trip

# A program that set up no logging is not written to; one that did gets everything below the logger `hybrid`.
logging.getLogger("hybrid").addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from devices.fallback import EngineTrouble
    from hybrid.cascade.cascade import OnHard
    from hybrid.schedule.beliefs import Decision
    from hybrid.session.cascaded import CascadedRuns, FoundCascade
    from hybrid.session.connected import Connection
    from hybrid.session.remote import Call


CLOSE_WAIT_S = 2.0
"""How long `close` waits for background work in progress."""


class InferenceSession:
    """A model that runs on this device, at a gateway, or split between both; an answer always comes.

    Takes onnxruntime's own parameters first and has its other methods too (on the local session). Thread-safe.

    Args:
        path_or_bytes: a model file, an artifact (its folder, or its zip), a model's bytes, or `NAME[:VERSION]` of a
            model that a gateway holds.
        sess_options: onnxruntime's session options; thread settings hold for heads too.
        providers: onnxruntime's execution providers.
        provider_options: onnxruntime's options of the providers.
        gateway: `"auto"` discovers gateways by DNS-SD (given a token); a URL or a list of them; None, `"none"` or
            nothing (`""`, `[]`) for this device alone. The environment's `HYBRID_GATEWAY` stands in for `"auto"`.
        token: `hyb_ID_SECRET`; the environment's `HYBRID_TOKEN` stands in for None.
        options: objective and constraints.

    Raises:
        ModelInvalid: a missing or corrupt model file.
        ModelUnsupported: a model with an operator that this engine lacks.
        ModelUnavailable: a named model that is neither cached nor to be had.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: onnxruntime.SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        *,
        gateway: str | Sequence[str] | None = "auto",
        token: str | None = None,
        options: Options | None = None,
    ) -> None:
        self._options = options or Options()
        self._reports = ReportSlot()
        self._model_digest = ""
        urls = _gateway_urls(gateway)
        token = token if token is not None else os.environ.get("HYBRID_TOKEN") or None
        source = parse_model_string(path_or_bytes)
        if source.name:
            from hybrid.session.named import fetched

            source = fetched(source.name, urls, token)
        settings = Settings(sess_options=sess_options, providers=providers, provider_options=provider_options)
        may_discover = token is not None or bool(os.environ.get("HYBRID_PIN"))
        is_alone = urls is None or (urls == () and not may_discover) or self._options.placement == "local"
        found = None if is_alone else _cascade_of(source, self._options)
        model = source.data if source.data is not None else str(source.path)
        self._engine = open_whole(model if found is None else str(found.small_path), settings, source.shown)
        self._run_local = self._engine.run
        n_threads = sess_options.intra_op_num_threads if sess_options is not None else 0
        self._device = Device(self._engine.run, self._options.deadline_s, n_threads)
        self._connection: Connection | None = None
        self._alone = "no gateway, or no request yet"
        self._must_explain = self._options.is_forced or self._options.deadline_s is not None
        self._cascade: CascadedRuns | None = None
        if urls is None or is_alone:
            return
        if found is not None:
            self._cascade = found.runs(self._engine, self._options, urls, token)
            self._alone = "the artifact's small model answers, and the large one at a gateway where it is not sure"
            return
        from hybrid.session.connected import Neighbourhood, connect

        declared = Declared.of(self._engine.session)
        self._alone = declared.obstacle or self._alone
        if not declared.obstacle:
            self._connection = connect(
                source,
                self._engine,
                self._device,
                declared,
                self._options,
                settings=settings,
                neighbourhood=Neighbourhood(urls, token),
            )

    # -- running

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None = None,
    ) -> list[Any]:
        """Computes outputs, as onnxruntime's `run` does; wrong feeds raise what onnxruntime raises.

        A run with `run_options` of its own stays on this device, where they mean something.

        Args:
            output_names: wanted outputs in order; None or empty for all.
            input_feed: arrays by input name.
            run_options: onnxruntime's.

        Returns:
            One array an output. Remote ones are writable, C-contiguous, and within 1e-4 of the local ones (or within
            the bound of a lossy codec).

        Raises:
            DeadlinePassed: no answer within `deadline_s`.
            PlacementUnavailable: a forced placement that cannot be had, with `fallback=False`.
        """
        connection = self._connection
        if connection is None and self._cascade is None and not self._must_explain:
            started_s = perf_counter()
            outputs = self._run_local(output_names, input_feed, run_options)
            if self._engine.trouble is None:
                self._reports.put_local(perf_counter() - started_s, self._model_digest)
            else:
                taken_s = perf_counter() - started_s
                self._put(RunReport(head_s=taken_s, total_s=taken_s, model_digest=self._model_digest))
            return outputs
        self._device.begin()
        try:
            answer = self._answer(connection, output_names, input_feed, run_options)
        finally:
            self._device.end()
        self._put(answer.report)
        return answer.outputs

    def _answer(
        self,
        connection: "Connection | None",
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None,
    ) -> Answer:
        if self._cascade is not None and run_options is None:
            return Answer(*self._cascade.run(output_names, feeds))
        trip = Trip(deadline_s=self._options.deadline_s)
        call = self._call(connection, output_names, feeds, run_options, trip)
        if connection is not None and call is not None:
            answer = connection.remote.run(call)
            if answer is not None:
                return answer
        return self._computed_here(call, output_names, feeds, run_options, trip)

    async def run_awaitable(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None = None,
    ) -> list[Any]:
        """`run` on asyncio: many may be in flight, heads and uploads overlap, cancelling cancels both sides."""
        self._device.begin()
        try:
            answer = await self._answer_awaitable(self._connection, output_names, input_feed, run_options)
        finally:
            self._device.end()
        self._put(answer.report)
        return answer.outputs

    async def _answer_awaitable(
        self,
        connection: "Connection | None",
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None,
    ) -> Answer:
        import asyncio

        if self._cascade is not None and run_options is None:
            return Answer(*await asyncio.to_thread(self._cascade.run, output_names, feeds))
        trip = Trip(deadline_s=self._options.deadline_s)
        call = self._call(connection, output_names, feeds, run_options, trip)
        if connection is not None and call is not None:
            answer = await connection.remote.run_awaitable(call)
            if answer is not None:
                return answer
        own_options = onnxruntime.RunOptions() if run_options is None else None
        try:
            return await asyncio.to_thread(
                self._computed_here, call, output_names, feeds, run_options or own_options, trip
            )
        except asyncio.CancelledError:
            if own_options is not None:
                own_options.terminate = True  # the caller's own options are the caller's to set
            raise

    def _call(
        self,
        connection: "Connection | None",
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None,
        trip: Trip,
    ) -> "Call | None":
        """A request that may travel; else None, and why not where something else was forced."""
        call, why = None, self._alone
        if connection is not None:
            why = "a run with run_options of its own stays on this device"
            if run_options is None:
                call = connection.remote.call(output_names, feeds, trip)
                why = "feeds of this kind stay on this device"
        if call is None and self._options.is_forced:
            trip.fallback = f"not_available: {why}"
        return call

    def _computed_here(
        self,
        call: "Call | None",
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None,
        trip: Trip,
    ) -> Answer:
        """The device's own answer, within what is left of the deadline."""
        before_s, left_s = perf_counter(), trip.left_s
        connection = self._connection
        if connection is not None and call is not None:
            outputs = connection.remote.compute(call, run_options, left_s)
            return connection.remote.answered_here(call, outputs, perf_counter() - before_s)
        outputs = self._device.compute(output_names, feeds, run_options, left_s)
        computed_s = perf_counter() - before_s
        if call is None and self._options.is_forced and not self._options.fallback:
            raise unavailable(self._options, trip.fallback or self._alone)
        return Answer(outputs, trip.report_here(computed_s, self.model_digest))

    def _put(self, report: RunReport) -> None:
        """Keeps the report of a run; it says so where the CPU stands in for an accelerator."""
        trouble = self._engine.trouble
        if trouble is not None:
            report = replace(report, engine_fallback=f"{trouble.provider}: {trouble.reason}")
        self._reports.put(report)

    # -- knowing

    @property
    def engine_trouble(self) -> "EngineTrouble | None":
        """Why this device's CPU computes in place of an accelerator that was asked for; None while nothing is amiss."""
        return self._engine.trouble

    @property
    def report(self) -> RunReport | None:
        """What this thread's or task's last run did; None before its first."""
        return self._reports.get()

    @property
    def model_digest(self) -> str:
        """Digest of the model; empty until it is hashed, which sessions without a gateway never need."""
        return self._connection.remote.model_digest if self._connection is not None else self._model_digest

    @property
    def decisions(self) -> "tuple[tuple[Decision, RunReport], ...]":
        """What was decided for the last runs that could have travelled (at most 256), and what came of it."""
        return self._connection.remote.decisions.recent if self._connection is not None else ()

    def explain(self) -> list[Candidate]:
        """The ways to compute the shapes that were run last, with what each would cost and why it is taken or not."""
        candidates = self._connection.remote.explain() if self._connection is not None else []
        return candidates or [local_only(self._alone)]

    def prepare(self, input_feed: Mapping[str, Any], timeout_s: float = 60.0) -> bool:
        """Prepares for inputs of these shapes now and waits, where the first requests would otherwise run locally.

        Returns:
            Whether a verified remote way exists.
        """
        if self._cascade is not None:
            return self._cascade.wait_for_gateway(timeout_s)
        return self._connection is not None and self._connection.remote.prepare(input_feed, timeout_s)

    def on_hard(self, listener: "OnHard | None") -> None:
        """Who is told of each request of which a cascade's small model was not sure: inputs, answer, confidence.

        Hard examples are the ones worth keeping for training. The listener runs on the thread of the run, so it should
        be short; a model without a cascade has no hard requests.
        """
        if self._cascade is not None:
            self._cascade.on_hard(listener)

    def __getattr__(self, name: str) -> Any:
        """Gives onnxruntime's other methods, on the local session."""
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._engine.session, name)

    # -- ending

    def close(self) -> None:
        """Ends background work and gives the connection back; the session still runs locally afterwards."""
        connection, self._connection = self._connection, None
        cascade, self._cascade = self._cascade, None
        if cascade is not None:
            self._alone = "the session is closed"
            cascade.close()
        if connection is not None:
            self._model_digest = connection.remote.model_digest
            self._alone = "the session is closed"
            connection.close(wait_s=CLOSE_WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        connection = self.__dict__.get("_connection")
        if connection is not None and not sys.is_finalizing():
            connection.abandon()


def _cascade_of(source: Source, options: Options) -> "FoundCascade | None":
    """The cascade of the artifact that a model lies in, where the options allow it; looks at the disk alone."""
    if options.cascade == "off" or options.placement != "auto" or source.path is None:
        return None
    if not any((folder / "manifest.json").exists() for folder in list(source.path.resolve().parents)[:3]):
        return None
    from hybrid.session.cascaded import found_cascade

    return found_cascade(source.path, options.max_accuracy_drop)


def _gateway_urls(gateway: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Named gateways; an empty tuple to discover them; None for this device alone."""
    if gateway == "auto":
        gateway = os.environ.get("HYBRID_GATEWAY", "").strip() or "auto"
        if gateway == "auto":
            return ()
        gateway = gateway.split(",")
    named = [gateway] if isinstance(gateway, str) else gateway or ()
    urls = tuple(url.strip() for url in named if url.strip())
    return urls if urls and [url.lower() for url in urls] != ["none"] else None
