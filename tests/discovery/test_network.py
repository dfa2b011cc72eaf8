"""Which of a machine's addresses are announced and listened on."""

import socket

from hybrid.discovery.network import announced, listening, present_addresses

PRESENT = ("127.0.0.1", "192.0.2.2", "::1", "fd00::2", "fe80::1%lo")


def test_this_machine_has_loopback() -> None:
    assert "127.0.0.1" in present_addresses()


def test_a_service_on_every_address_announces_those_that_others_can_reach() -> None:
    assert announced("", PRESENT) == ["192.0.2.2", "fd00::2"]
    assert announced("::", PRESENT) == ["fd00::2"]
    assert announced("0.0.0.0", PRESENT) == ["192.0.2.2"]


def test_link_local_and_loopback_are_a_last_resort() -> None:
    assert announced("", ("127.0.0.1", "::1", "fe80::1%lo")) == ["fe80::1"]
    assert announced("0.0.0.0", ("127.0.0.1", "::1")) == ["127.0.0.1"]


def test_a_service_on_one_address_announces_that_while_it_is_there() -> None:
    assert announced("192.0.2.2", PRESENT) == ["192.0.2.2"]
    assert announced("localhost", PRESENT) == ["127.0.0.1"]
    assert announced("198.51.100.1", PRESENT) == []


def test_ipv6_is_heard_on_interfaces_that_have_a_link_local_address() -> None:
    assert listening(PRESENT[:1] + PRESENT[2:]) == ["127.0.0.1", socket.if_nametoindex("lo")]
    assert listening(("fe80::1%nosuchif0",)) == []


def test_an_address_that_left_is_not_listened_on() -> None:
    assert listening(("127.0.0.1", "203.0.113.77")) == ["127.0.0.1"]
