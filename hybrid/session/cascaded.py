"""A session's cascade: the artifact's small variant here, the shipped model at a gateway, one report of both."""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import msgspec
import numpy as np

from hybrid.artifact.digest import digest_of_files
from hybrid.artifact.folder import Artifact
from hybrid.artifact.manifest import CascadeRule, Variant, variant_files
from hybrid.calibration.permits import artifact_of
from hybrid.cascade.cascade import Cascade, Weighed
from hybrid.cascade.together import Replied, Together
from hybrid.errors import DeadlinePassed, GatewayUnreachable, HybridError
from hybrid.route.allowance import Allowance
from hybrid.route.departure import encoded
from hybrid.route.engine import Engine
from hybrid.schedule.options import Options
from hybrid.scouting.gateways import Gateways
from hybrid.session.report import RunReport
from hybrid.transport.token_source import Credential
from hybrid.wire.message import InferRequest, OutputRequest

if TYPE_CHECKING:
    from hybrid.cascade.cascade import OnHard

log = logging.getLogger("hybrid.session")

HOLD_S: Final = 0.002
STALL_S: Final = 2.0
TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCascade:
    """An artifact with a cascade, and its rule."""

    artifact: Artifact
    rule: CascadeRule

    @property
    def small(self) -> Variant:
        """The variant that answers first."""
        return next(found for found in self.artifact.manifest.variants if found.id == self.rule.small)

    @property
    def small_path(self) -> Path:
        """The file that its engine opens."""
        return self.artifact.path_of(self.small.files[0])

    def runs(self, engine: Engine, options: Options, urls: Sequence[str], token: Credential) -> "CascadedRuns":
        """The runs of a session that has opened the small variant."""
        return CascadedRuns(self, engine, options, urls=urls, token=token)


def found_cascade(model_path: Path, max_accuracy_drop: float) -> FoundCascade | None:
    """The cascade of this shipped model's artifact; None where it has none, or one that may lose more than this."""
    artifact = artifact_of(model_path)
    if artifact is None or artifact.manifest.cascade is msgspec.UNSET:
        return None
    found = FoundCascade(artifact=artifact, rule=artifact.manifest.cascade)
    if found.rule.max_accuracy_drop > max_accuracy_drop:
        log.info("cascade.too_lossy allowed=%g rule=%g", max_accuracy_drop, found.rule.max_accuracy_drop)
        return None
    return found if found.small.engine in ("onnxruntime", "tflite", "tflite-head") else None


