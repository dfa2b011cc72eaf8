"""What a request asks beyond its tensors, and who computes it: this machine alone, or a session that may ask others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from hybrid.serving.engines.executor import Computed, Executor
from hybrid.serving.engines.job import PRIORITY
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.session import EngineSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks beyond its tensors.

    Attributes:
        priority: 0 to 9, higher first; None leaves it to the model.
        deadline_s: instant on the clock of `time.perf_counter`; None without one.
        hops: how many services passed the request on before this one.
        may_raise: whether its priority may be above the model's own; others may only lower it.
    """

    priority: int | None = None
    deadline_s: float | None = None
    hops: int = 0
    may_raise: bool = True

    def priority_beside(self, models: int) -> int:
        """What counts for a model of that priority."""
        if self.priority is None:
            return models
        return self.priority if self.may_raise else min(self.priority, models)


ORDINARY: Final = Asked()


class Compute(Protocol):
    """Computes requests of a service."""

    async def __call__(
        self,
        model: ServedModel,
        session: EngineSession,
        feeds: Mapping[str, np.ndarray],
        names: Sequence[str],
        asked: Asked,
        *,
        n_checked_bytes: int = -1,
    ) -> Computed:
        """The named outputs, in their order.

        Args:
            model: of the request.
            session: the whole model, opened, or a tail of it.
            feeds: arrays by name.
            names: wanted outputs.
            asked: priority, deadline, hops.
            n_checked_bytes: bytes of the feeds, where they are known to be what the session takes; else -1.

        Raises:
            HybridError: as `Executor.compute` does.
        """
        ...


class ComputeHere:
    """Computes on this machine's engine."""

    __slots__ = ("_executor",)

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def __call__(
        self,
        model: ServedModel,  # noqa: ARG002 (the border's)
        session: EngineSession,
        feeds: Mapping[str, np.ndarray],
        names: Sequence[str],
        asked: Asked,
        *,
        n_checked_bytes: int = -1,
    ) -> Computed:
        """See `Compute`."""
        return await self._executor.compute(
            session,
            feeds,
            names,
            asked.deadline_s,
            n_checked_bytes=n_checked_bytes,
            priority=asked.priority_beside(PRIORITY),
        )
