"""What the handlers of the inference protocol share: models, executor, counters, limits and who may do what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from aiohttp import web

from hybrid.hosting.identity import Right
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.computing import Compute
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.statistics import StatisticsBoard
from hybrid.serving.rest.body import BodyLimits
from hybrid.serving.rest.shared_memory import SharedMemoryRegions

if TYPE_CHECKING:  # it parses models, which a service without batches need not load
    from hybrid.serving.engines.batch_shelf import Verdict

Served = Callable[[ServedModel, Mapping[str, np.ndarray], Mapping[str, np.ndarray], float], None]

EXTENSIONS: Final = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics", "trace", "logging",
)  # fmt: skip
"""Extensions of the protocol that every service here speaks; `system_shared_memory` joins where it is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceService:
    """Everything that a handler of the inference protocol needs.

    Attributes:
        name: of the server, for its metadata.
        version: of the server.
        models: load states over the source of models.
        executor: runs them.
        require: raises `Forbidden` or `Unauthenticated` when the request's sender lacks a right.
        is_ready: whether the service takes requests: false while models load or while it drains.
        statistics: counters by model version.
        limits: of request bodies.
        bodies: the memory of all of them together.
        regions: system shared memory, None where it is not allowed.
        extensions: what the metadata names.
        degraded: why models do not run where the operator wanted them to; empty where they do.
        batching: what trials found about batches of the model with that digest.
        compute: computes the requests; None: this machine's engine does.
        served: told of every answer, after it was encoded: the model, its inputs and outputs by name, and seconds.
    """

    name: str
    version: str
    models: LoadedModels
    executor: Executor
    require: Callable[[web.Request, Right], None]
    is_ready: Callable[[], bool]
    statistics: StatisticsBoard = field(default_factory=StatisticsBoard)
    limits: BodyLimits = field(default_factory=BodyLimits)
    bodies: BodyBudget = field(default_factory=BodyBudget)
    regions: SharedMemoryRegions | None = None
    extensions: tuple[str, ...] = EXTENSIONS
    degraded: Callable[[], str] = lambda: ""
    batching: "Callable[[str], Sequence[Verdict]]" = lambda _: ()
    compute: Compute | None = None
    served: Served | None = None
