"""The agent's access to its gateway: enrolled, met, admitted, and renewed before it runs out."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.disk import Disk
from edge_agent.part import Problem
from edge_agent.trust.enrolling import enroll
from edge_agent.trust.identity import ENROLMENT_FILE, TOKEN_FILE, BoxIdentity, Enrolment
from edge_agent.trust.locating import Browse, Locator
from edge_agent.trust.machine import Machine, this_machine
from edge_agent.trust.one_knock import OneKnock
from edge_agent.trust.trusted_time import TrustedTime
from hybrid.errors import Forbidden, HybridError, LinkError, NotAdmitted, StorageError
from hybrid.fleet.calls import FleetCalls
from hybrid.fleet.enrolment_token import EnrolmentToken
from hybrid.fleet.trust_bundle import SCHEMA, TrustBundle
from hybrid.transport.fleet_client import FleetClient
from hybrid.transport.fleet_hello import Met
from hybrid.transport.fleet_link import BoxCredentials, FleetLink, not_admitted
from hybrid.transport.token_source import TokenSource

LOOK_S: Final = 3.0
BACKOFF_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
REFUSED_PAUSE_S: Final = 60.0
TOKEN_REFUSED_PAUSE_S: Final = 600.0
NONE_WANTED: Final = 1 << 53
REFUSED_TRUST_S: Final = 3600.0
"""So long after a bundle that was refused none is asked for; then the gateway may have a better one."""
_log = logging.getLogger("hybrid.agent.trust")


class AccessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the box stands with its gateway."""

    enrolled: bool
    box_id: str = ""
    name: str = ""
    tags: dict[str, str] = {}
    gateway: str = ""
    connected: bool = False
    admission: str = ""
    has_root: bool = False
    trust_sequence: int = -1
    epoch: str = ""
    trusted_time_s: float = 0.0


