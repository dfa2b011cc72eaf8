"""A program of a test: stands on a D-Bus under NetworkManager's name and says how metered its link is."""

import socket
import struct
import sys

from edge_agent.living import system_bus

NAME = "org.freedesktop.NetworkManager"


def serve(bus: str, metered: int) -> None:
    """Take the name, say `ready`, and answer every call with the same number, until killed."""
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    wire.connect(bus)
    system_bus._greet(wire)
    system_bus._ask(wire, 1, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.Hello")
    body = struct.pack("<I", len(NAME)) + NAME.encode() + b"\0"
    body += bytes(-len(body) % 4) + struct.pack("<I", 4)
    fields = b""
    for code, kind, text in (
        (1, "o", "/org/freedesktop/DBus"), (2, "s", "org.freedesktop.DBus"), (3, "s", "RequestName"),
        (6, "s", "org.freedesktop.DBus"),
    ):  # fmt: skip
        fields += bytes(-len(fields) % 8) + bytes([code, 1, ord(kind), 0]) + system_bus._string(text)
    fields += bytes(-len(fields) % 8) + bytes([8, 1, ord("g"), 0, 2]) + b"su\0"
    head = struct.pack("<cBBBIII", b"l", 1, 0, 1, len(body), 2, len(fields)) + fields
    wire.sendall(head + bytes(-len(head) % 8) + body)
    system_bus._answer(wire, 2)
    print("ready", flush=True)
    serial = 10
    while True:
        first = system_bus._exactly(wire, 16)
        n_body, asked, n_fields = struct.unpack("<III", first[4:])
        fields = system_bus._exactly(wire, n_fields + (-n_fields % 8))
        system_bus._exactly(wire, n_body)
        if first[1] != 1:
            continue
        place = fields.index(b"\x07\x01s\0") + 4  # the sender
        (length,) = struct.unpack("<I", fields[place : place + 4])
        sender = fields[place + 4 : place + 4 + length].decode()
        back = bytes([5, 1, ord("u"), 0]) + struct.pack("<I", asked)
        back += bytes([6, 1, ord("s"), 0]) + system_bus._string(sender)
        back += bytes(-len(back) % 8) + bytes([8, 1, ord("g"), 0, 1]) + b"v\0"
        answer = b"\x01u\0\0" + struct.pack("<I", metered)
        head = struct.pack("<cBBBIII", b"l", 2, 1, 1, len(answer), serial, len(back)) + back
        wire.sendall(head + bytes(-len(head) % 8) + answer)
        serial += 1


serve(sys.argv[1], int(sys.argv[2]))
