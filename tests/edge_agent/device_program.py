"""A program of a device in a lab: runs a model again and again and says of each answer where it came from.

Reads one line of JSON from stdin: model, gateways, token, placement, and the file whose presence ends it.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

import hybrid


def main() -> None:
    wish = json.loads(sys.stdin.readline())
    feeds = {name: np.load(path) for name, path in wish["feeds"].items()}
    with hybrid.InferenceSession(wish["model"], gateway=None) as alone:
        wanted = alone.run(None, feeds)
    options = hybrid.Options(placement=wish["placement"])
    with hybrid.InferenceSession(
        wish["model"], gateway=wish["gateways"], token=wish["token"], options=options
    ) as session:
        prepared = session.prepare(feeds, wish.get("prepare_s", 30))
        print(json.dumps({"prepared": prepared}), flush=True)
        while not Path(wish["until"]).exists():
            began_s = time.perf_counter()
            outputs = session.run(None, feeds)
            report = session.report
            error = max(float(np.max(np.abs(a - b))) for a, b in zip(outputs, wanted, strict=True))
            told = {
                "placement": report.placement, "gateway": report.gateway, "error": error,
                "seconds": time.perf_counter() - began_s,
            }  # fmt: skip
            print(json.dumps(told), flush=True)
            time.sleep(wish.get("pause_s", 0.02))


if __name__ == "__main__":
    main()
