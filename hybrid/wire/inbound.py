"""A message that is arriving: header first, checked, then its body into memory that was reserved for it."""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from hybrid.errors import BadFrame, TooLarge
from hybrid.wire.limits import HEADER_BYTES, Limits
from hybrid.wire.message import BodyPlan, InferRequest, InferResponse

PREFIX_BYTES: Final = 4
"""The header's length comes first, as a little-endian u32."""

Decode = (
    Callable[[memoryview, Limits], BodyPlan[InferRequest]] | Callable[[memoryview, Limits], BodyPlan[InferResponse]]
)


class Budget:
    """Memory for bodies that are larger than a stream's initial credit, first come, first served."""

    def __init__(self, n_bytes: int) -> None:
        self._free_bytes = n_bytes
        self._waiting: deque[Inbound] = deque()

    def ask(self, inbound: "Inbound") -> bool:
        """Whether it got its memory at once; else it waits in line."""
        if self._waiting or inbound.n_body_bytes > self._free_bytes:
            self._waiting.append(inbound)
            return False
        self._free_bytes -= inbound.n_body_bytes
        return True

    def give_back(self, inbound: "Inbound") -> list["Inbound"]:
        """Frees what it held or its place in line; those whose turn came."""
        if inbound in self._waiting:
            self._waiting.remove(inbound)
        else:
            self._free_bytes += inbound.n_body_bytes
        served: list[Inbound] = []
        while self._waiting and self._waiting[0].n_body_bytes <= self._free_bytes:
            served.append(self._waiting.popleft())
            self._free_bytes -= served[-1].n_body_bytes
        return served


class Ledger(Protocol):
    """Memory of the bodies on all connections of a process."""

    def take(self, n_bytes: int) -> None:
        """Reserve. Raises `Overloaded` when it does not fit."""
        ...

    def give(self, n_bytes: int) -> None:
        """Let it go."""
        ...


class Inbound:
    """One message on its way in.

    Attributes:
        stream: where it arrives.
        received_bytes: all bytes so far, prefix and header included.
        limit_bytes: what the peer may send in all.
        first_s: when its first byte came.
        uses_budget: whether it holds, or waits for, memory of the budget.
        ledger_bytes: what it reserved in the ledger.
    """

    __slots__ = (
        "_body", "_decode", "_early", "_filled_bytes", "_header_bytes", "_ledger", "_limits", "_needed_bytes", "_plan",
        "first_s", "ledger_bytes", "limit_bytes", "received_bytes", "stream", "uses_budget",
    )  # fmt: skip

    def __init__(
        self, stream: int, decode: Decode, limits: Limits, first_s: float, ledger: Ledger | None = None
    ) -> None:
        self.stream = stream
        self.received_bytes = 0
        self.limit_bytes = limits.initial_credit_bytes
        self.first_s = first_s
        self.uses_budget = False
        self._decode = decode
        self._limits = limits
        self._early = bytearray()
        self._plan: BodyPlan[InferRequest] | BodyPlan[InferResponse] | None = None
        self._body: memoryview | None = None
        self._filled_bytes = 0
        self._header_bytes = 0
        self._needed_bytes = PREFIX_BYTES
        self._ledger = ledger
        self.ledger_bytes = 0

    @property
    def n_body_bytes(self) -> int:
        """Bytes of the body, once the header is known."""
        return 0 if self._plan is None else self._plan.n_body_bytes

    def take(self, payload: memoryview, budget: Budget, *, end: bool) -> InferRequest | InferResponse | None:
        """Takes the next bytes; the message when they were the last.

        Raises:
            BadFrame: more than the credit, or an end in the wrong place.
            BadMessage, TensorMismatch, TooLarge: the header fails its checks.
            Overloaded: the bodies of all connections leave no room for this one.
        """
        self.received_bytes += len(payload)
        if self.received_bytes > self.limit_bytes:
            raise BadFrame(f"stream {self.stream} sent {self.received_bytes} bytes, its credit is {self.limit_bytes}")
        if self._body is not None:
            self._fill(payload)
        elif self._plan is None and not self._early:
            self._begin(payload, budget)
        else:
            self._early += payload
            if self._plan is None and len(self._early) >= self._needed_bytes:
                early, self._early = self._early, bytearray()
                self._begin(memoryview(early), budget)
        is_complete = self._body is not None and self._filled_bytes == len(self._body)
        if end != is_complete or (not end and not payload):
            raise BadFrame(f"stream {self.stream} ended after {self.received_bytes} bytes, not where its header says")
        return self._plan.fill(self._body) if end and self._plan and self._body is not None else None

    def _begin(self, start: memoryview, budget: Budget) -> None:
        """Takes all that has come so far; most messages bring their header in one piece, which is not copied."""
        stop = PREFIX_BYTES + int.from_bytes(start[:PREFIX_BYTES], "little")
        if stop > PREFIX_BYTES + HEADER_BYTES and len(start) >= PREFIX_BYTES:
            raise TooLarge(f"a message header of {stop - PREFIX_BYTES} bytes; the limit is {HEADER_BYTES}")
        if len(start) < PREFIX_BYTES or len(start) < stop:
            self._needed_bytes = stop if len(start) >= PREFIX_BYTES else PREFIX_BYTES
            self._early += start
            return
        self._plan = self._decode(start[PREFIX_BYTES:stop], self._limits)
        self._header_bytes = stop
        rest = start[stop:]
        n_body_bytes = self._plan.n_body_bytes
        if len(rest) > n_body_bytes:
            raise BadFrame(f"stream {self.stream} sent more bytes than its header declares")
        if self._ledger is not None:
            self._ledger.take(n_body_bytes)
            self.ledger_bytes = n_body_bytes
        self.uses_budget = stop + n_body_bytes > self._limits.initial_credit_bytes
        if not self.uses_budget or budget.ask(self):
            self._allocate()
            self._fill(rest)
        else:
            self._early += rest

    def serve(self) -> None:
        """Its turn has come: takes the memory that was reserved for it."""
        self._allocate()
        early, self._early = self._early, bytearray()
        self._fill(memoryview(early))

    def _allocate(self) -> None:
        n_body_bytes = self.n_body_bytes
        self._body = np.empty(n_body_bytes, dtype=np.uint8).data  # not zeroed: memory is taken as bytes come
        self.limit_bytes = max(self.limit_bytes, self._header_bytes + n_body_bytes)

    def _fill(self, payload: memoryview) -> None:
        if self._body is None or self._filled_bytes + len(payload) > len(self._body):
            raise BadFrame(f"stream {self.stream} sent more bytes than its header declares")
        self._body[self._filled_bytes : self._filled_bytes + len(payload)] = payload
        self._filled_bytes += len(payload)
