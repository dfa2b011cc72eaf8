"""What the doctor sees of this machine's means to emulate others, and of its TCP."""

import sys
from pathlib import Path
from typing import Final

from hybrid.cli.doctor.check import Check, passed, warned

_CONTROL: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_CONTROLS: Final = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def slow_machines() -> Check:
    """Whether a slower machine can be emulated by the kernel's quota, or only by pacing."""
    from devices.cpu_quota import why_unavailable

    reason = why_unavailable() if sys.platform == "linux" else "only Linux has control groups"
    if reason is None:
        return passed("slow machines", "emulated by a quota of the kernel, any program", quota=True)
    fix = "run as root, or in a container with a writable cgroup; pacing slows our own sessions without that"
    return warned("slow machines", f"only by pacing: {reason}", fix, quota=False)


def slow_links() -> Check:
    """Whether a link can be emulated with real packets, or only by a proxy."""
    if sys.platform != "linux":
        fix = "use Linux for real packets; the proxy has rate, delay and blackholes, but no loss"
        return warned("slow links", "only by a proxy: network namespaces are Linux's", fix, tun=False)
    from devices.errors import EmulationUnavailable
    from devices.lab.link import open_link
    from devices.shape import Shape

    try:
        link = open_link(Shape(), kind="tun")
    except EmulationUnavailable as error:
        fix = "run as root, or in a container with /dev/net/tun; the proxy works without, but has no real packets"
        return warned("slow links", f"only by a proxy: {error}", fix, tun=False)
    link.close()
    return passed("slow links", "emulated with real packets between two network namespaces", tun=True)


def congestion_control() -> Check:
    """Which congestion control TCP uses: it decides what loss costs."""
    try:
        used = _CONTROL.read_text(encoding="ascii").strip()
        offered = _CONTROLS.read_text(encoding="ascii").split()
    except OSError:
        return passed("tcp", f"this system ({sys.platform}) does not tell its congestion control", used=None)
    others = ", ".join(name for name in offered if name != used) or "none"
    seen = f"congestion control {used} (also there: {others}); at 5 % loss bbr carries ten times what cubic does"
    return passed("tcp", seen, used=used, offered=" ".join(offered))
