"""The settings that every service of ours has: where it listens, who may ask, its limits and its engine."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar

from hybrid.hosting.settings import refuse_below, refuse_unknown, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What a gateway and an agent have in common; each adds its own and sets its own defaults."""

    PREFIX: ClassVar[str] = "HYBRID_"
    COMMAND: ClassVar[str] = "hybrid"

    host: str = setting("127.0.0.1", "Address to listen on; any but loopback speaks TLS.")
    port: int = setting(0, "Port to listen on; 0 takes a free one, the ready line says which.")
    data: Path = setting(Path("hybrid-service"), "Folder of this service's data; one service at a time.")
    plain_http: bool = setting(False, "Speak HTTP on any address; for use behind a proxy that ends TLS.")
    tls_cert: Path | None = setting(None, "PEM file of a certificate chain to serve with, instead of an own one.")
    tls_key: Path | None = setting(None, "PEM file of its private key.")
    no_announce: bool = setting(False, "Do not announce this service by DNS-SD.")
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

    def url(self, port: int) -> str:
        """Where the service is reached, on the port that it got."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.speaks_tls else 'http'}://{host}:{port}"

    def named_url(self, port: int) -> str:
        """The same as others type it: where every address is listened on, one of this machine's stands for all."""
        if self.host not in ("0.0.0.0", "::", ""):
            return self.url(port)
        from hybrid.hosting.tls import local_names

        names = [name for name in local_names() if not name.startswith(("127.", "localhost", "::1", "fe80"))]
        host = next((name for name in names if name.replace(".", "").isdigit()), names[0] if names else "127.0.0.1")
        return f"{'https' if self.speaks_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def check(self) -> None:
        """Refuse combinations that would be unsafe or senseless.

        Raises:
            ValueError: with what to change.
        """
        if self.allow_shared_memory and not self.is_loopback:
            raise ValueError(f"--allow-shared-memory works on loopback only, not on {self.host}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together; give both or neither")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} does not exist; give 0 to 65535")
        refuse_unknown(self, "event_loop", ("auto", "asyncio", "uvloop"))
        refuse_unknown(self, "provider", ("auto", "cpu", "cuda", "torch"))
        if self.body_memory_bytes < self.max_body_bytes:
            raise ValueError(
                f"body_memory_bytes {self.body_memory_bytes} is less than one body may have ({self.max_body_bytes}); "
                "raise it, or lower max_body_bytes"
            )
        refuse_below(self, 1, ("max_waiting", "session_memory_bytes", "max_body_bytes", "max_json_bytes"))
        for name in ("body_timeout_s", "header_timeout_s", "keepalive_s", "max_connections"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        refuse_below(self, 0, ("n_runs", "n_intra_threads", "drain_s", "inline_s", "gpu_device", "gpu_memory_bytes"))