class Access:
    """A `Part`: keeps an access token while there is a gateway, and everything that needs one going.

    Attributes:
        identity: who the box is.
        time: the trusted time.
        link: to the gateway.
        knock: keeps several parts from trying a gateway that is away.
        calls: the fleet's calls; raise `NotAdmitted` while the box belongs nowhere.
    """

    name = "access"

    def __init__(
        self,
        data: Path,
        disk: Disk,
        *,
        rng: random.Random,
        machine: Machine | None = None,
        gateway: str = "",
        software: str = "",
        browse: Browse | None = None,
        clock_s: Callable[[], float] | None = None,
    ) -> None:
        """Reads some small files; blocking.

        Args:
            data: the agent's folder.
            disk: where it lies.
            rng: of the pauses between attempts.
            machine: where this is; looked at by default.
            gateway: a URL in place of the one of the enrolment; empty or `auto` for that one; `none`: it is not asked.
            software: version of the agent, told to the gateway.
            browse: gives candidates for a gateway that is to be discovered.
            clock_s: a clock that only runs forward; the event loop's by default.
        """
        self._disk = disk
        self._rng = rng
        self._gateway = "" if gateway in {"auto", "none"} else gateway.partition(",")[0].strip()
        self._is_off = gateway == "none"
        self._software = software
        self._browse = browse
        self.identity = BoxIdentity(data, disk, machine or this_machine())
        self.time = TrustedTime(self.identity.files, clock_s=clock_s)
        self.link = FleetLink(self._locate, learn_time=self.time.learn, now_s=clock_s)
        self.knock = OneKnock(FleetClient(self.link), rng=rng)
        self.calls: FleetCalls = self.knock
        self._no_trust_until_s = 0.0
        self._locator: Locator | None = None
        self._found_url = ""
        self._problem: Problem | None = None
        self._adopt()

    @property
    def epoch(self) -> str:
        """Of this installation."""
        return self.identity.epoch

    @property
    def run_id(self) -> str:
        """Of this start of the agent."""
        return self.identity.run

    @property
    def enrolment(self) -> Enrolment | None:
        """Where the box belongs; None for nowhere, and where no gateway shall be asked."""
        return None if self._is_off else self.identity.enrolment

    @property
    def token_source(self) -> TokenSource:
        """The access token for sessions; its text is empty while there is none."""
        return self.link.token

    @property
    def is_connected(self) -> bool:
        """Whether the gateway answered last, and let this box in."""
        link = self.link
        return link.met is not None and link.trouble is None and link.admission == "admitted"

    @property
    def gateway_url(self) -> str:
        """Where the gateway is, as far as this box knows; empty for nowhere."""
        return self._locator.url if self._locator is not None else ""

    def trust(self) -> TrustBundle | None:
        """Whose signatures count: None in a fleet without a root; an empty bundle where none has come yet."""
        enrolment = self.identity.enrolment
        has_root = self.identity.had_root if enrolment is None else bool(enrolment.root_sha256)
        if not has_root:
            return None
        return self.identity.trust or TrustBundle(schema=SCHEMA, root_key="0" * 64, sequence=-1)

    async def take_trust(self, envelope: bytes) -> TrustBundle:
        """Keep a newer trust bundle.

        Raises:
            Forbidden, BadMessage, CorruptContent: it is not one for this box; the old one stays.
        """
        try:
            return await asyncio.to_thread(self.identity.take_trust, envelope)
        except Forbidden:
            self._no_trust_until_s = self.time.now_s() + REFUSED_TRUST_S  # the same would come with every answer
            raise

    @property
    def trust_sequence(self) -> int:
        """What a state call tells: of the newest bundle here, -1 for none; beyond all where none is wanted."""
        trust = self.trust()
        if trust is None or (self._no_trust_until_s and self.time.now_s() < self._no_trust_until_s):
            return NONE_WANTED
        return trust.sequence

    async def run(self) -> None:
        """See `Part`."""
        n_failures = 0
        try:
            if self._is_off:
                await asyncio.Event().wait()
            while True:
                pause_s, n_failures = await self._once(n_failures)
                await asyncio.sleep(pause_s)
        finally:
            await self.link.close()

    def problems(self) -> Sequence[Problem]:
        """See `Part`."""
        found = list(self.identity.problems())
        trouble = self.link.trouble
        if self._problem is not None:
            found.append(self._problem)
        elif self.link.admission not in ("", "admitted"):
            seen = not_admitted(self.link.admission)
            found.append(Problem(code=seen.code, what=str(seen), do="see `hybrid fleet boxes show BOX` on the gateway"))
        elif trouble is not None and self.link.credentials is not None:
            found.append(Problem(code=trouble.code, what=str(trouble), do="check the link and the gateway's address"))
        return found

    def status(self) -> object:
        """See `Part`."""
        enrolment, trust = self.identity.enrolment, self.trust()
        return AccessStatus(
            enrolled=enrolment is not None,
            box_id=enrolment.box_id if enrolment is not None else "",
            name=enrolment.name if enrolment is not None else "",
            tags=enrolment.tags if enrolment is not None else {},
            gateway=self.gateway_url,
            connected=self.is_connected,
            admission=self.link.admission,
            has_root=trust is not None,
            trust_sequence=trust.sequence if trust is not None else -1,
            epoch=self.epoch,
            trusted_time_s=self.time.now_s(),
        )

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _once(self, n_failures: int) -> tuple[float, int]:
        """One step: enrol, or renew what is half over; how long to wait then, and the failures in a row."""
        try:
            if self.identity.is_sound and await asyncio.to_thread(self.identity.files.was_replaced, ENROLMENT_FILE):
                await asyncio.to_thread(self.identity.reload)  # enrolled anew, by the command
                self.link.token.text, self.link.met = "", None
                self._adopt()
            if not self.identity.is_sound and not await self._try_to_enroll():
                return LOOK_S, 0
            if not self.link.renew_in_s():
                await self.link.renew()
            self._problem = None
            await self._keep()
            return min(self.link.renew_in_s() * self._rng.uniform(0.9, 1.0), REFUSED_PAUSE_S) or BACKOFF_S, 0
        except NotAdmitted as exc:
            self._failed("not_admitted", exc, "ask the gateway's administrator: hybrid fleet boxes show BOX")
            return self._rng.uniform(REFUSED_PAUSE_S / 2, REFUSED_PAUSE_S), 0
        except Forbidden as exc:
            self._failed("forbidden", exc, "enrol the box with another token: hybrid agent enroll TOKEN")
            return self._rng.uniform(TOKEN_REFUSED_PAUSE_S / 2, TOKEN_REFUSED_PAUSE_S), 0
        except HybridError as exc:
            do = "check the link and the gateway's address" if isinstance(exc, LinkError) else "see hybrid explain"
            self._failed(exc.code, exc, do)
            ceiling_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(n_failures, 10))
            return self._rng.uniform(0, ceiling_s), n_failures + 1

    def _failed(self, code: str, error: HybridError, do: str) -> None:
        if self._problem is None or self._problem.code != code:
            _log.warning("access.failed code=%s reason=%s", code, error)
        self._problem = Problem(code=code, what=str(error), do=do)

    async def _try_to_enroll(self) -> bool:
        """Look whether the box was enrolled meanwhile, or enrol it with a token that was laid down for it."""
        if self.identity.files.has(TOKEN_FILE):
            text = await asyncio.to_thread(self._disk.read, self.identity.files.folder / TOKEN_FILE)
            token = EnrolmentToken.parse(text.decode("utf-8", "replace"))
            await enroll(
                self.identity,
                token,
                time=self.time,
                software=self._software,
                gateway=self._gateway,
                browse=self._browse,
            )
            self._adopt()  # before what may fail
            await asyncio.to_thread(self.identity.files.remove, TOKEN_FILE)
        elif self.identity.enrolment is None and self.identity.files.has(ENROLMENT_FILE):
            await asyncio.to_thread(self.identity.reload)
        self._adopt()
        if not self.identity.is_sound and self.identity.enrolment is None:
            self._problem = Problem(
                code="not_enrolled",
                what="this box belongs to no fleet: no models come, nothing is sent",
                do="enrol it: hybrid agent enroll TOKEN (made with `hybrid fleet token create` on the gateway)",
            )
        return self.identity.is_sound

    def _adopt(self) -> None:
        """Show the identity that there is."""
        enrolment, key = self.identity.enrolment, self.identity.key
        if enrolment is None or key is None or not self.identity.is_sound or self._is_off:
            self.link.credentials = None
            return
        self._locator = Locator(
            bytes.fromhex(enrolment.authority_sha256),
            self._gateway or enrolment.url,
            may_look=enrolment.is_discovered and not self._gateway,
            browse=self._browse,
            moved=self._note_url,
        )
        self.link.credentials = BoxCredentials(
            box_id=key.box_id,
            authority_sha256=bytes.fromhex(enrolment.authority_sha256),
            epoch=lambda: self.identity.epoch,
            run=self.identity.run,
            sign=key.sign,
            software=self._software,
        )

    def _note_url(self, url: str) -> None:
        self._found_url = url

    async def _locate(self) -> Met:
        if self._locator is None:
            raise NotAdmitted("this box is not enrolled", admission="none")
        return await self._locator()

    async def _keep(self) -> None:
        """Write down what was learned: the time, and where the gateway is now."""
        await asyncio.to_thread(self.time.keep)
        url, enrolment = self._found_url, self.identity.enrolment
        if url and enrolment is not None and url != enrolment.url:
            try:
                await asyncio.to_thread(self.identity.enrolled, msgspec.structs.replace(enrolment, url=url), None)
            except StorageError as exc:
                _log.warning("access.address_not_kept reason=%s", exc)
        self._found_url = ""
