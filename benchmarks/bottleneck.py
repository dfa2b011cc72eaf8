"""What a learned bottleneck sends from a cut, beside pictures of the input that are answered as well."""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import nn

from benchmarks.bottleneck_parts import photos
from benchmarks.bottleneck_parts.photos import answers, session
from benchmarks.bottleneck_parts.pictures import Point, bytes_for, curves
from benchmarks.compression_parts import tasks
from benchmarks.report import Bar, Record, publish
from compression.bottleneck.bottleneck_recipe import BottleneckRecipe, BottleneckShape
from compression.bottleneck.graph import with_batch
from compression.bottleneck.submodules import replaced
from compression.bottleneck.training import Bottleneck, train_bottlenecks
from compression.training.exporting import export
from compression.training.training_set import TrainingSet

SEEDS: Final = (0, 1, 2)
N_TIMED: Final = 60
BATCH: Final = 100
N_CLOTHES, N_COUNTED, N_PICTURES = 12_000, 1000, 1000
N_CROPS, N_TEST_CROPS = 1000, 400
STEPS: Final = (1.0, 1.5)
STAGES: Final = ("stage1", "stage2", "stage3")
CLOTHES: Final = {
    "stage2": (BottleneckShape(channels=12, stride=2, width=48, blocks=1), 0.22),
    "stage3": (BottleneckShape(channels=16, width=48, blocks=1), 0.25),
}
PHOTOS: Final = {
    "block4.sum": (BottleneckShape(channels=24, stride=2, width=64, blocks=2), 0.3, 2),
    "block10.sum": (BottleneckShape(channels=32, width=64, blocks=2), 0.45, 4),
    "block14.sum": (BottleneckShape(channels=32, width=96, blocks=2), 0.6, 12),
}
METHOD: Final = (
    f"Fashion-MNIST: the net of benchmarks/compression_parts (three trained with seeds {', '.join(map(str, SEEDS))}), a"
    f" bottleneck each on {N_CLOTHES:,} training images; points lost on the 10,000 test images, payloads of the first"
    f" {N_COUNTED:,}; medians of the seeds. Photos: EfficientNet-Lite0 with its ImageNet weights, one seed a cut,"
    f" {N_CROPS:,} crops of one half of {len(photos.NAMES)} photos, judged by {N_TEST_CROPS} crops of the other halves,"
    f" those where it gives a class at least {photos.LEAST_SHARE:g}; that is right. Two rows a cut: one training, two"
    " rounding steps. WebP, JPEG: bytes of the input at the same accuracy (straight lines between qualities; –: no"
    f" quality reaches it); encoder: median of {N_TIMED} runs over the head's, in turns, one thread; less a call: each"
    " less what an empty call of the engine takes, since a head of 50 µs is not ten calls long; coded: a quarter of"
    " the latents took the entropy coder less, in numpy and plain Python."
)


class Row(NamedTuple):
    """One cut, one step: medians, where there are several seeds.

    Attributes:
        n_elements: of the crossing tensor.
        n_bytes: mean payload.
        lost: points of accuracy.
        sent: bytes of the input at the same accuracy, by form; infinite where no quality reaches it.
        encoder_ratio: the encoder's time over the head's.
        net_ratio: the same, each less what an empty call of the engine takes.
        coding_s: what the entropy coder takes for one latent, the lower quartile of many.
    """

    n_elements: int
    n_bytes: float
    lost: float
    sent: dict[str, float]
    encoder_ratio: float
    net_ratio: float
    coding_s: float


