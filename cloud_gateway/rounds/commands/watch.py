"""`hybrid rounds watch`: a campaign as it goes on, until it is over."""

import math
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.rounds.commands.campaigns import CampaignId, campaign_path
from cloud_gateway.rounds.commands.telling import (
    ROUND_HEAD,
    comes_home,
    headline,
    is_over,
    lines,
    privacy_lines,
    promotion_line,
    promotion_lines,
    round_row,
    text_of,
    thin_line,
)
from cloud_gateway.rounds.messages import CampaignView
from hybrid.cli.output import decorated, event, note
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.errors import LinkError, Overloaded, Warming

if TYPE_CHECKING:
    from rich.console import Group

_WAIT_S = 25.0
_AGAIN_S = 2.0
_HOME_S = 30.0
"""Longest that is waited, after the last round, for the gateway to begin to make the result a version."""
_SHOWN = 12
_WIDE_CHARACTERS = 72
_MOST_WANTED = tuple(map(ROUND_HEAD.index, ("round", "state", "updates", "accuracy")))
"""Of a round, where a terminal has no room for all of it."""


def watch(campaign: CampaignId, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Show a campaign as it changes, with the time that is left, until it is over or Ctrl-C."""
    asker = Asker(gateway, token)
    with asker.connected():
        views = _views(asker, asker.get(campaign_path(campaign), CampaignView))
        if json or not decorated(sys.stdout):
            _stream(views, json=json)
        else:
            _live(views)


def _views(asker: Asker, view: CampaignView) -> Iterator[CampaignView]:
    """A campaign after each change, until nothing of it will change by itself any more."""
    yield view
    until_s = math.inf
    while not is_over(view) or (comes_home(view) and time.monotonic() < until_s):
        if is_over(view):
            until_s = min(until_s, time.monotonic() + _HOME_S)
        view = _next(asker, view)
        yield view


def _stream(views: Iterator[CampaignView], *, json: bool) -> None:
    """A JSON object a change, or a line a round and one at the end."""
    said: object = None
    for view in views:
        told = _line(view)
        news: object = view.serial if json else told
        if news != said and (json or not is_over(view)):  # the end is told whole below
            event(view, told, json=json)
            said = news
    if not json:
        event(view, text_of(lines(view)), json=False)
    if view.state == "stalled":
        note(f"it waits for a person: hybrid rounds resume {view.id}, or stop {view.id}")


def _line(view: CampaignView) -> str:
    open_one = view.rounds[-1] if view.rounds else None
    told = headline(view)
    if open_one is not None and open_one.state != "closed":
        told += f"; round {open_one.number}: {open_one.n_counted} of {view.order.goal} updates"
    tried = [promotion_line(each) for each in view.promotions if each.state == "evaluating"]
    return "; ".join([told, *thin_line(view), *tried])


def _next(asker: Asker, view: CampaignView) -> CampaignView:
    """As it is after a change, or as it still is; a gateway may go and come back."""
    path = f"{campaign_path(view.id)}?since={view.serial}&wait_s={_WAIT_S:g}"
    said = ""
    while True:
        began_s = time.monotonic()
        try:
            found = asker.get(path, CampaignView)
        except (LinkError, Overloaded, Warming) as exc:
            if str(exc) != said:
                said = str(exc)
                note(f"{said}; trying again")
        else:
            if found.serial != view.serial or time.monotonic() - began_s >= 1.0:
                return found  # a gateway that stops lets nobody wait
        time.sleep(_AGAIN_S)


def _live(views: Iterator[CampaignView]) -> None:
    from rich.live import Live

    with Live(_pictured(next(views)), refresh_per_second=4, screen=False) as live:
        try:
            for view in views:
                live.update(_pictured(view))
        except KeyboardInterrupt:
            return


def _pictured(view: CampaignView) -> "Group":
    """A headline, a bar of the rounds, the newest of them."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[Text | Table | ProgressBar] = [Text(headline(view), style="bold")]
    if view.reason:
        parts.append(Text(view.reason, style="red"))
    parts += [Text(line, style="yellow") for line in thin_line(view)]
    parts += [Text(line, style="dim") for line in privacy_lines(view)]
    parts.append(ProgressBar(total=view.order.rounds, completed=view.step, width=60))
    picture = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    is_narrow = shutil.get_terminal_size().columns < _WIDE_CHARACTERS
    shown = _MOST_WANTED if is_narrow else range(len(ROUND_HEAD))
    for column in shown:
        picture.add_column(ROUND_HEAD[column], overflow="fold")
    for each in view.rounds[-_SHOWN:]:
        row = round_row(each)
        picture.add_row(*(row[column] for column in shown))
    parts.append(picture)
    parts += [Text(line) for line in promotion_lines(view)]
    return Group(*parts)
