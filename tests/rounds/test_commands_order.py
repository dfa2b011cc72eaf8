"""The flags of an order, and what commands say of campaigns."""

import inspect
import io
from typing import get_type_hints

import msgspec
import pytest
import typer

from cloud_gateway.rounds.commands import watch
from cloud_gateway.rounds.commands.order_flags import with_order
from cloud_gateway.rounds.commands.telling import (
    duration,
    headline,
    is_over,
    lines,
    outcomes,
    promotion_lines,
    seconds_left,
    size,
    text_of,
)
from cloud_gateway.rounds.messages import CampaignView, PromotionView, RoundView
from hybrid.errors import CampaignImpossible, LinkError, Overloaded, Warming
from hybrid.federated.campaign import Aggregation, Campaign, Privacy, Training


def fields(kind=Campaign, before=""):
    for each in msgspec.structs.fields(kind):
        hint = get_type_hints(kind)[each.name]
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from fields(hint, f"{each.name}.")
        else:
            yield before + each.name


def made(**flags):
    """The order that a command with these flags gets; all others keep their defaults."""
    got = []

    def command(model: str, order: Campaign) -> None:
        got.append(order)

    filled = with_order(command)
    parameters = inspect.signature(filled).parameters
    given = {name: each.default for name, each in parameters.items() if name != "model"}
    filled(model="digits:3", **(given | flags))
    return got[0]


def test_every_field_of_an_order_has_a_flag():
    def command(model: str, order: Campaign) -> None:
        pass

    flags = set(inspect.signature(with_order(command)).parameters)
    assert {name.replace(".", "_") for name in fields()} - {"version"} <= flags


def test_without_flags_it_is_the_orders_own_defaults():
    assert made() == Campaign(model="digits", version="3", variant="")


def test_what_privacy_wants_follows_where_nobody_said_otherwise():
    assert made(privacy_noise=4.0, privacy_clip=1.0).aggregation.weights == "uniform"
    assert made(privacy_secure=True, privacy_clip=1.0).aggregation.weights == "uniform"
    assert made(aggregation_scaffold=True).aggregation.weights == "uniform"
    assert made(privacy_clip=1.0).aggregation.weights == "samples"
    with pytest.raises(CampaignImpossible, match="uniform weights"):
        made(privacy_noise=4.0, privacy_clip=1.0, aggregation_weights="samples")


@pytest.mark.parametrize(("optimizer", "rate"), [("plain", 1.0), ("momentum", 0.3), ("adam", 0.03), ("yogi", 0.03)])
def test_the_gateways_rate_suits_its_optimizer(optimizer, rate):
    assert made(aggregation_optimizer=optimizer).aggregation.learning_rate == rate
    assert made(aggregation_optimizer=optimizer, aggregation_learning_rate=0.5).aggregation.learning_rate == 0.5


def test_words_become_what_they_mean(tmp_path):
    (tmp_path / "roster").write_bytes(b"\x00signed")
    order = made(
        cohort_tags="site=oslo,gpu=none",
        promotion_stages="1,10,100",
        promotion_tolerance=1.5,
        training_personal=["norm.*"],
        privacy_secure=True,
        privacy_clip=1.0,
        cohort_roster=tmp_path / "roster",
    )
    assert order.cohort.tags == {"site": "oslo", "gpu": "none"}
    assert order.promotion.stages == (1, 10, 100)
    assert order.promotion.tolerance == pytest.approx(0.015)
    assert order.training.personal == ("norm.*",)
    assert order.cohort.roster == b"\x00signed"
    assert msgspec.json.decode(msgspec.json.encode(order), type=Campaign) == order


@pytest.mark.parametrize(("flags", "said"), [
    ({"aggregation_weights": "nosuch"}, "uniform or auto"), ({"cohort_tags": "nosuch"}, "nosuch"),
    ({"promotion_stages": "5,x"}, "such as 5,30,100"), ({"promotion_stages": "50,20"}, "must rise"),
])  # fmt: skip
def test_words_that_mean_nothing_are_wrong_usage(flags, said):
    with pytest.raises(typer.BadParameter, match=said):
        made(**flags)


def test_a_command_without_some_flags_keeps_those_defaults():
    def command(order: Campaign) -> None:
        pass

    flags = set(inspect.signature(with_order(command, leave_out=("promotion", "privacy.secure"))).parameters)
    assert not {name for name in flags if name.startswith("promotion") or name == "privacy_secure"}
    assert "privacy_noise" in flags


