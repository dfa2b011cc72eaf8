"""Two ends of a channel, joined by two byte pipes that the test delivers from as it likes."""

from dataclasses import dataclass, field

import numpy as np

from hybrid.wire.channel import Channel
from hybrid.wire.events import Event
from hybrid.wire.limits import Limits
from hybrid.wire.message import InferRequest, InferResponse
from hybrid.wire.tensor import Tensor


@dataclass
class Pair:
    client: Channel
    server: Channel
    now_s: float = 0.0
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)

    def flush_client(self, budget: int = 32768) -> None:
        self.up += self.client.next_frames(budget, self.now_s)

    def flush_server(self, budget: int = 32768) -> None:
        self.down += self.server.next_frames(budget, self.now_s)

    def deliver_up(self, n: int) -> list[Event]:
        data = bytes(self.up[:n])
        del self.up[:n]
        return self.server.receive(data, self.now_s) if data else []

    def deliver_down(self, n: int) -> list[Event]:
        data = bytes(self.down[:n])
        del self.down[:n]
        return self.client.receive(data, self.now_s) if data else []

    def settle(self) -> tuple[list[Event], list[Event]]:
        """Delivers all until nothing moves: the client's and the server's events."""
        at_client: list[Event] = []
        at_server: list[Event] = []
        while True:
            self.flush_client()
            self.flush_server()
            if not self.up and not self.down:
                return at_client, at_server
            at_server += self.deliver_up(1 << 30)
            at_client += self.deliver_down(1 << 30)


def make_pair(client: Limits | None = None, server: Limits | None = None) -> Pair:
    return Pair(
        Channel("client", limits=client or Limits(), software="client", now_s=0.0),
        Channel("server", limits=server or Limits(), software="server", now_s=0.0),
    )


def open_pair(client: Limits | None = None, server: Limits | None = None) -> Pair:
    pair = make_pair(client, server)
    pair.settle()
    assert pair.client.state == pair.server.state == "open"
    return pair


def request_of(n_bytes: int, name: str = "x", fill: int = 0) -> InferRequest:
    return InferRequest(model_name="m", inputs=(Tensor.of(name, np.full(n_bytes, fill, dtype=np.uint8)),))


def response_of(n_bytes: int, fill: int = 0) -> InferResponse:
    return InferResponse(model_name="m", outputs=(Tensor.of("y", np.full(n_bytes, fill, dtype=np.uint8)),))
