"""What a hybrid session adds to onnxruntime's own run: alone, and when the planner chooses the device.

Both sessions run the same tiny model in one process, in alternating blocks, so that whatever the machine does besides
falls on both. The difference of the medians is what the library adds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

import hybrid
from benchmarks.report import Bar, Record, publish
from hybrid.schedule.options import Options
from tests.live_gateway import LiveGateway

N_BLOCKS = 60
N_RUNS = 300


def tiny_model(path: Path) -> None:
    """One matrix product of 16 x 16: the run itself takes a few microseconds."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(5).standard_normal((16, 16), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def block_s(run: Callable[..., object], feeds: dict[str, np.ndarray]) -> float:
    """Seconds a call, over one block."""
    started_s = time.perf_counter()
    for _ in range(N_RUNS):
        run(None, feeds)
    return (time.perf_counter() - started_s) / N_RUNS


def main() -> int:
    """Measures both ways and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    seed = parser.parse_args().seed
    feeds = {"x": np.random.default_rng(seed).standard_normal((1, 16), dtype=np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        tiny_model(path)
        raw = onnxruntime.InferenceSession(str(path))
        alone = hybrid.InferenceSession(str(path), gateway=None)
        lost = hybrid.InferenceSession(str(path), gateway="http://127.0.0.1:9", options=Options())
        with LiveGateway(Path(folder) / "gateway", "--no-announce") as gateway:
            gateway.push(path, "tiny")
            planned = hybrid.InferenceSession(str(path), gateway=gateway.url, token=gateway.token)
            planned.prepare(feeds)  # so small a model may be found to be not worth a way: then nothing is verified
            if not any(one.placement != "local" for one in planned.explain()):
                sys.exit(f"the gateway does not hold the model: {planned.explain()}")
            ways = {
                "onnxruntime": raw.run,
                "hybrid, gateway=None": alone.run,
                "hybrid, auto, gateway out of reach": lost.run,
                "hybrid, auto, local beats the gateway": planned.run,
            }
            for run in ways.values():
                block_s(run, feeds)
            samples: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(N_BLOCKS):
                for name, run in ways.items():
                    samples[name].append(block_s(run, feeds))
            if planned.report is None or planned.report.placement != "local":
                sys.exit(f"the planner did not choose the device: {planned.report}")
            planned.close()
        lost.close()
    medians = {name: statistics.median(values) for name, values in samples.items()}
    added_us = {name: 1e6 * (value - medians["onnxruntime"]) for name, value in medians.items()}
    return publish(
        Record(
            name="session_overhead",
            claim="What a session adds to onnxruntime's own run",
            method=f"One 16 x 16 product, {N_BLOCKS} alternating blocks of {N_RUNS} runs, medians of the blocks.",
            seed=seed,
            columns=("session", "median run (us)", "added (us)"),
            rows=[(name, 1e6 * medians[name], added_us[name]) for name in ways],
            bars=(
                Bar(name="added with gateway=None", measured=added_us["hybrid, gateway=None"], limit=5.0, unit=" us"),
                Bar(
                    name="added by auto choosing local",
                    measured=max(value for name, value in added_us.items() if "auto" in name),
                    limit=150.0,
                    unit=" us",
                ),
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
