"""Puts together what a session needs beyond its own engine: gateways, preparation, and the remote half."""

from collections.abc import Sequence
from functools import partial

from hybrid.artifact.cache import cache_dir
from hybrid.schedule.options import Options
from hybrid.session.engine import Engine, Settings, open_head
from hybrid.session.feeds import Declared
from hybrid.session.gateways import Gateways
from hybrid.session.preparation import Preparation
from hybrid.session.pushing import Pusher
from hybrid.session.remote import Remote
from hybrid.session.scouting import Scout
from hybrid.session.source import Source


class Connection:
    """The remote half of one session and all that it owns."""

    def __init__(self, outputs: tuple[str, ...], gateways: Gateways, preparation: Preparation, remote: Remote) -> None:
        self.outputs = outputs
        self.remote = remote
        self._gateways = gateways
        self._preparation = preparation

    def close(self, wait_s: float) -> None:
        """Stops the background thread and gives the gateways' clients back."""
        self._preparation.close(wait_s)
        self._gateways.close()


def connect(
    source: Source,
    engine: Engine,
    declared: Declared,
    settings: Settings,
    options: Options,
    *,
    urls: Sequence[str],
    token: str | None,
) -> Connection:
    """The remote half of a session.

    Args:
        source: the model.
        engine: the open local model.
        declared: its inputs and outputs.
        settings: the caller's onnxruntime parameters, for heads.
        options: the session's options.
        urls: named gateways; empty to discover them.
        token: the identity to show.

    Raises:
        UnknownCodec: `options.codec` names none.
    """
    if options.codec not in ("auto", "none"):
        from compression import catalog  # loads zstandard and PIL

        catalog.get(options.codec)
    gateways = Gateways(token)
    preparation = Preparation(
        model_path=source.file,
        digest=source.digest,
        cache=cache_dir() / "graphs",
        gateways=gateways,
        scout=lambda digest: Scout(
            options, digest, declared.outputs, engine.run, partial(open_head, settings=settings)
        ),
        wants_cuts=options.kind in ("auto", "split"),
        on_unknown=Pusher(source, token).push if options.push_model else _leave_alone,
    )
    gateways.begin(urls, on_change=preparation.wake)
    return Connection(declared.outputs, gateways, preparation, Remote(options, declared, preparation))


def _leave_alone(client: object) -> None:
    """What to do about a model that a gateway does not hold: nothing, unless asked to push it."""