class Judge(NamedTuple):
    """What a bottleneck at a cut is judged by.

    Attributes:
        module: gives scores; its submodule `at` is the cut.
        head: engine that makes the crossing tensor.
        inputs: of the module.
        labels: what is right.
        points: of the pictures, by form.
        offset: accuracy on all inputs less that on those that were sent as pictures.
    """

    module: nn.Module
    at: str
    head: onnxruntime.InferenceSession
    head_input: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray
    points: dict[str, list[Point]]
    offset: float = 0.0

    def row(self, made: Bottleneck) -> Row:
        """Everything of one bottleneck."""
        before = classes_of(self.module, self.inputs) == self.labels
        after, n_bytes, coding_s = self._asked(made)
        accuracy = float((after == self.labels).mean())
        sizes = made.encoder.graph.input[0].type.tensor_type.shape.dim
        sent = {name: bytes_for(points, accuracy - self.offset) for name, points in self.points.items()}
        ratio, net_ratio = self._ratios(made)
        return Row(
            n_elements=int(np.prod([one.dim_value for one in sizes])),
            n_bytes=n_bytes,
            lost=100 * (float(before.mean()) - accuracy),
            sent={name: float("inf") if n is None else n for name, n in sent.items()},
            encoder_ratio=ratio,
            net_ratio=net_ratio,
            coding_s=coding_s,
        )

    def _asked(self, made: Bottleneck) -> tuple[np.ndarray, float, float]:
        """First classes with the files of a bottleneck in place; mean bytes of some payloads and the seconds of one."""
        encoder, decoder = (session(with_batch(one, "n")) for one in (made.encoder, made.decoder))
        classes: list[np.ndarray] = []
        n_bytes: list[int] = []
        taken: list[float] = []
        with torch.no_grad(), replaced(self.module, self.at) as place:
            for start in range(0, len(self.inputs), BATCH):
                batch = torch.from_numpy(self.inputs[start : start + BATCH])
                place.through = None
                self.module(batch)
                own = place.seen()
                assert own is not None
                latent = answers(encoder, own.numpy(), BATCH)
                counted = latent if len(n_bytes) < N_COUNTED else latent[:0]
                for one in counted:
                    began_s = time.perf_counter()
                    n_bytes.append(len(made.prior.encode(one[None])))
                    taken.append(time.perf_counter() - began_s)
                back = torch.from_numpy(answers(decoder, latent, BATCH))
                place.through = lambda _own, back=back: back
                classes.append(self.module(batch).argmax(1).numpy())
        return np.concatenate(classes), statistics.mean(n_bytes), statistics.quantiles(taken)[0]

    def _ratios(self, made: Bottleneck) -> tuple[float, float]:
        """Median seconds of the encoder over those of the head, in turns; as they are, and each less an empty call."""
        encoder, empty = session(made.encoder), session(nothing())
        (crossing,) = self.head.run(None, {self.head.get_inputs()[0].name: self.head_input})
        calls = [(encoder, crossing), (self.head, self.head_input), (empty, np.zeros(1, np.float32))]
        taken: list[list[float]] = [[], [], []]
        for _ in range(N_TIMED):
            for (engine, value), place in zip(calls, taken, strict=True):
                feeds = {engine.get_inputs()[0].name: value}
                began_s = time.perf_counter()
                engine.run(None, feeds)
                place.append(time.perf_counter() - began_s)
        encoder_s, head_s, empty_s = (statistics.median(one) for one in taken)
        return encoder_s / head_s, (encoder_s - empty_s) / (head_s - empty_s)


def nothing() -> onnx.ModelProto:
    """A graph that costs no more than the call of it."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def classes_of(module: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """First classes."""
    with torch.no_grad():
        found = [
            module(torch.from_numpy(inputs[at : at + BATCH])).argmax(1).numpy() for at in range(0, len(inputs), BATCH)
        ]
    return np.concatenate(found)


def clothes(cuts: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Row]]:
    """Medians of the seeds for each cut and step."""
    task = tasks.fashion()
    raw = np.round(np.clip(task.test_images[:N_PICTURES, 0] * 0.353 + 0.286, 0, 1) * 255).astype(np.uint8)
    found: dict[str, list[list[Row]]] = {cut: [] for cut in cuts}
    for seed in seeds:
        net = tasks.trained(task, seed)
        right = classes_of(net, task.test_images) == task.test_labels
        points = curves(raw, partial(right_clothes, net, task.test_labels))
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(task.images), N_CLOTHES, replace=False)
        given = TrainingSet(module=net, inputs={"image": task.images[chosen]}, labels=task.labels[chosen])
        for cut in cuts:
            shape, bits = CLOTHES[cut]
            stages = STAGES[: STAGES.index(cut) + 1]
            head = nn.Sequential(*(getattr(net, name) for name in stages))
            judge = Judge(
                module=net,
                at=cut,
                head=session(export(head, {"image": task.images[:2]})),
                head_input=task.test_images[:1],
                inputs=task.test_images,
                labels=task.test_labels,
                points=points,
                offset=float(right.mean() - right[:N_PICTURES].mean()),
            )
            recipe = BottleneckRecipe(
                bits_per_element=bits, epochs=2, decoder_epochs=1, learning_rate=4e-3, steps=STEPS
            )
            made = train_bottlenecks(given, cut, shape=shape, recipe=recipe, seed=seed)
            found[cut].append(told(f"clothes {cut} {seed}", [judge.row(one) for one in made]))
    return {cut: [median([rows[at] for rows in each]) for at in range(len(STEPS))] for cut, each in found.items()}


def right_clothes(net: nn.Module, labels: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Which grey pictures are answered right."""
    images = (pictures[:, None].astype(np.float32) / 255 - np.float32(0.286)) / np.float32(0.353)
    found: np.ndarray = classes_of(net, images) == labels[: len(pictures)]
    return found


