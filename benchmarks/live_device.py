"""What runs on the emulated device of a live cell: sessions that answer a paced stream, one policy after the other.

    python benchmarks/live_device.py SPEC.json    # HYBRID_GATEWAY, HYBRID_TOKEN and HYBRID_PACE come from the lab

Writes one JSON object to the path in the spec: for each policy, seconds and placement of every request.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import hybrid

PREPARED_WITHIN_S = 40.0


def host_ratio(spec: dict[str, Any], feeds: dict[str, np.ndarray]) -> float:
    """How much slower this machine is just now than when the parts were measured, by the whole model, unpaced.

    The runs lie apart as those of a stream do: after a rest the caches are cold.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(spec["model"], settings, ["CPUExecutionProvider"])
    seconds = []
    for _ in range(10):
        time.sleep(0.5 * spec["period_s"])
        before_s = time.thread_time()
        session.run(None, feeds)
        seconds.append(time.thread_time() - before_s)
    return float(np.median(seconds[2:])) / float(spec["whole_s"])


def stream(spec: dict[str, Any], policy: dict[str, Any], inputs: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """One policy's requests."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    options = hybrid.Options(
        objective=policy.get("objective", "latency"),
        placement=policy["placement"],
        codec=policy.get("codec", "auto"),
        max_accuracy_drop=1.0,
    )
    with hybrid.InferenceSession(spec["model"], settings, ["CPUExecutionProvider"], options=options) as session:
        wanted = policy["placement"].partition(":")[0]
        until_s = time.monotonic() + PREPARED_WITHIN_S
        while time.monotonic() < until_s:
            session.run(None, inputs[0])
            report = session.report
            if wanted in ("local", report.placement if report is not None else ""):
                break
            if wanted == "auto" and any(one.predicted_s for one in session.explain() if one.placement != "local"):
                break
            time.sleep(0.2)
        for number in range(spec["n_warm"]):
            session.run(None, inputs[number % len(inputs)])
        rows = []
        started_s = time.perf_counter()
        for number in range(spec["n_requests"]):
            due_s = started_s + number * spec["period_s"]
            time.sleep(max(0.0, due_s - time.perf_counter()))
            before_s = time.perf_counter()
            session.run(None, inputs[number % len(inputs)])
            seconds = time.perf_counter() - before_s
            report = session.report
            assert report is not None
            rows.append(
                {
                    "start_s": before_s - started_s,
                    "latency_s": seconds,
                    "placement": report.placement,
                    "codec": report.codec,
                    "cut": report.cut,
                    "predicted_s": report.predicted_s,
                    "hedge_s": report.hedge_s,
                    "fallback": report.fallback,
                    "network_s": report.network_s,
                    "head_s": report.head_s,
                    "encode_s": report.encode_s,
                    "queue_s": report.queue_s,
                    "tail_s": report.tail_s,
                    "bytes_up": report.bytes_up,
                    "bytes_down": report.bytes_down,
                }
            )
        return {"policy": policy["name"], "rows": rows}


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with np.load(spec["inputs"]) as stored:
        names = sorted({key.partition("@")[0] for key in stored.files})
        n_inputs = len(stored.files) // len(names)
        inputs = [{name: stored[f"{name}@{number}"] for name in names} for number in range(n_inputs)]
    found = []
    for policy in spec["policies"]:
        try:
            before = host_ratio(spec, inputs[0])
            done = stream(spec, policy, inputs)
            found.append({**done, "host_ratio": 0.5 * (before + host_ratio(spec, inputs[0]))})
        except Exception as exc:  # noqa: BLE001  (the other policies are worth having)
            found.append({"policy": policy["name"], "rows": [], "error": f"{type(exc).__name__}: {exc}"})
        Path(spec["out"]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