# ------------------------------------------------------------------------------------------------------------- telling


def view(**more):
    order = Campaign(model="digits", version="3", variant="", rounds=10, goal=8, privacy=Privacy(noise=4.0, clip=1.0))
    rounds = (
        RoundView(number=1, state="closed", n_counted=8, accuracy=0.5, seconds=100.0, outcomes={"accepted": 8}),
        RoundView(number=2, state="closed", n_counted=7, accuracy=0.75, seconds=120.0, n_bytes_up=2_500_000,
                  outcomes={"accepted": 7, "rejected:norm": 2, "stale": 1}, n_abandoned=1),
        RoundView(number=3, state="open", n_counted=3, n_leases=4, seconds=30.0),
    )  # fmt: skip
    told = {"id": "k3p9w2xa", "serial": 4, "state": "running", "order": order, "step": 2, "n_boxes": 20,
            "n_parameters": 4810, "base_accuracy": 0.4, "epsilon": 1.39, "rounds": rounds}  # fmt: skip
    return CampaignView(**(told | more))


def test_a_campaign_is_told_in_lines():
    text = "\n".join(lines(view()))
    for words in (
        "k3p9w2xa of digits:3: running, step 2 of 10, accuracy 75.0% (base 40.0%), epsilon 1.39, about 14 min left",
        "goal 8 of 20 boxes (all), 4,810 weights, plain, int8 up, int8 down",
        "a box in all 10 rounds spends 3.34",
        "2 norm, 1 stale", "2.5 MB", "closed, abandoned once", "3 (+4 at work)", "2 min",
    ):  # fmt: skip
        assert words in text, words


def test_how_it_learns_is_told():
    def way(**more):
        order = Campaign(model="digits", version="3", variant="", **more)
        return lines(view(order=order))[1].removeprefix("goal 8 of 20 boxes (all), 4,810 weights, ")

    assert way(aggregation=Aggregation(scaffold=True)) == "SCAFFOLD, int8 up, int8 down"
    late = Aggregation(rule="median", optimizer="adam", max_staleness=3)
    assert way(aggregation=late, training=Training(personal=("norm.*",))) == (
        "median, adam, up to 3 steps late, norm.* personal, int8 up, int8 down"
    )
    assert way(aggregation=Aggregation(rule="multi-krum")) == "multi-krum, int8 up, int8 down"


@pytest.mark.parametrize("n_columns", [40, 80])
def test_what_is_told_fits_the_terminal(monkeypatch, n_columns):
    monkeypatch.setenv("COLUMNS", str(n_columns))
    told = lines(view(state="stalled", reason="too few boxes " * 12, n_able=1, left_out={"power": 3, "silent": 16}))
    assert max(map(len, text_of(told).splitlines())) <= n_columns
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, text_of(lines(view())).splitlines())) > 80  # a pipe gets whole lines


