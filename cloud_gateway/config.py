"""Every setting of the gateway."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hybrid.hosting.service_settings import ServiceSettings
from hybrid.hosting.settings import refuse_below, refuse_unknown, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig(ServiceSettings):
    """All settings of one gateway: field `drain_s` is flag `--drain-s` and variable `HYBRID_GATEWAY_DRAIN_S`."""

    PREFIX: ClassVar[str] = "HYBRID_GATEWAY_"
    COMMAND: ClassVar[str] = "hybrid gateway serve"

    port: int = setting(8700, "Port to listen on; 0 takes a free one, the ready line says which.")
    data: Path = setting(Path("hybrid-gateway"), "Folder of models, tokens and certificate; one gateway at a time.")
    no_auth: bool = setting(False, "Ask for no tokens; refused on any address but loopback.")
    batching: str = setting(
        "off", "Requests share runs: off, auto (where proved to keep rows apart and measured to pay), always (proved)."
    )
    batch_delay_s: float = setting(0.002, "The longest that a request waits for others to share its run.")

    def check(self) -> None:
        """Refuse combinations that would be unsafe or senseless.

        Raises:
            ValueError: with what to change.
        """
        if self.no_auth and not self.is_loopback:
            raise ValueError(f"--no-auth on {self.host} would let anyone in; drop it, or listen on 127.0.0.1")
        ServiceSettings.check(self)
        refuse_unknown(self, "batching", ("auto", "off", "always"))
        refuse_below(self, 0, ("batch_delay_s",))
