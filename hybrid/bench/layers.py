"""Seconds of single operators: what layer-wise predictors of the literature are built on."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import onnx
import onnxruntime

from hybrid.bench.parts import Layer
from hybrid.graph.read import read_view
from hybrid.graph.shapes import infer
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.partition.wiring import FROM_OUTSIDE, Wiring, ancestors, wire

N_RUNS: Final = 7
_NAME: Final = "layer_{}"


def layers_of(prepared: Prepared, feeds: Mapping[str, np.ndarray]) -> tuple[tuple[Layer, ...], Wiring]:
    """The operators of a prepared model in the order of its wiring, with the median seconds of each, unfused."""
    model = onnx.load(prepared.graph_path, load_external_data=False)
    view = read_view(model, infer(model, prepared.shape_key, prepared.folder))
    seconds = _seconds(model, prepared, feeds)
    sizes = {name: spec.n_bytes or 0 for name, spec in view.specs.items()}
    layers = tuple(
        Layer(
            op=node.op,
            work=node.work,
            n_bytes=sum(sizes.get(name, 0) for name in (*node.inputs, *node.outputs)),
            seconds=seconds.get(node.name, 0.0),
        )
        for node in view.nodes
    )
    return layers, wire(view)


def head_layers(wiring: Wiring, cut: Cut) -> tuple[int, ...]:
    """Numbers of the operators that the head of this cut holds."""
    above, number_of = ancestors(wiring), {name: number for number, name in enumerate(wiring.names)}
    mask = 0
    for spec in cut.tensors:
        maker = wiring.producer[number_of[spec.name]]
        if maker != FROM_OUTSIDE:
            mask |= above[maker]
    return tuple(number for number in range(len(wiring.work)) if mask >> number & 1)


def _seconds(model: onnx.ModelProto, prepared: Prepared, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Median seconds of each operator by its first output."""
    first_output = {}
    for number, node in enumerate(model.graph.node):
        node.name = _NAME.format(number)
        first_output[node.name] = next(name for name in node.output if name)
    with TemporaryDirectory() as folder:
        # Beside the weights that it refers to.
        named = prepared.folder / "layers.onnx"
        onnx.save(model, named)
        try:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
            session = onnxruntime.InferenceSession(str(named), options, ["CPUExecutionProvider"])
            for _ in range(N_RUNS):
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        finally:
            named.unlink(missing_ok=True)
    samples: dict[str, list[float]] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name in first_output:
            samples.setdefault(first_output[name], []).append(event["dur"] * 1e-6)
    return {name: median(times[1:] or times) for name, times in samples.items()}