class Told:
    """A gateway that answers with one view after the other, errors among them."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def get(self, path, kind):
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_who_watches_hears_of_a_gateway_that_is_away_once(monkeypatch, capsys):
    away = Told(LinkError("refused"), LinkError("refused"), LinkError("reset"), view(step=3, serial=5))
    monkeypatch.setattr(watch.time, "sleep", lambda s: None)
    assert watch._next(away, view()).step == 3
    assert capsys.readouterr().err == "refused; trying again\nreset; trying again\n"


def test_who_watches_waits_where_a_gateway_has_too_much_to_do_or_lets_nobody_wait(monkeypatch):
    pauses = []
    monkeypatch.setattr(watch.time, "sleep", pauses.append)
    stopping = view()  # answered at once, and no other than before
    assert watch._next(Told(Overloaded("too many"), Warming("it starts"), stopping, view(serial=5)), view()).serial == 5
    assert len(pauses) == 3


def test_who_watches_is_told_what_became_of_the_result_that_the_order_wants_home(monkeypatch):
    monkeypatch.setattr(watch.time, "sleep", lambda s: None)
    evaluating = PromotionView(step=2, state="evaluating")
    home = PromotionView(step=2, state="candidate", version="digits:3.r2")
    over = view(state="completed", serial=5)
    told = [over, view(state="completed", serial=6, promotions=(evaluating,)),
            view(state="completed", serial=7, promotions=(home,))]  # fmt: skip
    assert list(watch._views(Told(*told), view())) == [view(), *told]
    assert watch._line(told[1]).endswith("; step 2: evaluating, 0 boxes tried it so far")
    clock_s = iter(range(0, 1000, 10))
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(clock_s))
    assert len(list(watch._views(Told(*[over] * 20), over))) < 6, "one that is never begun is not waited for"
    kept = view(state="stopped")
    assert list(watch._views(Told(), kept)) == [kept]


def test_who_watches_is_told_what_keeps_boxes_out():
    thin = view(n_able=1, left_out={"power": 19})
    assert "1 box of 20 could begin a task now" in watch._line(thin)
    assert "could begin" not in watch._line(view(n_able=20))


def test_the_time_left_is_the_median_rounds_less_what_is_done():
    assert seconds_left(view()) == 110.0 * 8 - 30.0
    assert seconds_left(view(state="paused")) is None
    assert seconds_left(view(rounds=())) is None


def test_what_became_of_a_result_is_told():
    promoted = PromotionView(step=2, state="rollout", version="digits:3.r2", accuracy=0.75, base_accuracy=0.4,
                             n_won=9, n_lost=2, n_boxes=5, rollout="abc")  # fmt: skip
    text = lines(view(state="completed", promotions=(promoted,)))[-1]
    assert text == "step 2: rollout digits:3.r2, accuracy 75.0% beside 40.0%, 9 won and 2 lost on 5 boxes, rollout abc"
    assert "left" not in headline(view(state="completed"))


def test_what_failed_before_a_step_came_home_is_past():
    failed = PromotionView(step=1, state="candidate", version="digits:3.r1", reason="no rollout: no key", begun_s=1.0)
    worse = PromotionView(step=3, state="refused", reason="worse", begun_s=2.0)
    home = PromotionView(step=2, state="rollout", version="digits:3.r2", rollout="abc", begun_s=3.0)
    assert promotion_lines(view(promotions=(failed, worse))) == [
        "step 1: candidate digits:3.r1: no rollout: no key", "step 3: refused: worse"
    ]  # fmt: skip
    assert promotion_lines(view(promotions=(failed, worse, home))) == ["step 2: rollout digits:3.r2, rollout abc"]
    again = PromotionView(step=4, state="refused", reason="worse", begun_s=4.0)
    assert len(promotion_lines(view(promotions=(failed, worse, home, again)))) == 2


def test_why_it_does_not_go_on_stands_below_the_headline():
    assert lines(view(state="spent", reason="too little privacy is left"))[1] == "too little privacy is left"


def test_the_live_picture_holds_the_same():
    from rich.console import Console

    console = Console(file=io.StringIO(), width=140)
    console.print(watch._pictured(view(state="stalled", reason="too few boxes")))
    text = console.file.getvalue()
    for words in ("stalled, step 2 of 10", "too few boxes", "2 norm, 1 stale", "75.0%", "in all 10 rounds"):
        assert words in text, words


def test_a_narrow_terminal_is_shown_less_of_a_round_and_no_word_in_pieces(monkeypatch):
    from rich.console import Console

    from cloud_gateway.rounds.commands.watch import _pictured

    monkeypatch.setenv("COLUMNS", "40")
    console = Console(file=io.StringIO(), width=40)
    console.print(_pictured(view()))
    told = console.file.getvalue().split("\n")
    (head,) = (line for line in told if "round" in line and "state" in line)
    assert head.split() == ["round", "state", "updates", "accuracy"]
    assert any(line.split() == ["2", "closed,", "7", "75.0%"] for line in told)


def test_who_watches_is_let_go_where_only_a_person_can_help():
    evaluating = PromotionView(step=2, state="evaluating")
    assert [is_over(view(state=state)) for state in ("running", "paused", "stalled", "completed")] == [
        False, False, True, True,
    ]  # fmt: skip
    assert not is_over(view(state="completed", promotions=(evaluating,)))


def test_amounts_for_people():
    assert [size(n) for n in (0, 999, 1500, 2_500_000, 3e9)] == ["0 B", "999 B", "1.5 kB", "2.5 MB", "3.0 GB"]
    assert [duration(s) for s in (0.0, 1e-5, 0.028, 0.96, 1.25, 9.96, 30.0, 600.0, 7200.0)] == [
        "0 s", "1 ms", "28 ms", "1.0 s", "1.2 s", "10 s", "30 s", "10 min", "2.0 h",
    ]  # fmt: skip
    assert outcomes({"accepted": 3}) == "-"
