"""What the lab asks of a Linux kernel: namespaces, TUN devices, addresses and routes, with no command and no package.

Design: nothing here has a name that could be left behind. Namespaces live as long as somebody holds them open or runs
in them, TUN devices as long as their file is open, so whatever dies takes its part along. Everything else (`ip netns`,
persistent devices) would need cleaning after a kill.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_TIMERSLACK: Final = 29

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_SIOCSIFMTU: Final = 0x8922
_SIOCSIFTXQLEN: Final = 0x8943
_SIOCGIFINDEX: Final = 0x8933
_IFF_UP: Final = 0x1
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000

_NETLINK_ROUTE: Final = 0
_RTM_NEWROUTE: Final = 24
_NLM_F_REQUEST_ACK_CREATE_REPLACE: Final = 0x1 | 0x4 | 0x400 | 0x100
_NLMSG_ERROR: Final = 2
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_METRICS: Final = 8
_RTAX_CC_ALGO: Final = 16
_TABLE_MAIN: Final = 254
_PROTO_BOOT: Final = 3
_SCOPE_LINK: Final = 253
_SCOPE_GLOBAL: Final = 0
_UNICAST: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Moves this thread into new namespaces.

    Raises:
        OSError: the kernel or its rules do not allow it.
    """
    _checked(_libc.unshare(flags), "unshare")


def enter(namespace: int, kind: int) -> None:
    """Moves this thread into the namespace behind an open file of /proc/PID/ns.

    Raises:
        OSError: no right to, or no such namespace.
    """
    _checked(_libc.setns(namespace, kind), "setns")


def stay_readable() -> None:
    """Lets other processes of this user open this one's files in /proc, also after it got its own user namespace."""
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def call_myself(name: str) -> None:
    """The name that `ps` and `top` show for this thread."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def wake_precisely() -> None:
    """Timers of this thread fire at their time, not up to 50 µs later together with others."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def own_user_namespace() -> None:
    """Gives this process every right over namespaces that it makes from here on, without being root; same user id.

    Raises:
        OSError: this machine allows no user namespaces.
    """
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    stay_readable()
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def tun(name: str) -> int:
    """A new TUN device in this thread's network namespace: a file that yields and takes one IP packet a time.

    Raises:
        OSError: no /dev/net/tun, or no right to make one.
    """
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(file)
        raise
    return file


def bring_up(name: str, *, address: str | None = None, mtu_bytes: int | None = None, queue_packets: int = 1000) -> None:
    """Switches an interface of this namespace on, with an IPv4 address of its own (a /32: routes are made apart)."""
    label = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        if mtu_bytes is not None:
            fcntl.ioctl(handle, _SIOCSIFMTU, struct.pack("16si20x", label, mtu_bytes))
        with contextlib.suppress(PermissionError):  # the machine's root alone may; the default is 500
            fcntl.ioctl(handle, _SIOCSIFTXQLEN, struct.pack("16si20x", label, queue_packets))
        if address is not None:
            for request, number in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.255")):
                sockaddr = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(number))
                fcntl.ioctl(handle, request, struct.pack("16s16s8x", label, sockaddr))
        flags = struct.unpack_from("16sH", fcntl.ioctl(handle, _SIOCGIFFLAGS, struct.pack("16s24x", label)))[1]
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sH22x", label, flags | _IFF_UP))


def add_ipv6(name: str, address: str) -> None:
    """Gives an interface an IPv6 address (a /128).

    Raises:
        OSError: no IPv6 in this kernel, or switched off.
    """
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, address), 128, index_of(name))
        fcntl.ioctl(handle, _SIOCSIFADDR, request)


def index_of(name: str) -> int:
    """The number of an interface of this namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        answer = fcntl.ioctl(handle, _SIOCGIFINDEX, struct.pack("16s24x", name.encode()))
    return int(struct.unpack_from("16si", answer)[1])


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("HH", size, kind) + value + bytes(-size % 4)


def add_route(family: int, network: str, prefix_bits: int, interface: str, congestion_control: str | None) -> None:
    """Routes a network through an interface; TCP over that route uses this congestion control (None: the system's).

    The congestion control of a route needs no setting of the system, holds in this namespace alone, and for
    connections of either direction.

    Raises:
        OSError: no such congestion control in this kernel (ENOENT), or no right to.
    """
    scope = _SCOPE_LINK if family == socket.AF_INET else _SCOPE_GLOBAL
    body = struct.pack("BBBBBBBBI", family, prefix_bits, 0, 0, _TABLE_MAIN, _PROTO_BOOT, scope, _UNICAST, 0)
    body += _attribute(_RTA_DST, socket.inet_pton(family, network))
    body += _attribute(_RTA_OIF, struct.pack("I", index_of(interface)))
    if congestion_control is not None:
        body += _attribute(_RTA_METRICS, _attribute(_RTAX_CC_ALGO, congestion_control.encode() + b"\0"))
    head = struct.pack("IHHII", 16 + len(body), _RTM_NEWROUTE, _NLM_F_REQUEST_ACK_CREATE_REPLACE, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as netlink:
        netlink.settimeout(5)
        netlink.send(head + body)
        answer = netlink.recv(65536)
    kind, number = struct.unpack_from("H", answer, 4)[0], -struct.unpack_from("i", answer, 16)[0]
    if kind == _NLMSG_ERROR and number:
        # the kernel says EINVAL for a congestion control that it does not have
        text = f"route to {network}/{prefix_bits} with congestion control {congestion_control}: {os.strerror(number)}"
        raise OSError(number if number != errno.EINVAL else errno.ENOENT, text)


def default_congestion_control() -> str:
    """What TCP uses where nothing else was said."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="ascii").strip()


def available_congestion_controls() -> list[str]:
    """What this kernel has loaded."""
    return Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text(encoding="ascii").split()
