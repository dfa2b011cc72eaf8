"""The program on the emulated device of `benchmarks.faults`: a session and the model alone, run as it is told.

    python -m benchmarks.faults_device SPEC    # HYBRID_GATEWAY and HYBRID_TOKEN come from `benchmarks.faults`

Standard input says what to do, a word a line: `alone` (one run of the device alone), `on` (requests in a row), `off`,
`end`. Every run is a line of JSON on standard output.
"""

import gc
import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

import hybrid

REPORTED = (
    "placement", "codec", "total_s", "plan_s", "hedge_s", "head_s", "encode_s", "network_s", "tail_s", "wasted_s",
    "attempts", "fallback", "predicted_s",
)  # fmt: skip
CONTROL = "alone"
"""In place of an objective: all requests run on the device alone, faults or not."""

DECIDED = ("index", "hedge_s", "remote_s", "is_trial")
BELIEVED = ("is_usable", "rtt_s", "uplink_bps", "speed_ratio", "queue_s", "failure_ratio", "backlog_s", "overhead_s")


class Program:
    """Runs what it is told, and tells what came of it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        with np.load(spec["feeds"]) as stored:
            self._feeds = dict(stored)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 3
        self._is_control = spec["objective"] == CONTROL
        options = hybrid.Options(objective="latency" if self._is_control else spec["objective"])
        self._alone = hybrid.InferenceSession(spec["model"], settings, gateway=None)
        self._session = hybrid.InferenceSession(spec["model"], settings, options=options)
        self._wanted = self._alone.run(None, self._feeds)[0]
        self._paused_s = 0.0
        self._collecting_s = 0.0
        gc.callbacks.append(self._collected)

    def tell(self, **row: object) -> None:
        """A line on standard output."""
        print(json.dumps(row), flush=True)

    def serve(self, told: "queue.SimpleQueue[str]") -> None:
        """Until it is told to end."""
        self.tell(kind="ready", prepared=self._session.prepare(self._feeds, 60))
        word = "off"
        while True:
            while word != "on" or not told.empty():
                word = told.get()
                if word == "alone":
                    self._timed(self._alone.run, "alone")
                elif word in {"off", "end"}:
                    self.tell(kind=word)
                    if word == "end":
                        return
            self._timed(self._alone.run if self._is_control else self._session.run, "request")

    def _timed(self, run: Callable[..., list[Any]], kind: str) -> None:
        paused_s, cpu_s, began_s = self._paused_s, time.thread_time(), time.perf_counter()
        found = run(None, self._feeds)[0]
        row = {"kind": kind, "start_s": began_s, "took_s": time.perf_counter() - began_s}
        row |= {"cpu_s": time.thread_time() - cpu_s, "gc_s": self._paused_s - paused_s}
        row["is_right"] = bool(np.abs(found - self._wanted).max() <= 1e-4 * np.abs(self._wanted).max())
        self.tell(**row, **(self._reported() if kind == "request" else {}))

    def _reported(self) -> dict[str, Any]:
        if self._is_control:
            return {"placement": "local", "encode_s": 0.0, "wasted_s": 0.0}
        report, (decision, _) = self._session.report, self._session.decisions[-1]
        row = {name: getattr(report, name) for name in REPORTED}
        row["decided"] = {name: getattr(decision, name) for name in DECIDED}
        if decision.inputs is not None and decision.inputs.gateways:
            row["believed"] = {name: getattr(decision.inputs.gateways[0], name) for name in BELIEVED}
        return row

    def _collected(self, phase: str, _: dict[str, int]) -> None:
        """Counts the seconds of the garbage collector."""
        if phase == "start":
            self._collecting_s = time.perf_counter()
        else:
            self._paused_s += time.perf_counter() - self._collecting_s


def main() -> int:
    """Serves what standard input says."""
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    program = Program(json.loads(sys.argv[1]))

    def listen() -> None:
        for line in sys.stdin:
            told.put(line.strip())
        told.put("end")

    threading.Thread(target=listen, daemon=True).start()
    program.serve(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
