"""Rows R1 to R4 as benchmarks/faults.py and benchmarks/lossy_link.py measured them, of the records that they left.

python -m benchmarks.reliability.recorded_rows
"""

import json
import sys
from typing import Any

from benchmarks.reliability.table import Finding, keep
from benchmarks.report import RESULTS

BACK_S = 3.0
HARMS = {"killed": ("R1", "gateway killed (SIGKILL)"), "frozen": ("R2", "gateway frozen"), "cut": ("R3", "link cut")}


def sessions() -> list[Finding]:
    """Two hundred faults at random moments of requests of a program on an emulated device."""
    record: dict[str, Any] = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))
    columns = record["columns"]
    rows = [dict(zip(columns, row, strict=True)) for row in record["rows"]]
    findings = []
    for harm, (name, fault) in HARMS.items():
        those = [row for row in rows if row["fault"] == harm]
        n_wrong, n_requests = sum(row["wrong answers"] for row in those), sum(row["requests"] for row in those)
        late, fair = sum(row["later than 1.2 x local"] for row in those), sum(row["fair"] for row in those)
        back_s = max(row["back after (max s)"] for row in those)
        findings.append(
            Finding(
                row=name,
                fault=f"{fault} in mid-request of a program that uses the library, over packets and shaped loopback",
                promise=f"P1: right, not later than 1.2 x the device alone; P5: remote again within {BACK_S:.0f} s",
                result=(
                    f"{n_wrong} of {n_requests} answers wrong; {late} faults with a later answer, {fair} where that "
                    f"was not this machine's own slowness; remote again after at most {back_s:.2f} s"
                ),
                held=not n_wrong and not fair and back_s <= BACK_S,
                times=sum(row["times"] for row in those),
                seed=record["seed"],
                command="python -m benchmarks.faults --fresh",
                at=record["at"],
                commit="",
            )
        )
    return findings


def lossy() -> Finding:
    """Five per cent of packets lost each way."""
    record: dict[str, Any] = json.loads((RESULTS / "lossy_link.json").read_text(encoding="utf-8"))
    bars = {bar["name"]: bar for bar in record["bars"]}
    changes, missed = bars["most plan changes in 10 s"], bars["deadlines missed"]
    return Finding(
        row="R4",
        fault="5 % of packets lost each way, 40 ms ± 10, BBR and cubic, real packets",
        promise="no deadline missed, at most one change of plan in 10 s",
        result=f"{missed['measured']:.0f} deadlines missed, at most {changes['measured']:.2f} changes of plan in 10 s",
        held=missed["measured"] <= missed["limit"] and changes["measured"] <= changes["limit"],
        times=len(record["rows"]),
        seed=record["seed"],
        command="python -m benchmarks.lossy_link",
        at=record["at"],
        commit="",
    )


def main() -> int:
    """Read the records."""
    findings = [*sessions(), lossy()]
    keep("recorded_rows", findings)
    for finding in findings:
        print(f"{finding.row} {finding.verdict}: {finding.result}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
