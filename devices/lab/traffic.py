"""A small program that measures a link by using it: bulk transfers and echoes over TCP. Standard library only.

Run as `python -S -E traffic.py serve HOST`, which prints its port, and `python -S -E traffic.py ask HOST PORT WORDS…`,
which prints one JSON object: `echo COUNT` gives round trips, `send SECONDS` what arrived when.
"""

import json
import select
import socket
import struct
import sys
import threading
import time

BIN_S = 0.05
"""How finely arrivals are told."""
_TCP_CONGESTION = getattr(socket, "TCP_CONGESTION", None)
_RESET = struct.pack("ii", 1, 0)


def serve(host: str) -> None:
    """Answers until killed, every connection in a thread."""
    with socket.create_server((host, 0)) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201 - its result
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve_one, args=(connection,), daemon=True).start()


def _serve_one(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as lines:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            what, figure = lines.readline().decode().split()
            if what == "echo":
                while byte := lines.read(1):
                    connection.sendall(byte)
            else:
                arrivals = _count(connection, float(figure))
                connection.sendall(json.dumps(arrivals).encode() + b"\n")
                while connection.recv(1 << 16):
                    pass  # what was still on its way; the asker closes
        except OSError:
            pass  # the asker has what it wanted, or the link was cut


def _count(connection: socket.socket, duration_s: float) -> list[int]:
    """Bytes that arrived in every bin, from the first byte on."""
    arrivals = [0] * round(duration_s / BIN_S)
    began_s = 0.0
    while True:
        received = len(connection.recv(1 << 18))
        now_s = time.monotonic()
        began_s = began_s or now_s
        place = int((now_s - began_s) / BIN_S)
        if not received or place >= len(arrivals):
            return arrivals
        arrivals[place] += received


def ask(host: str, port: int, what: str, figure: str) -> dict[str, object]:
    """Uses the link once; what was measured."""
    with socket.create_connection((host, port), 30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(f"{what} {figure}\n".encode())
        told: dict[str, object] = {"congestion_control": _congestion_control(connection)}
        if what == "echo":
            return told | {"rtts_s": [_echo(connection) for _ in range(int(figure))]}
        return told | {"arrivals": _send(connection), "bin_s": BIN_S}


def _echo(connection: socket.socket) -> float:
    began_s = time.perf_counter()
    connection.sendall(b"x")
    connection.recv(1)
    return time.perf_counter() - began_s


def _send(connection: socket.socket) -> list[int]:
    """Sends as much as goes until the other side says what it got."""
    payload, answer = bytes(1 << 16), b""
    connection.setblocking(False)
    while not answer.endswith(b"\n"):
        readable, writable, _ = select.select([connection], [connection], [], 60)
        if readable:
            answer += connection.recv(1 << 16)
        elif writable:
            connection.send(payload)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    arrivals: list[int] = json.loads(answer)
    return arrivals


def _congestion_control(connection: socket.socket) -> str:
    if _TCP_CONGESTION is None:
        return ""
    return connection.getsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, 16).split(b"\0")[0].decode()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        print(json.dumps(ask(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])))  # noqa: T201 - its result
