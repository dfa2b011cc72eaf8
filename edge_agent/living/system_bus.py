"""One question to the system's D-Bus: a property of an object, as a number, without a library for it.

Design: what is wanted is a single unsigned number of NetworkManager. The bus speaks a short text greeting and then
binary messages; two of them are written here and their answers read. Source: D-Bus specification 0.43, "Marshaling" and
"Message Protocol".
"""

import math
import os
import socket
import struct
from time import monotonic
from typing import Final

SYSTEM_BUS: Final = "/run/dbus/system_bus_socket"
_WITHIN_S: Final = 2.0
_MOST_BYTES: Final = 1 << 20
_CALL, _RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 5, 6, 8


class BusUnavailable(Exception):
    """There is no bus, nobody of that name on it, or it answered otherwise; the message says which."""


def property_number(destination: str, path: str, name: str, *, bus: str = SYSTEM_BUS) -> int:
    """An unsigned 32-bit property `INTERFACE.NAME` of an object; blocks for two seconds at most.

    Raises:
        BusUnavailable: it cannot be had.
    """
    interface, _, member = name.rpartition(".")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            until_s = monotonic() + _WITHIN_S
            wire.settimeout(_WITHIN_S)
            wire.connect(bus)
            _greet(wire, until_s)
            _ask(wire, 1, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.Hello")
            _ask(wire, 2, destination, path, "org.freedesktop.DBus.Properties.Get", interface, member)
            return _number(_answer(wire, 2, until_s))
    except (OSError, struct.error, IndexError, ValueError) as exc:
        raise BusUnavailable(f"{bus}: {exc}") from exc


def _greet(wire: socket.socket, until_s: float = math.inf) -> None:
    wire.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    line = b""
    while not line.endswith(b"\r\n"):
        byte = _some(wire, 1, until_s)
        if not byte or len(line) > 1000:
            raise BusUnavailable("the bus ended the greeting")
        line += byte
    if not line.startswith(b"OK "):
        raise BusUnavailable(f"the bus refused this user ({line[:60]!r})")
    wire.sendall(b"BEGIN\r\n")


def _ask(wire: socket.socket, serial: int, destination: str, path: str, name: str, *words: str) -> None:
    interface, _, member = name.rpartition(".")
    body = b""
    for word in words:
        body += _padded(body, 4) + _string(word)
    fields = b""
    for code, kind, text in (
        (_PATH, "o", path), (_INTERFACE, "s", interface), (_MEMBER, "s", member), (_DESTINATION, "s", destination),
    ):  # fmt: skip
        fields += _padded(fields, 8) + bytes([code, 1, ord(kind), 0]) + _string(text)
    if words:
        signature = b"s" * len(words)
        fields += _padded(fields, 8) + bytes([_SIGNATURE, 1, ord("g"), 0, len(signature)]) + signature + b"\0"
    head = struct.pack("<cBBBIII", b"l", _CALL, 0, 1, len(body), serial, len(fields)) + fields
    wire.sendall(head + _padded(head, 8) + body)


def _answer(wire: socket.socket, serial: int, until_s: float = math.inf) -> tuple[str, bytes]:
    """Byte order and body of the answer to a call; signals and other answers are passed over."""
    while True:
        head = _exactly(wire, 16, until_s)
        order = "<" if head[:1] == b"l" else ">"
        kind = head[1]
        n_body, _, n_fields = struct.unpack(order + "III", head[4:])
        if n_body + n_fields > _MOST_BYTES:
            raise BusUnavailable("the bus sent a message that is too long")
        fields = _exactly(wire, n_fields + (-n_fields % 8), until_s)
        body = _exactly(wire, n_body, until_s)
        if _reply_serial(order, fields) == serial and kind in (_RETURN, _ERROR):
            if kind == _ERROR:
                raise BusUnavailable("nobody there knows this")
            return order, body


def _reply_serial(order: str, fields: bytes) -> int:
    """The call that a message answers: a field of code 5 with a number; it stands at a multiple of eight."""
    for at in range(0, len(fields) - 7, 8):
        if fields[at : at + 4] == bytes([_REPLY_SERIAL, 1, ord("u"), 0]):
            return int(struct.unpack(order + "I", fields[at + 4 : at + 8])[0])
    return 0


def _number(answer: tuple[str, bytes]) -> int:
    order, body = answer
    if body[:4] != b"\x01u\0\0":  # a variant of signature "u", padded to four
        raise BusUnavailable(f"the property is no number ({body[:4]!r})")
    return int(struct.unpack(order + "I", body[4:8])[0])


def _exactly(wire: socket.socket, n_bytes: int, until_s: float = math.inf) -> bytes:
    data = b""
    while len(data) < n_bytes:
        part = _some(wire, n_bytes - len(data), until_s)
        if not part:
            raise BusUnavailable("the bus ended the connection")
        data += part
    return data


def _some(wire: socket.socket, n_bytes: int, until_s: float) -> bytes:
    """What comes next; the moment until which the whole question may take counts, however often bytes trickle in."""
    left_s = until_s - monotonic()
    if left_s <= 0:
        raise BusUnavailable(f"the bus gave no answer within {_WITHIN_S:.0f} s")
    wire.settimeout(None if math.isinf(left_s) else left_s)
    return wire.recv(n_bytes)


def _padded(data: bytes, to: int) -> bytes:
    return bytes(-len(data) % to)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"
