"""The parts of the agent that belong to its fleet: access, outbox, samples, installation, following."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random, SystemRandom
from time import time
from typing import TYPE_CHECKING

import msgspec

from edge_agent.config import AgentConfig
from edge_agent.disk import RealDisk
from edge_agent.follow.follow import Follow, Leader
from edge_agent.install.fetching import GatewayFiles
from edge_agent.install.index_notes import IndexNotes
from edge_agent.install.install import Install
from edge_agent.install.means import Means
from edge_agent.learning.conditions import Conditions
from edge_agent.learning.learning import Learning
from edge_agent.learning.offers import Offers
from edge_agent.learning.personal import Personal
from edge_agent.learning.round_link import KnockingRounds
from edge_agent.learning.store import LearningStore
from edge_agent.learning.surroundings import Surroundings
from edge_agent.living.crash_guard import CrashGuard
from edge_agent.living.held_files import HeldFiles
from edge_agent.living.link_policy import LinkPolicy
from edge_agent.models.room import ModelRoom
from edge_agent.models.version import PersonalCopy
from edge_agent.outbox.deferred import Deferred
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from edge_agent.outbox.telemetry import Telemetry
from edge_agent.part import Part
from edge_agent.samples.store import Samples
from edge_agent.samples.vault import open_vault
from edge_agent.trust.access import Access
from hybrid.errors import HybridError
from hybrid.fleet.calls import FleetCalls
from hybrid.fleet.messages import Health, Installed, SampleRule
from hybrid.transport.rounds_client import RoundsClient

if TYPE_CHECKING:
    from hybrid.session.connected import Neighbourhood
    from hybrid.transport.token_source import Credential


class FleetSide:
    """Builds and holds them; each works without a gateway, without enrolment and without models.

    Attributes:
        config: the settings of now; `reload` changes them.
        guard: of crash loops; says how much this start may do.
        link: when what may travel.
        access: who the box is, and its token.
        outbox: what must reach the gateway.
        deferred: requests that wait for it.
        samples: inputs and outputs that are kept.
        install: brings versions into slots.
        follow: asks what should be installed.
        learning: takes part in rounds.
        personal: what of it answers on this box alone.
        telemetry: figures for the gateway now and then.
        health: how the box is; set by the agent.
        figures: what telemetry tells; set by the agent.
    """

    def __init__(self, config: AgentConfig, room: ModelRoom, software: str) -> None:
        """Reads some small files; blocking."""
        self.config = config
        self.health: Callable[[], Health | None] = lambda: None
        self.figures: Callable[[], object] = dict
        disk, rng = RealDisk(), Random()  # noqa: S311 (pauses)
        data = Path(config.data)
        self._room = room
        self.guard = CrashGuard(data, disk)
        self.guard.begin()
        self.link = LinkPolicy(config.link_rules)
        self.access = Access(data, disk, rng=rng, gateway=config.gateway, software=software)
        vault = open_vault(data / "samples", disk, environment=os.environ)
        self.outbox = Outbox(
            Place(folder=data / "outbox", disk=disk, vault=vault),
            calls=self.access.calls,
            rng=rng,
            installation=self.access.epoch,
            least_important=self.link.least_important,
        )
        self.deferred = Deferred(self.outbox, self.access.calls, vault=vault, rng=SystemRandom())
        self.samples = Samples(
            Place(folder=data / "samples", disk=disk, vault=vault),
            self.outbox,
            rules=self._sample_rule,
            problems=vault.problems,
        )
        self.install = Install(
            Means(
                data=data,
                disk=disk,
                host=room.host,
                files=HeldFiles(
                    GatewayFiles(self._calls, disk, IndexNotes(disk, data / "downloads")), self.link.may_download
                ),
                trust=self.access.trust,
                rng=rng,
                now_s=time,
                report=self._report,
            )
        )
        self.learning = self._learning(Place(folder=data / "learning", disk=disk, vault=vault), rng)
        self.samples.on_label = self.learning.relabelled
        room.compute.on_asked = self.learning.yielding.asked
        room.answering.on_change = self.learning.wake
        room.compute.on_personal_failure = self._personal_failed
        self.telemetry = Telemetry(self.outbox, self._told_figures, rng=rng)
        self.install.mode = self.guard.mode
        self.link.freed = self.install.hurry
        self.follow = Follow(data, disk, leader=self._leader(), install=self.install, rng=rng, now_s=time)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is to be run; after crashes in a row the installation does less by itself."""
        carried = (self.outbox, self.deferred, self.samples, self.telemetry)
        learning = (self.learning,) if self.guard.mode == "normal" else ()
        return (self.access, self.link, *carried, self.install, self.follow, *learning)

    def neighbourhood(self) -> "Neighbourhood | None":
        """Who may be asked to compute now; None for nobody."""
        config, access = self.config, self.access
        if config.gateway == "none" or config.placement == "local":
            return None
        if access.enrolment is not None:
            # Also while there is no token: sessions that wait for one are cheaper than sessions that are made anew.
            return _asking((access.gateway_url,), access.token_source) if access.gateway_url else None
        token_text = config.token or os.environ.get("HYBRID_TOKEN") or None
        if config.gateway != "auto":
            return _asking(tuple(config.gateway.split(",")), token_text)
        may_discover = token_text is not None or bool(os.environ.get("HYBRID_PIN"))
        return _asking((), token_text) if may_discover else None

    @property
    def gateway_url(self) -> str:
        """Where its gateway is; empty for none that is known."""
        return self.access.gateway_url or _named(self.config.gateway)

    def reload(self, config: AgentConfig) -> None:
        """Take over what may change while the agent runs."""
        self.config = config
        self.link.set_rules(config.link_rules)
        self.learning.wake()

    async def stop(self) -> None:
        """The agent stops in good order."""
        await self.install.stop()

    def _learning(self, place: Place, rng: Random) -> Learning:
        access, samples = self.access, self.samples
        around = Surroundings(
            calls=KnockingRounds(RoundsClient(access.link), access.knock),
            put_blob=access.calls.put_blob,
            gateway=lambda: access.enrolment.authority_sha256 if access.enrolment is not None else "",
            epoch=lambda: access.epoch,
            samples=samples.shelf,
            rng=rng,
            key=lambda: access.identity.key,
            root_sha256=lambda: bytes.fromhex(access.enrolment.root_sha256 if access.enrolment is not None else ""),
            is_away=lambda: access.knock.is_shut,
            feature_bytes=self.config.learn_memory_bytes,
        )
        room, store, offers = self._room, LearningStore(place), Offers(self._room.answering, samples.labelled)
        self.personal = Personal(
            store, room.answering, room.host, offers=offers, why_not=self._why_not_personal, wall_s=place.wall_s
        )
        return Learning(
            store,
            around,
            offers=offers,
            conditions=Conditions(place.folder, place.disk, is_metered=lambda: self.link.status().metered),
            mode=lambda: self.config.learn,
            personal=self.personal,
        )

    def _why_not_personal(self, name: str) -> str:
        """What keeps a model from answering with personal layers; empty where nothing does."""
        if self.config.placement not in ("auto", "local"):
            return f"requests are to be computed elsewhere (placement {self.config.placement})"
        is_tried = any(one.phase == "trial" for one in self.install.installed() if one.name == name)
        return "the version is on trial" if is_tried else ""

    def _personal_failed(self, copy: PersonalCopy, error: HybridError) -> None:
        self.personal.failed(copy, error)
        self.learning.wake()

    def _calls(self) -> FleetCalls | None:
        return self.access.calls if self.access.enrolment is not None else None

    def _leader(self) -> Leader:
        access = self.access
        return Leader(
            calls=self._calls,
            epoch=lambda: access.epoch,
            run=access.run_id,
            trust_sequence=lambda: access.trust_sequence,
            take_trust=access.take_trust,
            health=self._told_health,
        )

    def _told_figures(self) -> object:
        return self.figures()

    def _told_health(self) -> Health | None:
        return self.health()

    def _sample_rule(self, model: str) -> SampleRule:
        version = self._room.answering.named(model)
        if version is None:
            return "off"
        # What leaves this box is said here, whatever its gateway would like to have.
        return "keep" if version.samples == "upload" and self.config.keep_inputs_here else version.samples

    async def _report(self, installed: Installed) -> None:
        if installed.phase == "committed":
            self.learning.wake()  # its personal layers may answer now
        await self.outbox.put("report", msgspec.msgpack.encode(installed), stream="report", about=installed.name)


def _named(gateway: str) -> str:
    return "" if gateway in ("auto", "none") else gateway


def _asking(urls: tuple[str, ...], token: "Credential") -> "Neighbourhood":
    from hybrid.session.connected import Neighbourhood  # with all that a session that may travel loads

    return Neighbourhood(urls, token)
