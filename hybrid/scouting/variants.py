"""Opens and times the local variants that an artifact declares and a trusted calibration permits.

Design: a variant costs memory for as long as it is open, so the fastest permitted one stays, and none that is slower
than the model itself. Nothing is opened for a session whose model lies in no artifact.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Final

import numpy as np
import onnxruntime

from devices.errors import DeviceError
from hybrid.artifact.folder import Artifact
from hybrid.artifact.manifest import Variant
from hybrid.calibration.permits import CalibrationFinder, artifact_of
from hybrid.errors import HybridError
from hybrid.profile.record import Timing
from hybrid.route.engine import Engine
from hybrid.route.route import Route
from hybrid.route.variants import LocalVariant, fastest
from hybrid.schedule.prospect import Prospect
from hybrid.scouting.background import N_RUNS, BackgroundEngine
from hybrid.scouting.knowledge import ASK_AGAIN_S
from hybrid.transport.client import GatewayClient

log = logging.getLogger("hybrid.session")

WHOLE: Final = "output"
"""The cut of a calibration's cell that is about a variant as a whole."""

GAIN_RATIO: Final = 0.9
"""A variant is worth its memory only if it takes at most this share of the model's seconds."""


class Variants:
    """The local variants of one session; used on the preparation thread only.

    Args:
        model_path: the model's file, in whose artifact variants are looked for; None where it has none of its own.
        model_digest: digest of the model.
        device: opens and times them.
        limit: the largest accuracy drop that the session permits.
        session: the open model, with its outputs and execution providers.
    """

    def __init__(
        self,
        model_path: Path | None,
        model_digest: str,
        device: BackgroundEngine,
        *,
        limit: float,
        session: onnxruntime.InferenceSession,
    ) -> None:
        self._device = device
        self._outputs = tuple(node.name for node in session.get_outputs())
        self._max_accuracy_drop = limit
        artifact = artifact_of(model_path) if model_path is not None else None
        self._drops: list[tuple[Variant, Path, CalibrationFinder]] = []
        if artifact is not None and model_path is not None:
            self._drops = [
                (variant, artifact.path_of(variant.files[0]), CalibrationFinder(model_path, model_digest, variant.id))
                for variant in _runnable(artifact, session.get_providers())
            ]
        for _, _, finder in self._drops:
            finder.look()
        self._engines: dict[str, Engine] = {}
        self._asked_s: dict[tuple[str, str], float] = {}

    def offer(self, route: Route, clients: Sequence[GatewayClient]) -> None:
        """Gives a route its fastest permitted variant: when the model's own seconds are known, and on a new word.

        Args:
            route: of some shapes.
            clients: gateways that are connected; asked for calibrations.
        """
        has_news = self._ask(route, clients)
        if (route.variants is not None and not has_news) or route.sample is None or route.local_s is None:
            return
        timed = [found for entry in self._drops if (found := self._timed(route, *entry)) is not None]
        best = fastest(timed, GAIN_RATIO * route.local_s, self._max_accuracy_drop)
        for variant, _, _ in self._drops:
            if best is None or variant.id != best.prospect.variant:
                self._engines.pop(variant.id, None)
        route.put_variants((best,) if best is not None else ())

    def _ask(self, route: Route, clients: Sequence[GatewayClient]) -> bool:
        """Asks gateways for calibrations of the variants, now and then; whether one has news."""
        has_news = False
        for client in clients if self._drops else ():
            place = (client.url, route.shape_key.text)
            last_s = self._asked_s.get(place)
            if last_s is None or monotonic() - last_s >= ASK_AGAIN_S:
                self._asked_s[place] = monotonic()
                asked = [finder.ask(client, route.shape_key.text) for _, _, finder in self._drops]
                has_news |= any(asked)
        return has_news

    def _timed(self, route: Route, variant: Variant, path: Path, finder: CalibrationFinder) -> LocalVariant | None:
        drop = finder.drop(route.shape_key.text, WHOLE, "none")
        if drop is None or drop > self._max_accuracy_drop or route.sample is None:
            return None
        try:
            engine = self._engines.get(variant.id) or self._device.open_piece(path)
            outputs, seconds = self._device.timed_run(engine.run, self._outputs, route.sample, n_runs=N_RUNS + 1)
        except (HybridError, DeviceError) as exc:
            log.warning("variant.unusable id=%s error=%s", variant.id, exc)
            return None
        except Exception as exc:  # noqa: BLE001  (whatever the engine raises for these inputs)
            log.warning("variant.unusable id=%s error=%s", variant.id, type(exc).__name__)
            return None
        if route.reference is not None and not _alike(outputs, route.reference):
            log.warning("variant.unusable id=%s error=%s", variant.id, "other outputs than the model's")
            return None
        self._engines[variant.id] = engine
        head_s = Timing.of(seconds[1:] or seconds).low_s / route.device_speed_ratio
        prospect = Prospect(placement="local", variant=variant.id, head_s=head_s, accuracy_drop=drop)
        return LocalVariant(run=engine.run, prospect=prospect)


def _runnable(artifact: Artifact, providers: list[str]) -> list[Variant]:
    """The variants beside the shipped model that this session's engine runs, with what they require."""
    return [
        variant
        for variant in artifact.manifest.variants[1:]
        if variant.engine in ("onnxruntime", "tflite", "tflite-head")
        and all(name == "provider" and value in providers for name, value in variant.requires.items())
    ]


def _alike(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    """Whether the outputs have the model's own shapes and datatypes; how far their values may be is calibrated."""
    return all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(found, wanted, strict=True))