class CascadedRuns:
    """Runs of one session through its cascade; safe between threads.

    Args:
        found: the artifact's cascade.
        engine: the small one, open.
        options: of the session: the deadline, the uplink budget, whether inputs may leave.
        urls: named gateways; empty to discover them.
        token: the identity to show.
    """

    def __init__(
        self, found: FoundCascade, engine: Engine, options: Options, *, urls: Sequence[str], token: Credential
    ) -> None:
        self._variant = found.small.id
        self._small_digest = digest_of_files(variant_files(found.artifact.manifest, found.small))
        self._large_digest = found.artifact.manifest.model_digest
        self._options = options
        self._allowance = Allowance(options)
        self._gateways = Gateways(token)
        self._gateways.begin(urls, on_change=lambda: None)
        self._together = Together(self._ask, hold_s=HOLD_S)
        _open.add(self)
        ports = [*engine.session.get_inputs(), *engine.session.get_outputs()]
        self._cascade = Cascade(
            found.rule,
            [port.name for port in engine.session.get_outputs()],
            lambda names, feeds: list(engine.run(names, feeds)),
            self._together,
            may_send=self._may_send,
            takes_rows=all(port.shape and not isinstance(port.shape[0], int) for port in ports),
        )

    def run(
        self, names: Sequence[str] | None, feeds: Mapping[str, Any], deadline_s: float | None = None
    ) -> tuple[list[Any], RunReport]:
        """The wanted outputs, and how they came about; whatever the engine raises for these feeds.

        Args:
            names: wanted outputs, all when None or empty.
            feeds: arrays by input name.
            deadline_s: seconds that this request may take; None for what the options say.

        Raises:
            DeadlinePassed: not even the small model was done in time.
        """
        started_s = perf_counter()
        weighed = self._cascade.run(names, feeds, self._options.deadline_s if deadline_s is None else deadline_s)
        total_s = perf_counter() - started_s
        return weighed.outputs, self._report(weighed, total_s)

    def wait_for_gateway(self, timeout_s: float) -> bool:
        """Waits until a gateway is connected; whether one is."""
        until_s = monotonic() + timeout_s
        while not self._gateways.ready and monotonic() < until_s:
            for client in self._gateways.clients:
                client.wait_settled(min(0.2, max(0.0, until_s - monotonic())))
            if not self._gateways.clients:
                return False
        return bool(self._gateways.ready)

    def on_hard(self, listener: "OnHard | None") -> None:
        """Who is told of requests of which the small model was not sure."""
        self._cascade.on_hard = listener

    def forked(self) -> None:
        """In a forked child: threads stayed with the parent, and whoever held a lock with them."""
        self._together.forked()
        self._gateways.forked()
        self._allowance.forked()

    def close(self) -> None:
        """Gives the gateways back; the small model still answers afterwards."""
        self._together.close()
        self._gateways.close()

    def _report(self, weighed: Weighed, total_s: float) -> RunReport:
        replied = weighed.replied
        report = RunReport(
            head_s=total_s,
            total_s=total_s,
            fallback=weighed.not_escalated,
            model_digest=self._small_digest,
            variant=self._variant,
            answered_by=weighed.by,
            confidence=weighed.confidence,
        )
        if replied is None:
            return report
        away_s = replied.network_s + replied.queue_s + replied.compute_s
        return replace(
            report,
            placement="offload",
            gateway=replied.gateway,
            bytes_up=replied.bytes_up,
            bytes_down=replied.bytes_down,
            head_s=max(0.0, total_s - away_s),
            network_s=replied.network_s,
            queue_s=replied.queue_s,
            tail_s=replied.compute_s,
            model_digest=self._large_digest if weighed.by == "large" else self._small_digest,
            variant="" if weighed.by == "large" else self._variant,
        )

    def _may_send(self, n_bytes: int) -> str:
        if not self._options.raw_input_may_leave:
            return "not_available: raw inputs may not leave this machine (raw_input_may_leave=False)"
        left_bytes = self._allowance.constraints().uplink_left_bytes
        if left_bytes is not None and n_bytes > left_bytes:
            return f"not_available: {n_bytes} bytes do not fit the uplink budget now (max_uplink_bytes_per_s)"
        self._gateways.tend()
        if not self._gateways.ready:
            clients = self._gateways.clients
            for client in clients:
                client.want()
            return f"gateway_unreachable: {clients[0].down_reason or 'connecting' if clients else 'none is known'}"
        return ""

    def _ask(self, feeds: Mapping[str, np.ndarray], names: Sequence[str], left_s: float | None) -> Replied:
        client = next(iter(self._gateways.ready), None)
        if client is None:
            raise GatewayUnreachable("no gateway is connected now; the small model answers")
        codec = self._options.codec if self._options.codec != "auto" else "none"
        tensors = encoded({name: np.ascontiguousarray(array) for name, array in feeds.items()}, codec)
        n_bytes = sum(len(tensor.payload) for tensor in tensors)
        timeout_s = TIMEOUT_S if left_s is None else max(0.001, min(TIMEOUT_S, left_s))
        request = InferRequest(
            inputs=tensors,
            outputs=tuple(OutputRequest(name=name) for name in names),
            model_digest=self._large_digest,
            deadline_s=None if left_s is None else timeout_s,
        )
        started_s = perf_counter()
        self._allowance.spend(n_bytes)
        reply = client.infer(request, stall_s=min(STALL_S, timeout_s), timeout_s=timeout_s)
        try:
            response = reply.result(timeout_s + 1.0)
        except (TimeoutError, CancelledError) as exc:
            reply.cancel()
            if isinstance(exc, HybridError):
                raise
            raise DeadlinePassed("the gateway did not answer in time; the small model does") from exc
        moved_s = perf_counter() - started_s
        return Replied(
            outputs={tensor.spec.name: tensor.to_array() for tensor in response.outputs},
            gateway=client.url,
            bytes_up=n_bytes,
            bytes_down=sum(len(tensor.payload) for tensor in response.outputs),
            network_s=max(0.0, moved_s - response.queue_s - response.compute_s),
            queue_s=response.queue_s,
            compute_s=response.compute_s,
        )


_open: WeakSet[CascadedRuns] = WeakSet()


def _in_child() -> None:
    for runs in list(_open):
        runs.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
