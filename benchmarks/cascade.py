"""What a cascade keeps of a large model's accuracy, how much it sends for it, and how long answers take.

The data set is Fashion-MNIST, from Debian's package `dataset-fashion-mnist` (installed, or fetched by apt). Both models
are trained here, in numpy: a softmax regression for the box, a network with two hidden layers for the gateway. The last
5,000 training images choose temperature and threshold; all 10,000 test images judge. A real gateway process computes
the large model, behind an emulated link.
"""

import argparse
import gzip
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import hybrid
from benchmarks.report import Bar, Record, publish, spread
from devices.shape import Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.calibration.intervals import paired_drop
from hybrid.cascade.build import write_artifact
from hybrid.cascade.fit import Graded, fit
from tests.live_gateway import LiveGateway

INSTALLED: Final = Path("/usr/share/datasets/fashion-mnist")
ROOT: Final = Path(__file__).resolve().parent.parent
N_CALIBRATION: Final = 5000
DROPS: Final = (0.005, 0.01, 0.02)
N_EPOCHS: Final = 8
N_TIMED: Final = 300
BATCH: Final = 250
RATE_BPS, RTT_S = 10e6, 0.04
METHOD: Final = (
    "Fashion-MNIST, 10,000 test images; models trained in the script (softmax regression, and a 784-512-256-10"
    f" network); temperature and threshold from {N_CALIBRATION:,} other images. Accuracy in %; lost against the large"
    " model in points, with its 95 % interval; escalated in % of the images; bytes up for each image. Milliseconds of"
    f" {N_TIMED} single requests over an emulated link of {RATE_BPS / 1e6:g} Mbit/s and {1e3 * RTT_S:g} ms round trip;"
    " the large model alone is offloaded."
)


class Data(NamedTuple):
    """Images as floats from 0 to 1, and their classes."""

    images: np.ndarray
    labels: np.ndarray


def data_folder(cache: Path) -> Path:
    """Where the data set lies: installed, or unpacked below the cache."""
    inside = cache / "fashion-mnist" / INSTALLED.relative_to("/")
    if INSTALLED.is_dir():
        return INSTALLED
    if not inside.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=cache, check=True, capture_output=True)
        package = next(cache.glob("dataset-fashion-mnist_*.deb"))
        subprocess.run(["dpkg", "-x", str(package), str(cache / "fashion-mnist")], check=True)
    return inside


def load(folder: Path, part: str) -> Data:
    """A part of the data set: `train` or `t10k`."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        return Data(images, np.frombuffer(file.read(), np.uint8, offset=8).astype(int))


def trained(data: Data, widths: list[int], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of a network with ReLU between its layers: Adam, batches of 200."""
    random = np.random.default_rng(seed)
    sizes = [784, *widths, 10]
    layers = [
        (random.standard_normal((a, b)).astype(np.float32) * np.sqrt(2.0 / a), np.zeros(b, np.float32))
        for a, b in itertools.pairwise(sizes)
    ]
    params = [array.astype(np.float32) for layer in layers for array in layer]
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    step = 0
    for epoch in range(N_EPOCHS):
        rate = 1e-3 * 0.7**epoch
        order = random.permutation(len(data.labels))
        for at in range(0, len(order), 200):
            chosen = order[at : at + 200]
            gradients = _gradients(params, data.images[chosen], data.labels[chosen])
            step += 1
            for index, gradient in enumerate(gradients):
                first[index] = 0.9 * first[index] + 0.1 * gradient
                second[index] = 0.999 * second[index] + 0.001 * gradient**2
                scaled = first[index] / (1 - 0.9**step) / (np.sqrt(second[index] / (1 - 0.999**step)) + 1e-8)
                params[index] = (params[index] - rate * scaled).astype(np.float32)
    return [(params[at], params[at + 1]) for at in range(0, len(params), 2)]


