"""A decision for the device lasts for a few requests, and no longer than what it rests on."""

from collections.abc import Callable

import pytest

from hybrid.route.lasting import MOST_REPEATS, MOST_S, Lasting
from hybrid.schedule.beliefs import Decision
from hybrid.schedule.prices import PRICES
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.schedule.scheduler import Scheduler
from hybrid.schedule.standing import Standing

URL = "g"
TICK_S = 1e-6
HEAVY = Prospect(placement="offload", gateway=URL, encode_s=0.002, bytes_up=3_000_000, tail_s=0.01)
LIGHT = Prospect(placement="offload", gateway=URL, encode_s=0.0001, bytes_up=3_000, tail_s=0.001)


class Requests:
    """Requests of one route, one after the other, each a moment after the last."""

    def __init__(self, way: Prospect) -> None:
        self.standing = Standing(seed=1)
        self.scheduler = Scheduler(PRICES["energy"])
        self.scheduler.profile_local(0.05)
        self.scheduler.put_gateways({URL: self.standing})
        self.scheduler.put_prospects([way])
        self.now_s = 100.0
        for _ in range(5):
            self.standing.link.observe_rtt(0.01, self.now_s)
            self.standing.link.observe_transfer(100_000, 1_000, 0.05, self.now_s)
            self.scheduler.observe_local(0.05, self.now_s)
            self.now_s += 0.1
        self.lasting = Lasting()
        self.constraints = Constraints()

    def decide(self, *, left_s: float | None = None, n_runs: int = 0, n_in_flight: int = 0) -> Decision:
        self.now_s += TICK_S
        return self.lasting.decide(
            self.scheduler, self.constraints, self.now_s,
            left_s=left_s, n_device_runs=n_runs, n_in_flight=n_in_flight, down=(),
        )  # fmt: skip


def test_a_few_requests_follow_one_decision_for_the_device() -> None:
    requests = Requests(HEAVY)
    first = requests.decide()
    assert first.index == 0
    assert [requests.decide() is first for _ in range(MOST_REPEATS)] == [True] * MOST_REPEATS
    assert requests.decide() is not first


def test_it_ends_with_time() -> None:
    requests = Requests(HEAVY)
    first = requests.decide()
    requests.now_s += MOST_S
    assert requests.decide() is not first


def test_a_remote_way_is_decided_about_each_time() -> None:
    requests = Requests(LIGHT)
    first = requests.decide()
    assert first.index == 1
    assert requests.decide() is not first


@pytest.mark.parametrize("company", [{"left_s": 1.0}, {"n_runs": 1}, {"n_in_flight": 1}])
def test_a_deadline_and_company_are_decided_about(company: dict[str, float]) -> None:
    requests = Requests(HEAVY)
    first = requests.decide()
    assert requests.decide(**company) is not first  # type: ignore[arg-type]
    assert requests.decide() is not first, "nor does a decision last that was made in company"


def _slower(requests: Requests) -> None:
    for _ in range(3):
        requests.scheduler.observe_local(0.2, requests.now_s)


def _failing(requests: Requests) -> None:
    requests.standing.breaker.failed(requests.now_s)


def _offered(requests: Requests) -> None:
    requests.scheduler.put_prospects([LIGHT])


def _bound(requests: Requests) -> None:
    requests.constraints = Constraints(raw_input_may_leave=False)


def _priced(requests: Requests) -> None:
    requests.scheduler.prices = PRICES["bytes"]


@pytest.mark.parametrize("happen", [_slower, _failing, _offered, _bound, _priced])
def test_it_ends_when_something_moves(happen: Callable[[Requests], None]) -> None:
    requests = Requests(HEAVY)
    first = requests.decide()
    assert requests.decide() is first
    happen(requests)
    assert requests.decide() is not first


def test_savings_and_pauses_are_those_of_all_requests() -> None:
    often, once = Requests(HEAVY), Requests(HEAVY)
    for _ in range(2 * (MOST_REPEATS + 1) + 1):
        often.decide()
        once.now_s += TICK_S
        once.scheduler.decide(once.now_s, constraints=once.constraints)
    found, wanted = (each.scheduler.inputs(each.now_s, constraints=Constraints()) for each in (often, once))
    assert found.saved == pytest.approx(wanted.saved, rel=0.3)
    assert found.gap_s == pytest.approx(TICK_S, rel=0.5)
