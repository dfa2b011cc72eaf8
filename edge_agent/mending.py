"""Starts in spite of damage: tokens or an own certificate that cannot be read are set aside and begun anew.

Design: a box that does not start serves nobody, and nobody is near. What is lost is told as a problem: devices nearby
get new tokens from their operator, and prove a new certificate by themselves where they hold a token.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edge_agent.config import AgentConfig
from edge_agent.part import Problem
from hybrid.errors import CorruptContent, DiskFull, StorageError
from hybrid.hosting.auth import Tokens
from hybrid.hosting.foundation import certificate_of, open_tokens
from hybrid.hosting.tls import ServerCertificate
from hybrid.hosting.token_store import FILE_NAME

_log = logging.getLogger("hybrid.agent")
T = TypeVar("T")


class Mending:
    """Opens what the agent stands on, and remembers what had to be begun anew.

    Attributes:
        found: a problem for each of those.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self.found: list[Problem] = []

    def tokens(self) -> Tokens:
        """The agent's tokens; the administrator's one in `admin.token` is kept. Blocking.

        Raises:
            StorageError: they cannot be begun anew either.
        """
        do = "Make tokens for the devices nearby again: hybrid agent token create --name DEVICE."
        return self._opened(lambda: open_tokens(self._config), self._config.data / FILE_NAME, do, CorruptContent)

    def certificate(self) -> ServerCertificate:
        """The certificate; a given one is never touched. Blocking.

        Raises:
            StorageError: it cannot be read, or not be made anew.
        """
        if self._config.tls_cert is not None:
            return certificate_of(self._config)
        do = "Devices that pin this box's certificate need its new fingerprint; those with a token prove it themselves."
        return self._opened(lambda: certificate_of(self._config), self._config.data / "tls", do, StorageError)

    def problems(self) -> tuple[Problem, ...]:
        """What was begun anew at this start."""
        return tuple(self.found)

    def _opened(self, open_it: Callable[[], T], path: Path, do: str, damage: type[StorageError]) -> T:
        try:
            return open_it()
        except damage as exc:
            if isinstance(exc, DiskFull) or not path.exists():
                raise
            aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
            try:
                path.rename(aside)
            except OSError:
                raise exc from None
            _log.error("agent.begun_anew path=%s aside=%s reason=%s", path, aside.name, exc)
            what = f"{path.name} could not be read ({exc}); it lies beside as {aside.name}, and was begun anew"
            self.found.append(Problem(code="corrupt_content", what=what, do=do))
            return open_it()
