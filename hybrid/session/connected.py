"""Puts together what a session needs beyond its own engine: gateways, preparation, and the remote half."""

import atexit
import os
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread
from typing import NamedTuple
from weakref import WeakSet

from hybrid.artifact.cache import cache_dir
from hybrid.artifact.splits import PREFIX
from hybrid.profile.machine import this_setting
from hybrid.profile.store import ProfileStore
from hybrid.route.allowance import Allowance
from hybrid.route.engine import Engine, Settings, open_piece
from hybrid.route.feeds import Declared
from hybrid.schedule.options import Options
from hybrid.scouting.background import BackgroundEngine
from hybrid.scouting.gateways import Gateways
from hybrid.scouting.heads import OpenHeads
from hybrid.scouting.knowledge import Knowledge
from hybrid.scouting.memory import give_back_unused
from hybrid.scouting.preparation import Preparation
from hybrid.scouting.scout import Scout
from hybrid.scouting.splits import Splits, splits_beside
from hybrid.scouting.variants import Variants
from hybrid.session.device import Device
from hybrid.session.pushing import Pusher
from hybrid.session.remote import Remote
from hybrid.session.source import Source
from hybrid.transport.token_source import Credential, text_of

END_WAIT_S = 1.0
"""How long the interpreter's end waits for an encoding in progress."""


class Neighbourhood(NamedTuple):
    """Which gateways a session may ask, and as whom.

    Attributes:
        urls: named gateways, each with `#sha256=HEX` behind it where its certificate is pinned; empty to discover.
        token: the identity to show.
        hops: how many services pass each request on, this one included; 0 in a program.
    """

    urls: Sequence[str]
    token: Credential
    hops: int = 0


class Connection:
    """The remote half of one session, and all that it owns."""

    def __init__(
        self,
        gateways: Gateways,
        preparation: Preparation,
        background: BackgroundEngine,
        allowance: Allowance,
        remote: Remote,
    ) -> None:
        self.remote = remote
        self._gateways = gateways
        self._preparation = preparation
        self._background = background
        self._allowance = allowance
        _open.add(self)

    def close(self, wait_s: float) -> None:
        """Stops the background thread, waiting at most this long for it, and gives the gateways' clients back."""
        _open.discard(self)
        self._background.interrupt()
        self.remote.close(wait_s)
        self._preparation.close(wait_s)
        self._gateways.close()

    def abandon(self) -> None:
        """Closes from a thread of its own: for the garbage collector, which may hold any lock of ours."""
        Thread(target=self.close, args=(0.0,), name="hybrid-close", daemon=True).start()

    def end(self) -> None:
        """At the interpreter's end: no thread may be in the engine any more."""
        self._preparation.end()
        self.remote.close(END_WAIT_S)
        self._background.stop()

    def before_fork(self) -> None:
        """Lets no thread of ours be in the engine while the process is copied."""
        self._background.pause()

    def after_fork(self) -> None:
        """In the parent, where all goes on."""
        self._background.resume()

    def forked(self) -> None:
        """In a forked child: threads stayed with the parent, and whoever held a lock with them."""
        self.remote.forked()
        self._gateways.forked()
        self._preparation.forked()
        self._background.forked()
        self._allowance.forked()


def connect(
    source: Source,
    engine: Engine,
    device: Device,
    declared: Declared,
    options: Options,
    *,
    settings: Settings,
    neighbourhood: Neighbourhood,
    pieces: Callable[..., Engine] | None = None,
) -> Connection:
    """The remote half of a session.

    Args:
        source: the model.
        engine: the open local model.
        device: its runs.
        declared: its inputs and outputs.
        options: the session's options.
        settings: the caller's onnxruntime parameters, for heads.
        neighbourhood: who may be asked.
        pieces: opens heads and rests; None: as onnxruntime does, with the caller's parameters.

    Raises:
        UnknownCodec: `options.codec` names none.
        GatewayUnreachable: a URL that is none.
    """
    _require_known(options.codec)
    gateways = Gateways(neighbourhood.token)
    allowance = Allowance(options)
    given_back_bytes = give_back_unused()
    background = BackgroundEngine(engine.run, pieces or partial(open_piece, settings=settings))
    preparation = Preparation(
        model_path=source.file,
        digest=source.digest,
        cache=cache_dir() / "graphs",
        gateways=gateways,
        scout=lambda digest: Scout(
            options,
            allowance,
            background,
            model_digest=digest,
            outputs=declared.outputs,
            knowledge=_knowledge(source, engine, settings, digest),
            splits=Splits(splits_beside(source.path, digest), options),
            heads=OpenHeads(background, given_back_bytes),
        ),
        variants=lambda digest: Variants(
            source.path if options.placement == "auto" else None,
            digest,
            background,
            limit=options.max_accuracy_drop,
            session=engine.session,
        ),
        wants_cuts=options.kind in ("auto", "split"),
        on_unknown=Pusher(source, text_of(neighbourhood.token)).push if options.push_model else _leave_alone,
    )
    gateways.begin(neighbourhood.urls, on_change=preparation.wake)
    remote = Remote(options, declared, device, preparation, allowance=allowance, hops=neighbourhood.hops)
    return Connection(gateways, preparation, background, allowance, remote)


def _require_known(codec: str) -> None:
    if codec not in ("auto", "none") and not codec.startswith(PREFIX):  # splits are known with the model's artifact
        from compression.codecs import catalog  # loads zstandard and PIL

        catalog.get(codec)


def _knowledge(source: Source, engine: Engine, settings: Settings, digest: str) -> Knowledge:
    """What is known of the model before anything is measured by this session."""
    setting = this_setting(engine.session.get_providers(), settings.sess_options)
    return Knowledge(ProfileStore(cache_dir() / "profiles"), setting, digest, source.path)


def _leave_alone(client: object) -> None:
    """What to do about a model that a gateway does not hold: nothing, unless asked to push it."""


_open: WeakSet[Connection] = WeakSet()


def _before_fork() -> None:
    for connection in list(_open):
        connection.before_fork()


def _after_fork() -> None:
    for connection in list(_open):
        connection.after_fork()


def _in_child() -> None:
    for connection in list(_open):
        connection.forked()


def _at_exit() -> None:
    for connection in list(_open):
        connection.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
atexit.register(_at_exit)