def crops(cuts: Sequence[str]) -> dict[str, list[Row]]:
    """One training for each cut of the net at 224x224."""
    model = photos.net()
    whole = session(model)
    test = photos.crops(N_TEST_CROPS, 1, first_half=False)
    scores = torch.from_numpy(answers(whole, photos.as_input(test)))
    sure = (scores.softmax(1).max(1).values >= photos.LEAST_SHARE).numpy()
    test, labels = test[sure], scores.argmax(1).numpy()[sure]
    points = curves(test, lambda seen: answers(whole, photos.as_input(seen)).argmax(1) == labels)
    images, test_images = photos.as_input(photos.crops(N_CROPS, 2, first_half=True)), photos.as_input(test)
    found = {}
    for cut in cuts:
        shape, bits, epochs = PHOTOS[cut]
        head = session(photos.head(model, cut))
        judge = Judge(
            module=photos.Tail(model, cut).eval(),
            at="cut",
            head=head,
            head_input=test_images[:1],
            inputs=answers(head, test_images),
            labels=labels,
            points=points,
        )
        recipe = BottleneckRecipe(
            bits_per_element=bits,
            epochs=epochs,
            decoder_epochs=max(1, epochs // 3),
            batch=32,
            learning_rate=4e-3,
            steps=STEPS,
        )
        given = TrainingSet(module=judge.module, inputs={"crossing": answers(head, images)})
        made = train_bottlenecks(given, "cut", shape=shape, recipe=recipe)
        found[cut] = told(f"photos {cut} ({len(labels)} crops)", [judge.row(one) for one in made])
    return found


def told(what: str, rows: list[Row]) -> list[Row]:
    """The same rows, printed."""
    for row in rows:
        print(what, row, file=sys.stderr, flush=True)
    return rows


def median(rows: Sequence[Row]) -> Row:
    """The median of each number."""
    return Row(
        n_elements=rows[0].n_elements,
        n_bytes=statistics.median(row.n_bytes for row in rows),
        lost=statistics.median(row.lost for row in rows),
        sent={name: statistics.median(row.sent[name] for row in rows) for name in rows[0].sent},
        encoder_ratio=statistics.median(row.encoder_ratio for row in rows),
        net_ratio=statistics.median(row.net_ratio for row in rows),
        coding_s=statistics.median(row.coding_s for row in rows),
    )


def cells(name: str, row: Row) -> list[str | float]:
    """One line of the table."""
    sent = ["–" if np.isinf(n) else n for n in row.sent.values()]
    bits = 8 * row.n_bytes / row.n_elements
    times: list[str | float] = [row.encoder_ratio, row.net_ratio, f"{1e3 * row.coding_s:.2f}"]
    return [name, f"{row.n_elements:,}", row.n_bytes, bits, f"{row.lost:.2f}", *sent, *times]


def main() -> int:
    """Train, judge, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clothes", nargs="*", default=list(CLOTHES), choices=list(CLOTHES))
    parser.add_argument("--photos", nargs="*", default=list(PHOTOS), choices=list(PHOTOS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS), help="of the nets for clothes")
    given = parser.parse_args()
    rows = (
        {f"clothes, {cut}": each for cut, each in clothes(given.clothes, given.seeds).items()} if given.clothes else {}
    )
    rows |= {f"photos, {cut}": each for cut, each in crops(given.photos).items()} if given.photos else {}
    forms = list(next(iter(rows.values()))[0].sent)
    everything = [row for each in rows.values() for row in each]
    if len(rows) < len(CLOTHES) + len(PHOTOS) or len(given.seeds) < len(SEEDS):
        return 0  # a part of it is no record
    return publish(
        Record(
            name="bottleneck",
            claim="A learned bottleneck sends fewer bytes than the input as a picture that is answered as well",
            method=METHOD,
            seed=SEEDS[0],
            columns=(
                "cut",
                "elements",
                "bytes",
                "bits / element",
                "points lost",
                *forms,
                "encoder / head",
                "less a call",
                "coded in ms",
            ),
            rows=[cells(name, row) for name, each in rows.items() for row in each],
            bars=[
                Bar(
                    name="bits per element, the most of all rows",
                    measured=max(8 * row.n_bytes / row.n_elements for row in everything),
                    limit=1.0,
                ),
                Bar(
                    name="encoder over head, the most of all rows",
                    measured=max(row.encoder_ratio for row in everything),
                    limit=0.1,
                ),
                *(
                    Bar(
                        name=f"bytes over the best picture's, {net}, the best cut",
                        measured=min(row.n_bytes / min(row.sent.values()) for row in each),
                        limit=1.0,
                    )
                    for net in ("clothes", "photos")
                    if (each := [row for name, many in rows.items() if name.startswith(net) for row in many])
                ),
            ],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
