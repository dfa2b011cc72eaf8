"""What the doctor sees of this machine: Python, packages, engines, clock, disk, processor, memory, ports, token."""

import os
import platform
import shutil
import socket
import struct
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from hybrid.cli.doctor.check import Check, failed, passed, warned

_RELEASED_S: Final = 1_760_000_000
"""A moment before this code was written (October 2025): a clock that shows less is wrong."""

_LOW_DISK_BYTES: Final = 2 * 10**9
_LOW_MEMORY_BYTES: Final = 256 * 2**20
_PORTS: Final = {8700: "the gateway", 8710: "the agent"}


def python() -> Check:
    """The interpreter: a version that is supported, of 64 bit."""
    bits = 8 * struct.calcsize("P")
    seen = f"{platform.python_version()}, {bits} bit, {platform.python_implementation()}"
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return failed("python", seen, "use Python 3.11, 3.12 or 3.13")
    if bits < 64:
        return warned("python", seen, "models beyond 2 GB and most engines need 64 bit: install such a Python")
    return passed("python", seen, version=platform.python_version(), bits=bits)


def packages() -> Check:
    """This package, and two builds of onnxruntime that hide one another."""
    from hybrid import __version__

    engines = {name: _version(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    both = all(engines.values())
    seen = f"hybrid {__version__}, " + ", ".join(f"{name} {text}" for name, text in engines.items() if text)
    if both:
        return warned("packages", seen, "both builds write the same folder: pip uninstall both, then install one")
    return passed("packages", seen, hybrid=__version__, **engines)


def engines() -> Check:
    """onnxruntime runs a model here; what else could."""
    import numpy as np
    import onnxruntime

    from devices.onnx_engine import open_session

    try:
        session = open_session(_tiny_model(), providers=["CPUExecutionProvider"])
        [answer] = session.run(None, {"x": np.array([7], np.float32)})
    except Exception as error:  # noqa: BLE001 - whatever the engine raises, this machine cannot run models
        return failed(
            "engines", f"onnxruntime does not run: {error}", "reinstall it: pip install --force-reinstall onnxruntime"
        )
    if answer.tolist() != [7.0]:
        return failed("engines", f"onnxruntime answers {answer.tolist()} where 7 is right", "reinstall onnxruntime")
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    others = [name for name in ("torch", "ai_edge_litert", "tflite_runtime") if find_spec(name)]
    seen = f"onnxruntime {onnxruntime.__version__} with {', '.join(providers)}"
    seen += f"; also {', '.join(others)}" if others else ""
    return passed("engines", seen, onnxruntime=onnxruntime.__version__, providers=" ".join(providers))


def clock() -> Check:
    """The clock: TLS refuses a certificate from the future, tokens and signatures have dates."""
    now_s = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
    if now_s < _RELEASED_S:
        return failed(
            "clock", f"{shown} is before this release", "set the clock, or let it be set: timedatectl set-ntp true"
        )
    return passed("clock", shown, now_s=round(now_s))


def disk() -> Check:
    """The cache: writable, with room for models and prepared graphs."""
    from hybrid.artifact.cache import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"-")
            file.flush()
    except OSError as error:
        fix = "make it writable, free room, or set HYBRID_CACHE to a folder that is"
        return failed("disk", f"the cache cannot be written: {error.strerror}", fix)
    free_bytes = shutil.disk_usage(folder).free
    seen = f"{free_bytes / 1e9:.1f} GB free for the cache"
    if free_bytes < _LOW_DISK_BYTES:
        return warned("disk", seen, "free some, or set HYBRID_CACHE to a larger disk", free_bytes=free_bytes)
    return passed("disk", seen, free_bytes=free_bytes)


def machine() -> Check:
    """What this machine is, and what a container leaves of it."""
    import psutil

    from devices import machine as machines
    from devices.errors import DeviceError

    facts = machines.facts()
    try:
        known, doubt = machines.this_device(), ""
    except DeviceError as error:
        known, doubt = None, f"{machines.VARIABLE} is set, but {error}"
    limit_bytes = facts.memory_limit_bytes
    free_bytes = int(psutil.virtual_memory().available)
    if limit_bytes is not None:
        free_bytes = min(free_bytes, limit_bytes)
    seen = f"{facts.processor}, {facts.usable_cores:g} of {facts.n_processors} processors, "
    seen += f"{facts.memory_bytes / 2**30:.1f} GiB, {facts.system}"
    seen += f", in {facts.container}" if facts.container else ""
    seen += f"; `{known.name}` of the catalog" if known else ""
    seen += f", limited to {limit_bytes / 2**30:.1f} GiB" if limit_bytes is not None else ""
    about: dict[str, str | float | bool | None] = {
        "processor": facts.processor, "usable_cores": facts.usable_cores, "memory_bytes": facts.memory_bytes,
        "memory_limit_bytes": limit_bytes, "container": facts.container, "machine_class": machines.machine_class(),
    }  # fmt: skip
    if doubt:
        return warned(
            "machine", f"{seen}; {doubt}", "mend or unset it: joules are counted for another machine", **about
        )
    if free_bytes < _LOW_MEMORY_BYTES:
        fix = "end other programs, or raise the container's limit: models would be swapped out or killed"
        return warned("machine", f"{seen}; only {free_bytes / 2**20:.0f} MiB are free", fix, **about)
    return passed("machine", seen, **about)


def speed() -> Check:
    """How fast one core is, by a short benchmark, and which machine of the catalog that is like."""
    from devices.device import REFERENCE_CORE
    from devices.machine import measured_speed

    found = measured_speed()
    like = f", like {found.alike}" if found.alike else ", like none of `hybrid devices`"
    seen = f"one core computes {found.gflops:.0f} Gflop/s: a slowdown of {found.slowdown_ratio:.2g} against an "
    seen += f"{REFERENCE_CORE}{like} (an estimate)"
    return passed(
        "speed", seen, gflops=round(found.gflops, 1), slowdown_ratio=round(found.slowdown_ratio, 2), alike=found.alike
    )


def ports() -> Check:
    """Whether the services could listen on their usual ports."""
    taken = {port: name for port, name in _PORTS.items() if not _is_free(port)}
    facts = {f"port_{port}_free": port not in taken for port in _PORTS}
    if not taken:
        return passed("ports", f"{' and '.join(map(str, _PORTS))} are free", **facts)
    serving = {port: name for port, name in taken.items() if _is_service(port)}
    if serving == taken:
        seen = " and ".join(f"{name} serves on {port}" for port, name in serving.items())
        return passed("ports", seen + (" (more: hybrid agent doctor)" if 8710 in serving else ""), **facts)
    seen = ", ".join(f"{port} is in use (usual port of {name})" for port, name in taken.items())
    return warned("ports", seen, "if that is another program, give the service another one with --port", **facts)


def token(text: str | None) -> Check:
    """Whether there is a token of the right form; it is never shown."""
    from hybrid.errors import Unauthenticated
    from hybrid.transport.token import Token

    if not text:
        return passed("token", "none set (HYBRID_TOKEN): fine for a gateway without authentication", is_set=False)
    try:
        Token.parse(text)
    except Unauthenticated:
        fix = "set it to what `hybrid gateway token create` printed: hyb_, eight characters, _, thirty-two characters"
        return failed("token", "HYBRID_TOKEN is set, but it is no token", fix, is_set=True)
    return passed("token", "HYBRID_TOKEN is set and well-formed", is_set=True)


def keys() -> Check:
    """Whether there is a key to sign with, safely kept, and publishers that are trusted; no key is shown."""
    from hybrid.artifact.publishers import own_key_path, publishers
    from hybrid.errors import HybridError

    try:
        n_trusted = len(publishers())
    except HybridError as error:
        return warned("keys", str(error), f"mend the file or the variable (hybrid explain {error.code})")
    own = own_key_path().exists()
    trusts = f"{n_trusted} trusted publisher{'' if n_trusted == 1 else 's'}"
    has = "a signing key of your own" if own else "no signing key of your own (needed for `hybrid calibrate` only)"
    return passed("keys", f"{has}; {trusts}", own_key=own, n_trusted=n_trusted)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _tiny_model() -> bytes:
    """y = x for one float32; written by hand, since the package onnx takes long to load."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    tensor = field(1, b"\x08\x01" + field(2, field(1, b"\x08\x01")))  # float32, one dimension of size 1
    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(11, field(1, b"x") + field(2, tensor))
    graph += field(12, field(1, b"y") + field(2, tensor))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x0d")  # IR version 8, operators of version 13


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _is_service(port: int) -> bool:
    """Whether somebody on this port speaks the inference protocol, with TLS or without."""
    import http.client
    import ssl

    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # who it is does not matter here
    for connection in (
        http.client.HTTPConnection("127.0.0.1", port, timeout=1),
        http.client.HTTPSConnection("127.0.0.1", port, timeout=1, context=trusting),
    ):
        try:
            connection.request("GET", "/v2/health/live")
            if connection.getresponse().status == 200:
                return True
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return False
