"""Every setting of the agent."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from edge_agent.link_rules import LinkRules, Metered, OnBattery
from hybrid.hosting.service_settings import ServiceSettings
from hybrid.hosting.settings import refuse_below, refuse_unknown, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig(ServiceSettings):
    """All settings of one agent: field `drain_s` is flag `--drain-s` and variable `HYBRID_AGENT_DRAIN_S`."""

    PREFIX: ClassVar[str] = "HYBRID_AGENT_"
    COMMAND: ClassVar[str] = "hybrid agent serve"

    host: str = setting(
        "127.0.0.1", "Address to listen on; any but loopback speaks TLS, asks for tokens and serves devices nearby too."
    )
    port: int = setting(8710, "Port to listen on; 0 takes a free one, the ready line says which.")
    data: Path = setting(Path("hybrid-agent"), "Folder of identity, models, outbox and tokens; one agent at a time.")
    require_tokens: bool = setting(
        False, "Ask programs on this machine for tokens too; other machines always need one."
    )
    gateway: str = setting(
        "auto", "URL of the gateway; auto: the one this box is enrolled with, else one that is found; none: alone."
    )
    token: str = setting("", "Token for that gateway, for a box that is not enrolled.")
    model: str = setting(
        "", "Models to serve for trying out, beside assigned ones: NAME=PATH, with commas between them."
    )
    objective: str = setting(
        "latency", "What is saved when requests are planned: latency, throughput, energy or bytes."
    )
    placement: str = setting(
        "auto", "auto; local: requests never leave this box; offload or split: wherever it can be had."
    )
    max_uplink_bytes_per_s: int = setting(0, "What requests may send upwards in the long run; 0 for no limit.")
    keep_inputs_here: bool = setting(False, "Inputs never leave this box; what a head made of them may.")
    session_memory_bytes: int = setting(
        1 << 30, "Memory for opened models and tails; lower priority leaves first, a larger model is refused."
    )
    body_memory_bytes: int = setting(256 << 20, "Memory for all request bodies in flight; further ones get 503.")
    max_body_bytes: int = setting(64 << 20, "Largest request body, packed and unpacked.")
    max_connections: int = setting(1024, "Connections at the same time; further ones are closed at once.")
    n_runs: int = setting(1, "Engine runs at the same time; further ones wait in the order of their priority.")
    provider: str = setting(
        "cpu", "Where models run: cpu, cuda, auto (CUDA where onnxruntime has it), or torch (on CUDA)."
    )
    inline_s: float = setting(0.0, "Models that run faster than this do so on the event loop; 0 for none.")

    learn: str = setting(
        "idle", "idle: take part in rounds of the gateway while nobody asks, with labelled samples; off: never."
    )
    learn_memory_bytes: int = setting(
        16 << 20, "Memory for what is learned from: features of samples, whole inputs where a whole model learns."
    )
    metered: str = setting("auto", "Whether the link costs by the byte: auto (NetworkManager says), yes or no.")
    on_battery: str = setting("hold", "hold: models, samples and telemetry wait for mains power; go: they do not.")
    transfer_hours: str = setting("", "Hours in which models and samples travel, such as 22:00-06:00; empty: always.")
    log_level: str = setting("info", "How much is logged: debug, info, warning or error.")
    log_file: Path | None = setting(None, "Log into this file too, and turn it over.")
    log_max_bytes: int = setting(10 << 20, "Size at which the log file is turned over.")
    log_n_files: int = setting(5, "Old log files that are kept.")

    @property
    def is_open(self) -> bool:
        """Whether any program on this machine may ask: on loopback, unless tokens are required."""
        return self.is_loopback and not self.require_tokens

    @property
    def link_rules(self) -> LinkRules:
        """What may travel when."""
        return LinkRules(
            metered=cast("Metered", self.metered),
            on_battery=cast("OnBattery", self.on_battery),
            transfer_hours=self.transfer_hours,
        )

    @property
    def local_models(self) -> dict[str, Path]:
        """Models to try out: path by name. Raises `ValueError`."""
        found: dict[str, Path] = {}
        for text in filter(None, (part.strip() for part in self.model.split(","))):
            name, _, path = text.partition("=")
            if not name or not path:
                raise ValueError(f"model {text!r} is not NAME=PATH; write --model detector=./detector.onnx")
            found[name] = Path(path)
        return found

    def check(self) -> None:
        """Refuse combinations that would be unsafe or senseless.

        Raises:
            ValueError: with what to change.
        """
        ServiceSettings.check(self)
        refuse_unknown(self, "objective", ("latency", "throughput", "energy", "bytes"))
        refuse_unknown(self, "placement", ("auto", "local", "offload", "split"))
        refuse_unknown(self, "learn", ("idle", "off"))
        refuse_unknown(self, "log_level", ("debug", "info", "warning", "error"))
        refuse_below(self, 0, ("max_uplink_bytes_per_s", "log_n_files"))
        refuse_below(self, 4096, ("log_max_bytes",))
        refuse_below(self, 1 << 20, ("learn_memory_bytes",))
        self.link_rules.check()
        self.local_models  # noqa: B018 (raises what is wrong with it)
