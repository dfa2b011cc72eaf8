"""One direction of the link of packets, in virtual time."""

import itertools
import statistics

import pytest

from devices.lab.lane import PAYLOAD_RATIO, Lane, payload_bytes
from devices.shape import Direction

FAR = 10**9


def packet(n_bytes: int = 1500, number: int = 0) -> bytes:
    """An IPv4 packet of TCP with timestamps; its number stands in its last bytes."""
    header = bytes([0x45, 0, *n_bytes.to_bytes(2), 0, 0, 0, 0, 64, 6]) + bytes(10)
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)
    return (header + tcp + number.to_bytes(n_bytes - 52))[:n_bytes]


def number_of(one: bytes) -> int:
    return int.from_bytes(one[52:])


def lane(queue_bytes: int = FAR, **direction: object) -> Lane:
    made = Lane(7)
    made.set(Direction(**direction), queue_bytes, 0.0)
    return made


def flow(one: Lane, *, every_s: float, n: int, from_s: float = 0.0) -> list[tuple[float, int]]:
    """Offers packets at a steady pace and looks whenever something happens; when each arrived."""
    arrived = []
    for number in range(n):
        now_s = from_s + number * every_s
        while one.next_s() <= now_s:
            at_s = one.next_s()
            arrived += [(at_s, number_of(got)) for got in one.arrived(at_s)]
        one.take(packet(number=number), now_s)
    while one.next_s() < 1e9:
        at_s = one.next_s()
        arrived += [(at_s, number_of(got)) for got in one.arrived(at_s)]
    return arrived


def test_payload_of_packets_of_every_kind() -> None:
    assert payload_bytes(packet(1500)) == 1448
    assert payload_bytes(packet(52)) == 0
    udp = bytes([0x45, 0, 0, 48, 0, 0, 0, 0, 64, 17]) + bytes(38)
    assert payload_bytes(udp) == 20
    tcp6 = bytes([0x60, 0, 0, 0, 0, 0, 6, 64]) + bytes(32) + bytes(12) + bytes([5 << 4]) + bytes(7 + 100)
    assert payload_bytes(tcp6) == 100
    icmp = bytes([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1]) + bytes(18)
    assert payload_bytes(icmp) == 0


@pytest.mark.parametrize("rate_bps", [1e6, 100e6])
def test_the_rate_is_goodput(rate_bps: float) -> None:
    arrived = flow(lane(rate_bps=rate_bps), every_s=0.0, n=1000)
    seconds = arrived[-1][0] - arrived[0][0]
    assert 999 * 1448 * 8 / seconds == pytest.approx(rate_bps, rel=0.005)


def test_a_relay_that_looks_late_keeps_the_rate() -> None:
    one = lane(rate_bps=10e6)
    for number in range(1000):
        one.take(packet(number=number), 0.0)
    whole_s = 1000 * 1500 * 8 * PAYLOAD_RATIO / 10e6
    got = [len(one.arrived(at * 0.05)) for at in range(1, int(whole_s / 0.05) + 2)]
    assert sum(got) == 1000
    assert set(got[:-1]) <= {43, 44}, "as many as 50 ms carry, however seldom it looks"


def test_an_empty_link_delays_and_nothing_else() -> None:
    arrived = flow(lane(rate_bps=10e6, delay_s=0.02), every_s=0.01, n=50)
    each_s = 1500 * 8 * PAYLOAD_RATIO / 10e6
    for at_s, number in arrived:
        assert at_s - number * 0.01 == pytest.approx(0.02 + each_s, abs=0.0006)


def test_a_full_queue_drops_the_newest() -> None:
    one = lane(rate_bps=1e6, queue_bytes=15_000)
    arrived = flow(one, every_s=0.0, n=30)
    assert [number for _, number in arrived] == list(range(10))
    assert one.passage().n_overflow == 20
    assert one.passage().queue_max_s == pytest.approx(9 * 1500 * 8 * PAYLOAD_RATIO / 1e6, abs=0.001)


def test_jitter_wanders_around_the_delay_and_keeps_the_order() -> None:
    arrived = flow(lane(delay_s=0.05, jitter_s=0.03), every_s=0.001, n=20_000)
    assert [number for _, number in arrived] == list(range(20_000))
    delays_s = [at_s - number * 0.001 for at_s, number in arrived]
    assert statistics.mean(delays_s) == pytest.approx(0.05, abs=0.003)
    assert min(delays_s) == pytest.approx(0.02, abs=0.004)
    assert max(delays_s) == pytest.approx(0.08, abs=0.004)
    assert statistics.pstdev(delays_s) == pytest.approx(0.03 * (2 / 9) ** 0.5, rel=0.1)
    steps_s = [abs(late_s - soon_s) for soon_s, late_s in itertools.pairwise(delays_s)]
    assert max(steps_s) <= 0.001, "from one packet to the next it changes little"


def test_jitter_that_does_not_keep_the_order() -> None:
    arrived = flow(lane(delay_s=0.05, jitter_s=0.03, keep_order=False), every_s=0.001, n=2000)
    numbers = [number for _, number in arrived]
    assert sorted(numbers) == list(range(2000))
    assert numbers != sorted(numbers)


def test_some_overtake() -> None:
    arrived = flow(lane(delay_s=0.05, reorder_ratio=0.1), every_s=0.001, n=5000)
    early = [number for at_s, number in arrived if at_s - number * 0.001 < 0.01]
    assert len(early) == pytest.approx(500, rel=0.15)
    assert {round(at_s - number * 0.001, 6) for at_s, number in arrived} == {0.0, 0.05}


@pytest.mark.parametrize("burst", [1.0, 5.0])
def test_losses_come_as_often_and_in_such_runs_as_was_said(burst: float) -> None:
    one = lane(loss_ratio=0.05, loss_burst_packets=burst)
    numbers = [number for _, number in flow(one, every_s=0.001, n=40_000)]
    n_lost = 40_000 - len(numbers)
    assert n_lost == one.passage().n_lost
    assert n_lost / 40_000 == pytest.approx(0.05, rel=0.15)
    runs = [later - sooner - 1 for sooner, later in itertools.pairwise(numbers) if later - sooner > 1]
    assert statistics.mean(runs) == pytest.approx(burst / (1 - 0.05), rel=0.12)


def test_the_same_seed_loses_the_same_packets() -> None:
    one, same = (flow(lane(loss_ratio=0.1), every_s=0.001, n=500) for _ in range(2))
    assert one == same


def test_what_waits_leaves_by_a_changed_rate() -> None:
    one = lane(rate_bps=1e6)
    for number in range(101):
        one.take(packet(number=number), 0.0)
    one.set(Direction(rate_bps=100e6), FAR, 0.0)
    while one.next_s() < 1e9:
        last_s = one.next_s()
        one.arrived(last_s)
    assert last_s == pytest.approx(101 * 1500 * 8 * PAYLOAD_RATIO / 100e6, rel=0.02)


def test_a_blackhole_drops_what_waits_and_what_comes() -> None:
    one = lane(rate_bps=1e6)
    for number in range(10):
        one.take(packet(number=number), 0.0)
    one.close(True)
    one.take(packet(), 0.1)
    assert one.next_s() > 1e9
    assert one.passage().n_blackholed == 11
    one.set(Direction(rate_bps=2e6), FAR, 0.2)
    one.take(packet(), 0.3)
    assert one.passage().n_blackholed == 12, "a new shape does not open what was closed by hand"
    one.close(False)
    one.take(packet(number=3), 0.4)
    assert [number_of(got) for got in one.arrived(1.0)] == [3]
