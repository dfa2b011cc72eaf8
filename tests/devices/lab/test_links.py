"""Both emulations of a link keep what they promise: rate, round trip, traces, changes, blackholes, counts."""

import itertools
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from devices.errors import EmulationError, EmulationUnavailable
from devices.lab.check import Finding, Traffic, check_goodput, check_rtt, check_trace
from devices.lab.lab import Lab
from devices.lab.link import open_link
from devices.shape import Shape, Step

TUN = pytest.param({"kind": "tun", "congestion_control": "cubic"}, id="tun", marks=pytest.mark.root)
PROXY = pytest.param({"kind": "proxy"}, id="proxy")
ECHO = """
import socket, sys, threading
def serve(one):
    while data := one.recv(65536):
        one.sendall(data)
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

pytestmark = pytest.mark.slow


Labs = dict[str, tuple[Lab, Traffic]]


@pytest.fixture(scope="module")
def labs() -> Iterator[Labs]:
    """A lab of each kind that this machine allows."""
    with ExitStack() as stack:
        made = {}
        for kind, settings in (("tun", {"congestion_control": "cubic"}), ("proxy", {})):
            with suppress(EmulationUnavailable):
                lab = stack.enter_context(Lab(kind=kind, seed=3, **settings))
                made[kind] = lab, stack.enter_context(Traffic(lab))
        yield made


@pytest.fixture(params=[pytest.param("tun", marks=pytest.mark.root), "proxy"])
def measured(request: pytest.FixtureRequest, labs: Labs) -> tuple[Lab, Traffic]:
    if request.param not in labs:
        pytest.skip("real packets are not allowed here")
    return labs[request.param]


@pytest.fixture(params=[TUN, PROXY])
def echoing(request: pytest.FixtureRequest, lab_of: Callable[..., Lab]) -> tuple[Lab, tuple[str, int]]:
    """A lab, and where its device reaches a program that sends everything back."""
    lab = lab_of(**request.param)
    server = lab.gateway.popen([sys.executable, "-c", ECHO, lab.gateway.address], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout as lines:
        return lab, lab.endpoint(int(lines.readline()))


def told(finding: Finding, lab: Lab) -> str:
    return f"{finding} over {lab.link.kind}, {lab.link.congestion_control}; {lab.link.statistics()}"


@pytest.mark.parametrize("rate_bps", [1e6, 10e6, 100e6])
def test_goodput_is_within_8_percent_of_the_rate(measured: tuple[Lab, Traffic], rate_bps: float) -> None:
    lab, traffic = measured
    finding = check_goodput(lab, traffic, rate_bps)
    assert finding.ok, told(finding, lab)


@pytest.mark.parametrize("rtt_s", [0.01, 0.06])
def test_the_round_trip_is_within_3_ms(measured: tuple[Lab, Traffic], rtt_s: float) -> None:
    lab, traffic = measured
    finding = check_rtt(lab, traffic, rtt_s)
    assert finding.ok, told(finding, lab)


def test_a_trace_is_followed(labs: Labs) -> None:
    """By both kinds of link at once: most of it is waiting. One that the other disturbed is asked again, alone."""
    with ThreadPoolExecutor() as pool:
        findings = dict(zip(labs, pool.map(lambda pair: check_trace(*pair), labs.values()), strict=True))
    for kind, finding in findings.items():
        again = finding if finding.ok else check_trace(*labs[kind])
        assert again.ok, told(again, labs[kind][0])


@pytest.mark.root
@pytest.mark.parametrize("name", ["cubic", "bbr", "reno"])
def test_connections_use_the_congestion_control_that_was_asked_for(lab_of: Callable[..., Lab], name: str) -> None:
    lab = lab_of(Shape.even(rtt_s=0.002), kind="tun", congestion_control=name)
    assert lab.link.congestion_control == name
    with Traffic(lab) as traffic:
        assert traffic.congestion_control() == name


@pytest.mark.root
def test_a_congestion_control_that_this_kernel_has_not_is_refused(lab_of: Callable[..., Lab]) -> None:
    lab_of(kind="tun").close()
    with pytest.raises(EmulationUnavailable, match="nosuch"):
        open_link(Shape(), congestion_control="nosuch")
    with pytest.raises(EmulationError, match="proxy"):
        open_link(Shape(), kind="proxy", congestion_control="cubic")


def exchange(connection: socket.socket, n_bytes: int = 1) -> float:
    """Sends and gets everything back; how long that took."""
    began_s = time.monotonic()
    connection.sendall(bytes(n_bytes))
    got = 0
    while got < n_bytes:
        got += len(connection.recv(65536))
    return time.monotonic() - began_s


def silent(connection: socket.socket, wait_s: float) -> bool:
    return not select.select([connection], [], [], wait_s)[0]


def test_a_changed_shape_holds_at_once(echoing: tuple[Lab, tuple[str, int]]) -> None:
    lab, endpoint = echoing
    with lab.device.connect(endpoint) as connection:
        assert exchange(connection) < 0.02
        lab.link.set(Shape.even(rtt_s=0.1))
        assert 0.1 <= exchange(connection) < 0.3
        assert lab.link.shape == Shape.even(rtt_s=0.1)


def test_a_blackhole_swallows_until_it_ends(echoing: tuple[Lab, tuple[str, int]]) -> None:
    lab, endpoint = echoing
    with lab.device.connect(endpoint) as connection:
        exchange(connection)
        lab.link.blackhole(up=False)
        connection.sendall(b"x")
        assert silent(connection, 0.3)
        lab.link.set(Shape())
        assert silent(connection, 0.1), "a new shape does not end a blackhole"
        lab.link.restore()
        assert not silent(connection, 10), "TCP sends it again"
        assert connection.recv(1) == b"x"


def test_a_trace_is_played_once_or_again_and_again(echoing: tuple[Lab, tuple[str, int]]) -> None:
    lab, endpoint = echoing
    slow, fast = Shape.even(rtt_s=0.2), Shape()
    with lab.device.connect(endpoint) as connection:
        lab.link.play([Step(at_s=0.0, shape=slow), Step(at_s=0.4, shape=fast)], loop_s=0.8)
        began_s, seen = time.monotonic(), []
        while time.monotonic() - began_s < 1.5:
            seen.append(exchange(connection) >= 0.2)
            time.sleep(0.05)
        changes = sum(one != other for one, other in itertools.pairwise(seen))
        assert seen[0]
        assert changes >= 3, "slow, fast, slow, fast"
        lab.link.play([Step(at_s=0.0, shape=slow), Step(at_s=0.1, shape=fast)])
        time.sleep(0.2)
        assert exchange(connection) < 0.1, "the last shape stays"
        lab.link.play([Step(at_s=0.0, shape=slow), Step(at_s=0.3, shape=fast)])
        lab.link.set(slow)
        time.sleep(0.4)
        assert exchange(connection) >= 0.2, "setting a shape ends a trace"


def test_losses_cost_time_and_no_bytes(echoing: tuple[Lab, tuple[str, int]]) -> None:
    """Each on a connection of its own: one that has seen losses keeps its small window for a while."""
    lab, endpoint = echoing

    def fresh_s() -> float:
        with lab.device.connect(endpoint) as connection:
            return exchange(connection, 300_000)

    lab.link.set(Shape.even(rate_bps=50e6, rtt_s=0.02, loss_ratio=0.05))
    lossy_s = [fresh_s() for _ in range(4)]
    statistics = lab.link.statistics()
    assert statistics.up.n_lost + statistics.down.n_lost > 0
    lab.link.set(Shape.even(rate_bps=50e6, rtt_s=0.02))
    assert min(fresh_s() for _ in range(3)) < max(lossy_s)


def test_what_passed_is_counted(echoing: tuple[Lab, tuple[str, int]]) -> None:
    lab, endpoint = echoing
    lab.link.set(Shape.even(rate_bps=20e6, rtt_s=0.03))
    with lab.device.connect(endpoint) as connection:
        exchange(connection, 200_000)
    statistics = lab.link.statistics()
    assert statistics.up.n_bytes == statistics.down.n_bytes == 200_000
    assert statistics.up.n_packets >= 13
    assert statistics.rtt_s is not None
    assert 0.03 <= statistics.rtt_s < 0.3
    assert 1e5 < statistics.up.peak_bps <= 22e6
    assert 0 < statistics.cpu_ratio < 1
    assert statistics.up.late_mean_s < 0.02


def test_a_closed_link_says_so(echoing: tuple[Lab, tuple[str, int]]) -> None:
    lab, _ = echoing
    lab.close()
    lab.close()
    with pytest.raises(EmulationError, match="make a new one"):
        lab.link.statistics()


@pytest.mark.root
def test_several_ports_and_both_directions_over_real_packets(lab_of: Callable[..., Lab]) -> None:
    """The gateway reaches the device too, by IPv4 and IPv6, and UDP goes over the link as well."""
    lab = lab_of(Shape.even(rtt_s=0.02), kind="tun")
    with lab.device.entered(), socket.create_server((lab.device.address, 0)) as listener:
        port = listener.getsockname()[1]
        with lab.gateway.connect((lab.device.address, port)) as near, listener.accept()[0] as far:
            near.sendall(b"down")
            assert far.recv(4) == b"down"
    families = [(socket.AF_INET, {})] + ([(socket.AF_INET6, {"ipv6": True})] if lab.link.ipv6 else [])
    for family, words in families:
        address = lab.link.address("gateway", **words)
        with lab.gateway.entered():
            far = socket.socket(family, socket.SOCK_DGRAM)
        with lab.device.entered():
            near = socket.socket(family, socket.SOCK_DGRAM)
        with near, far:
            far.bind((address, 0))
            far.settimeout(5)
            began_s = time.monotonic()
            near.sendto(b"up", (address, far.getsockname()[1]))
            assert far.recv(2) == b"up"
            assert time.monotonic() - began_s >= 0.01