def _gradients(params: list[np.ndarray], images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    seen = [images]
    for at in range(0, len(params), 2):
        made = seen[-1] @ params[at] + params[at + 1]
        seen.append(made if at == len(params) - 2 else np.maximum(made, 0))
    powers = np.exp(seen[-1] - seen[-1].max(axis=1, keepdims=True))
    slope = powers / powers.sum(axis=1, keepdims=True)
    slope[np.arange(len(labels)), labels] -= 1
    slope /= len(labels)
    found: list[np.ndarray] = []
    for at in reversed(range(0, len(params), 2)):
        found = [seen[at // 2].T @ slope, slope.sum(axis=0), *found]
        slope = (slope @ params[at].T) * (seen[at // 2] > 0)
    return found


def write_model(layers: list[tuple[np.ndarray, np.ndarray]], path: Path) -> Path:
    """The network as an ONNX file: `image` (rows, 784) to `scores` (rows, 10)."""
    nodes, weights, name = [], [], "image"
    for at, (weight, bias) in enumerate(layers):
        is_last = at == len(layers) - 1
        made = "scores" if is_last else f"made{at}"
        nodes.append(helper.make_node("Gemm", [name, f"w{at}", f"b{at}"], [made]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [made], [f"seen{at}"]))
        weights += [numpy_helper.from_array(weight, f"w{at}"), numpy_helper.from_array(bias, f"b{at}")]
        name = f"seen{at}"
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 784])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def models(cache: Path, train: Data, seed: int) -> tuple[Path, Path]:
    """The small and the large model, trained unless an earlier run left them."""
    folder = cache / f"cascade-{seed}-{N_EPOCHS}"
    small, large = folder / "small.onnx", folder / "large.onnx"
    if not large.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(trained(train, [], seed), small)
        write_model(trained(train, [512, 256], seed), large)
    return small, large


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    """A model's scores."""
    found: np.ndarray = onnxruntime.InferenceSession(path).run(None, {"image": images})[0]
    return found


def timed(session: hybrid.InferenceSession, images: np.ndarray) -> dict[str, float]:
    """Milliseconds of single requests."""
    taken = []
    for image in images:
        began_s = time.perf_counter()
        session.run(None, {"image": image[None]})
        taken.append(1e3 * (time.perf_counter() - began_s))
    return {**spread(taken), "mean": statistics.mean(taken)}


class Tried(NamedTuple):
    """How one way did: which test images it had right, what share travelled, bytes for each, milliseconds."""

    right: np.ndarray
    escalated: float
    n_bytes: float
    ms: dict[str, float]


def row(name: str, tried: Tried, large: np.ndarray) -> list[str | float]:
    """One line of the table; `large` is what the large model has right."""
    right, ms = tried.right, tried.ms
    n_lost, n_won = int((large & ~right).sum()), int((right & ~large).sum())
    low, high = paired_drop(n_lost, n_won, len(right))
    drop = f"{100 * (n_lost - n_won) / len(right):.2f} ({100 * low:.2f} to {100 * high:.2f})"
    share = 100 * float(right.mean())
    return [name, f"{share:.2f}", drop, 100 * tried.escalated, tried.n_bytes, ms["p50"], ms["p95"], ms["mean"]]


def main() -> int:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache")
    given = parser.parse_args()
    folder = data_folder(given.cache)
    everything, test = load(folder, "train"), load(folder, "t10k")
    train = Data(everything.images[:-N_CALIBRATION], everything.labels[:-N_CALIBRATION])
    held = Data(everything.images[-N_CALIBRATION:], everything.labels[-N_CALIBRATION:])
    small, large = models(given.cache, train, given.seed)
    grades = Graded(
        scores=answers(small, held.images).astype(np.float64),
        labels=held.labels,
        large_right=answers(large, held.images).argmax(axis=1) == held.labels,
    )
    large_right = answers(large, test.images).argmax(axis=1) == test.labels
    small_right = answers(small, test.images).argmax(axis=1) == test.labels
    chosen = test.images[np.random.default_rng(given.seed).choice(len(test.images), N_TIMED, replace=False)]
    with tempfile.TemporaryDirectory() as place, LiveGateway(Path(place) / "data", "--no-announce") as gateway:
        with hybrid.InferenceSession(small, gateway=None) as session:
            tried = {"small alone": Tried(small_right, 0.0, 0.0, timed(session, chosen))}
        artifacts = [written(small, large, grades, most, Path(place)) for most in DROPS]
        gateway.push(artifacts[0], "clothes")
        with ShapedProxy(gateway.port, Shape.even(rate_bps=RATE_BPS, rtt_s=RTT_S)) as link:
            url = f"http://127.0.0.1:{link.port}"
            for most, artifact in zip(DROPS, artifacts, strict=True):
                options = hybrid.Options(max_accuracy_drop=most)
                with hybrid.InferenceSession(
                    artifact / "large.onnx", gateway=url, token=gateway.token, options=options
                ) as session:
                    tried[f"cascade, {100 * most:g} points allowed"] = cascaded(session, test, chosen)
            options = hybrid.Options(placement="offload", fallback=False, codec="none")
            with hybrid.InferenceSession(large, gateway=url, token=gateway.token, options=options) as session:
                session.prepare({"image": chosen[:1]})
                tried["large alone"] = Tried(large_right, 1.0, 4.0 * chosen.shape[1], timed(session, chosen))
    lost = [float(large_right.mean() - tried[f"cascade, {100 * most:g} points allowed"].right.mean()) for most in DROPS]
    ratio = tried[f"cascade, {100 * DROPS[1]:g} points allowed"].ms["mean"] / tried["large alone"].ms["mean"]
    return publish(
        Record(
            name="cascade",
            claim="A cascade keeps a large model's accuracy within what was allowed, and asks it seldom",
            method=METHOD,
            seed=given.seed,
            columns=("", "accuracy", "lost (95 %)", "escalated", "bytes up", "p50 ms", "p95 ms", "mean ms"),
            rows=[row(name, found, large_right) for name, found in tried.items()],
            bars=[
                *(
                    Bar(name=f"points lost where {100 * most:g} are allowed", measured=100 * drop, limit=100 * most)
                    for most, drop in zip(DROPS, lost, strict=True)
                ),
                Bar(name="mean latency over the large model's alone, 1 point allowed", measured=ratio, limit=1.0),
            ],
        )
    )


def written(small: Path, large: Path, grades: Graded, most: float, place: Path) -> Path:
    """The artifact of a cascade that may lose so much."""
    rule = fit(grades, small="small", output="scores", kind="logits", max_accuracy_drop=most)
    folder = place / f"artifact-{most}"
    write_artifact(small, large, rule, name="clothes", version=f"{most}", folder=folder)
    return folder


def cascaded(session: hybrid.InferenceSession, test: Data, chosen: np.ndarray) -> Tried:
    """All test images in batches for accuracy and bytes, some one by one for seconds; all answers are the session's."""
    assert session.prepare({}), "no gateway"
    right, n_bytes = np.zeros(len(test.labels), bool), 0
    for at in range(0, len(test.labels), BATCH):
        scores = session.run(None, {"image": test.images[at : at + BATCH]})[0]
        right[at : at + BATCH] = scores.argmax(axis=1) == test.labels[at : at + BATCH]
        assert session.report is not None
        assert session.report.fallback is None, session.report.fallback
        n_bytes += session.report.bytes_up
    escalated = n_bytes / (4 * test.images.shape[1]) / len(test.labels)
    return Tried(right, escalated, n_bytes / len(test.labels), timed(session, chosen))


if __name__ == "__main__":
    sys.exit(main())
