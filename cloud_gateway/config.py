"""Every setting of the gateway, read once: a flag over an environment variable over the TOML file over the default."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, cast

ENV_PREFIX: Final = "HYBRID_GATEWAY_"

Value = str | int | float | bool | Path | None


def setting(default: Value, text: str) -> Any:
    """A field with its documentation, which the flag's help and docs/gateway.md repeat."""
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """All settings of one gateway: field `drain_s` is flag `--drain-s` and variable `HYBRID_GATEWAY_DRAIN_S`."""

    host: str = setting("127.0.0.1", "Address to listen on; any but loopback speaks TLS.")
    port: int = setting(8700, "Port to listen on; 0 takes a free one, the ready line says which.")
    data: Path = setting(Path("hybrid-gateway"), "Folder of models, tokens and certificate; one gateway at a time.")
    no_auth: bool = setting(False, "Ask for no tokens; refused on any address but loopback.")
    plain_http: bool = setting(False, "Speak HTTP on any address; for use behind a proxy that ends TLS.")
    tls_cert: Path | None = setting(None, "PEM file of a certificate chain to serve with, instead of an own one.")
    tls_key: Path | None = setting(None, "PEM file of its private key.")
    no_announce: bool = setting(False, "Do not announce this gateway by DNS-SD.")
    name: str = setting("", "Name in the announcement; empty takes the machine's.")
    allow_shared_memory: bool = setting(False, "Let clients on this machine register shared memory; loopback only.")
    n_runs: int = setting(0, "Engine runs at the same time; further ones wait. 0 takes half the cores, at least two.")
    n_intra_threads: int = setting(0, "Threads inside one run; 0 takes one a core.")
    max_waiting: int = setting(256, "Requests that may wait for the engine; further ones are refused with 503.")
    session_memory_bytes: int = setting(
        2 << 30, "Memory for opened models and tails; what is worth least leaves, a larger model is refused."
    )
    provider: str = setting(
        "auto", "Where models run: auto (CUDA where onnxruntime has it), cpu, cuda, or torch (on CUDA)."
    )
    gpu_device: int = setting(0, "The CUDA device.")
    gpu_memory_bytes: int = setting(0, "Memory of the GPU for models and tails; 0 takes four fifths of it.")
    batching: str = setting(
        "off", "Requests share runs: off, auto (where proved to keep rows apart and measured to pay), always (proved)."
    )
    batch_delay_s: float = setting(0.002, "The longest that a request waits for others to share its run.")
    body_memory_bytes: int = setting(1 << 30, "Memory for all request bodies in flight; further ones get 503.")
    max_body_bytes: int = setting(256 << 20, "Largest request body, packed and unpacked.")
    max_json_bytes: int = setting(1 << 20, "Largest JSON in front of binary tensors.")
    body_timeout_s: float = setting(30.0, "How far a body may fall behind 1 kB/s before it is given up.")
    header_timeout_s: float = setting(20.0, "How long a connection may take to send its first request.")
    keepalive_s: float = setting(75.0, "How long an idle connection stays open.")
    max_connections: int = setting(4096, "Connections at the same time; further ones are closed at once.")
    drain_s: float = setting(20.0, "How long running requests may take after SIGTERM.")
    inline_s: float = setting(0.0003, "Models that run faster than this do so on the event loop; 0 for none.")
    event_loop: str = setting("auto", "auto (uvloop where installed), asyncio or uvloop.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def speaks_tls(self) -> bool:
        """Whether the listener ends TLS: on any address but loopback, and wherever a certificate is given."""
        return not self.plain_http and (not self.is_loopback or self.tls_cert is not None)

    def check(self) -> None:
        """Refuse combinations that would be unsafe or senseless.

        Raises:
            ValueError: with what to change.
        """
        if self.no_auth and not self.is_loopback:
            raise ValueError(f"--no-auth on {self.host} would let anyone in; drop it, or listen on 127.0.0.1")
        if self.allow_shared_memory and not self.is_loopback:
            raise ValueError(f"--allow-shared-memory works on loopback only, not on {self.host}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together; give both or neither")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} does not exist; give 0 to 65535")
        if self.event_loop not in ("auto", "asyncio", "uvloop"):
            raise ValueError(f"event loop {self.event_loop!r} is unknown; use auto, asyncio or uvloop")
        if self.provider not in ("auto", "cpu", "cuda", "torch"):
            raise ValueError(f"provider {self.provider!r} is unknown; use auto, cpu, cuda or torch")
        if self.batching not in ("auto", "off", "always"):
            raise ValueError(f"batching {self.batching!r} is unknown; use auto, off or always")
        if self.body_memory_bytes < self.max_body_bytes:
            raise ValueError(
                f"body_memory_bytes {self.body_memory_bytes} is less than one body may have ({self.max_body_bytes}); "
                "raise it, or lower max_body_bytes"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("max_waiting", "session_memory_bytes", "max_body_bytes", "max_json_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("body_timeout_s", "header_timeout_s", "keepalive_s", "max_connections"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        for name in (
            "n_runs", "n_intra_threads", "drain_s", "inline_s", "gpu_device", "gpu_memory_bytes", "batch_delay_s",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")


def settings() -> tuple[Field[Value], ...]:
    """The fields of `GatewayConfig`, for flags and docs."""
    return cast("tuple[Field[Value], ...]", fields(GatewayConfig))


def load(flags: Mapping[str, Value], environment: Mapping[str, str], file: Path | None) -> GatewayConfig:
    """The configuration out of its three sources; values of None in `flags` were not given.

    Raises:
        ValueError: an unknown name, a value of another type, a file that cannot be read, an unsafe combination.
    """
    given: dict[str, Any] = {}
    in_file = _file(file) if file is not None else {}
    for spec in settings():
        variable = ENV_PREFIX + spec.name.upper()
        if flags.get(spec.name) is not None:
            given[spec.name] = flags[spec.name]
        elif variable in environment:
            given[spec.name] = _of_text(spec, environment[variable], variable)
        elif spec.name in in_file:
            given[spec.name] = _of_toml(spec, in_file[spec.name])
    config = GatewayConfig(**given)
    config.check()
    return config


def kind_of(spec: Field[Value]) -> type:
    """The Python type of a setting's values."""
    if spec.name in ("tls_cert", "tls_key"):
        return Path
    if spec.default is MISSING or spec.default is None:
        raise ValueError(f"setting {spec.name} has no default; this is a fault of ours")
    return type(spec.default) if not isinstance(spec.default, Path) else Path


def _of_text(spec: Field[Value], text: str, variable: str) -> Value:
    kind = kind_of(spec)
    if kind is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off", ""):
            return False
        raise ValueError(f"{variable} is {text!r}; use 1 or 0")
    try:
        return cast("Value", kind(text))
    except ValueError as exc:
        raise ValueError(f"{variable} is {text!r}; it must be {kind.__name__}") from exc


def _of_toml(spec: Field[Value], value: object) -> Value:
    kind = kind_of(spec)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"setting {spec.name} is {value!r} in the file; it must be {kind.__name__}")
    return cast("Value", value)


def _file(path: Path) -> dict[str, object]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ValueError(f"{path} cannot be read: {exc.strerror}; give another --config") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"{path} is not TOML: {exc}") from exc
    unknown = sorted(set(found) - {spec.name for spec in settings()})
    if unknown:
        raise ValueError(f"{path} has the unknown settings {', '.join(unknown)}; `hybrid gateway serve --help` has all")
    return found
