"""How true the lab's links are: goodput and round trips measured over them, against what was set.

For each emulation (real packets under cubic and under bbr, the shaped proxy) bulk transfers at several rates, echoes,
a trace, and a transfer that loses 5 % of its packets. Everything is measured by programs at the ends, nothing by the
emulation itself, but for the processor time that it uses.
"""

import argparse
import sys

from benchmarks.report import Bar, Record, publish
from devices.errors import EmulationUnavailable
from devices.lab import check
from devices.lab.lab import Lab
from devices.shape import Shape

EMULATIONS: tuple[tuple[str, str | None], ...] = (("tun", "cubic"), ("tun", "bbr"), ("proxy", None))
RATES_BPS = (1e6, 5e6, 20e6, 50e6, 100e6)
RTTS_S = (0.005, 0.04, 0.15)
LOSSY = Shape.even(rate_bps=20e6, rtt_s=0.04, loss_ratio=0.05)

Row = tuple[str | float, ...]


def rows_of(kind: str, congestion_control: str | None, seed: int, *, quick: bool) -> tuple[list[Row], list[float]]:
    """Rows of one emulation, and its worst errors: goodput ratio, round trip in ms, missing correlation."""
    name = f"{kind}, {congestion_control}" if congestion_control else kind
    rows: list[Row] = []
    worst = [0.0, 0.0, 0.0]
    with (
        Lab(kind=kind, congestion_control=congestion_control, seed=seed) as lab,  # type: ignore[arg-type]  # a constant
        check.Traffic(lab) as traffic,
    ):
        for rate_bps in RATES_BPS[:1] if quick else RATES_BPS:
            before = lab.link.statistics()
            found = check.check_goodput(lab, traffic, rate_bps)
            after = lab.link.statistics()
            core = (after.cpu_s - before.cpu_s) / (after.elapsed_s - before.elapsed_s)
            rows.append((name, found.what, found.seen, f"{found.seen / found.wanted - 1:+.1%}", f"{core:.0%}"))
            worst[0] = max(worst[0], abs(found.seen / found.wanted - 1))
        for rtt_s in RTTS_S[:1] if quick else RTTS_S:
            found = check.check_rtt(lab, traffic, rtt_s)
            rows.append((name, found.what, found.seen, f"{found.seen - found.wanted:+.1f} ms", ""))
            worst[1] = max(worst[1], abs(found.seen - found.wanted))
        if not quick:
            found = check.check_trace(lab, traffic, seed)
            rows.append((name, found.what, found.seen, "", ""))
            worst[2] = 1 - found.seen if congestion_control != "bbr" else 0.0
            lab.link.set(LOSSY)
            rows.append((name, "goodput at 20 Mbit/s, 5 % loss, 40 ms", traffic.goodput_bps(3.0, 1.0) / 1e6, "", ""))
    return rows, worst


def main() -> int:
    """Measures every emulation that is allowed here and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one rate and one round trip each; publishes nothing")
    words = parser.parse_args()
    rows: list[Row] = []
    errors: list[list[float]] = []
    for kind, congestion_control in EMULATIONS:
        try:
            more, worst = rows_of(kind, congestion_control, words.seed, quick=words.quick)
        except EmulationUnavailable as unavailable:
            print(f"left out: {kind}, {congestion_control}: {unavailable}", file=sys.stderr)
            continue
        rows += more
        errors.append(worst)
    ratio, rtt_ms, uncorrelated = (max(each) for each in zip(*errors, strict=True))
    if words.quick:
        print(*rows, sep="\n")
        return int(ratio > check.GOODPUT_BOUND_RATIO or rtt_ms > check.RTT_BOUND_S * 1e3)
    return publish(
        Record(
            name="emulated_links",
            claim="The lab's links are what they were set to",
            method="Bulk transfers of 1.5 s after a warm-up, medians of 15 echoes, a trace of 8 steps from 2 to"
            " 20 Mbit/s (BBR's own search for a new rate takes seconds, so its row is no measure of the link and stands"
            " in no bar); at the 5 % loss cubic and bbr differ as they do on real links, the proxy only stalls."
            " Core: what the emulation used of one. A measurement out of bounds is repeated at most twice.",
            seed=words.seed,
            columns=("emulation", "what", "seen (Mbit/s, ms)", "error", "core"),
            rows=rows,
            bars=(
                Bar(name="largest error of goodput", measured=ratio, limit=check.GOODPUT_BOUND_RATIO),
                Bar(name="largest error of a round trip", measured=rtt_ms, limit=check.RTT_BOUND_S * 1e3, unit=" ms"),
                Bar(
                    name="1 - smallest correlation with a trace",
                    measured=uncorrelated,
                    limit=1 - check.CORRELATION_BOUND_RATIO,
                ),
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
