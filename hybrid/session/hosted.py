"""A session over a model that a service has opened and runs itself: each request computed here, offloaded or split."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from hybrid.route.engine import Engine, Settings
from hybrid.route.feeds import Declared
from hybrid.schedule.options import Options
from hybrid.schedule.prospect import Candidate, local_only
from hybrid.session.connected import Neighbourhood, connect
from hybrid.session.device import Device
from hybrid.session.source import Source
from hybrid.session.trip import Answer, Trip

ComputeHere = Callable[[float | None], Awaitable[list[np.ndarray]]]
"""Computes on this machine within so many seconds (None: no limit), in its turn."""


class HostedSession:
    """The half of `hybrid.InferenceSession` that knows other places, over a service's own engine.

    The service opens the model, decides whose turn it is on this machine, and computes here what stays here. Every
    request that leaves is marked as passed on, so that it is not passed on again.

    Args:
        source: the model.
        engine: how whole runs of the model are made on this machine, by threads of the session: beside a gateway's, and
            to learn what they take.
        options: objective and constraints.
        neighbourhood: who may be asked.
        pieces: opens heads and rests.
    """

    def __init__(
        self,
        source: Source,
        engine: Engine,
        options: Options,
        neighbourhood: Neighbourhood,
        *,
        pieces: Callable[..., Engine],
    ) -> None:
        declared = Declared.of(engine.session)
        self.obstacle = declared.obstacle
        self._options = options
        self._device = Device(engine.run)
        self._connection = (
            None
            if declared.obstacle
            else connect(
                source,
                engine,
                self._device,
                declared,
                options,
                settings=Settings(),
                neighbourhood=neighbourhood._replace(hops=1),
                pieces=pieces,
            )
        )

    async def answer(
        self,
        output_names: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        compute_here: ComputeHere,
        deadline_s: float | None = None,
    ) -> Answer:
        """The outputs, and how they came about.

        Args:
            output_names: wanted outputs in order.
            feeds: arrays by input name.
            compute_here: used when this machine alone shall answer.
            deadline_s: seconds that the answer may take; None for no limit.

        Raises:
            DeadlinePassed: no answer in time. Whatever `compute_here` raises.
        """
        trip = Trip(deadline_s=deadline_s)
        self._device.begin()
        try:
            connection = self._connection
            call = None if connection is None else connection.remote.call(output_names, feeds, trip)
            if connection is None or call is None:
                started_s = perf_counter()
                outputs = await compute_here(trip.left_s)
                return Answer(outputs, trip.report_here(perf_counter() - started_s, ""))
            answer = await connection.remote.run_awaitable(call)
            if answer is not None:
                return answer
            with self._device.computing():
                started_s = perf_counter()
                outputs = await compute_here(trip.left_s)
                computed_s = perf_counter() - started_s
            return connection.remote.answered_here(call, outputs, computed_s)
        finally:
            self._device.end()

    def explain(self) -> list[Candidate]:
        """The ways to compute the shapes that were run last, with what each would cost and why it is taken or not."""
        candidates = self._connection.remote.explain() if self._connection is not None else []
        return candidates or [local_only(self.obstacle or "no request yet")]

    def prepare(self, feeds: Mapping[str, Any], timeout_s: float) -> bool:
        """Waits until inputs of these shapes have a verified remote way; whether they have one. Blocking."""
        return self._connection is not None and self._connection.remote.prepare(feeds, timeout_s)

    def close(self, wait_s: float) -> None:
        """Ends background work, waiting at most this long for it, and gives the connection back. Blocking."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(wait_s)
