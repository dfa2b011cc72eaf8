"""How one candidate is made, as data: what is taken away, how it is trained, how numbers are kept."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

Precision = Literal["float32", "int8", "weights-16", "weights-8", "weights-4"]
Engine = Literal["onnxruntime", "tflite"]
Ranges = Literal["minmax", "entropy", "percentile"]
Pair = Literal["uint8", "int8"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, order=False, omit_defaults=True):
    """One candidate; equal recipes with equal seeds give equal models.

    Attributes:
        source: the model as given, or the script's student.
        pruned: by the dependency graph of the module, by error of the outputs of the graph alone, or not.
        ratio: share of channels taken away.
        multiple: to which channel counts are rounded.
        local: each group of layers loses the ratio itself; else the least important channels go, wherever they are.
        epochs: of fine-tuning with the uncompressed model as teacher; of the student's training.
        engine: that runs it.
        precision: of what is run; of TensorFlow Lite, `weights-8` is its dynamic range.
        activations, weights: the type pair of int8.
        reduce_range: weights of 7 bits, for machines whose sums saturate.
        ranges: how activations' ranges are found.
        equalized, bias_corrected: repairs of int8.
        smoothed: SmoothQuant's strength; None for none.
        n_float: so many of the most sensitive operators stay in float32.
        trained_int8: whether the rounding was trained too.
        cut: id of a cut whose head is int8 while the tail stays as it is; empty for the whole model.
    """

    source: Literal["given", "student"] = "given"
    pruned: Literal["", "module", "graph"] = ""
    ratio: float = 0.0
    multiple: int = 1
    local: bool = False
    epochs: int = 0
    engine: Engine = "onnxruntime"
    precision: Precision = "float32"
    activations: Pair = "uint8"
    weights: Pair = "int8"
    reduce_range: bool = False
    ranges: Ranges = "minmax"
    equalized: bool = False
    bias_corrected: bool = False
    smoothed: float | None = None
    n_float: int = 0
    trained_int8: Literal["", "qat", "adaround"] = ""
    cut: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of its canonical JSON."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    @property
    def float_part(self) -> "Recipe":
        """The recipe of the float32 model that this one is quantized from."""
        return Recipe(
            source=self.source,
            pruned=self.pruned,
            ratio=self.ratio,
            multiple=self.multiple,
            local=self.local,
            epochs=self.epochs,
        )

    @property
    def timed_as(self) -> "Recipe":
        """The cheapest recipe that takes the same time and bytes: values of weights and ranges change neither."""
        return msgspec.structs.replace(
            self,
            epochs=0,
            ranges="minmax",
            equalized=False,
            bias_corrected=False,
            trained_int8="",
        )

    @property
    def n_steps(self) -> int:
        """How much is done to the model beside the least; of equals the plainer one is taken."""
        done = (self.ranges != "minmax", self.equalized, self.bias_corrected, self.smoothed is not None)
        return sum(done) + self.n_float + 2 * bool(self.trained_int8) + self.epochs

    @property
    def id(self) -> str:
        """A short name that says the most of it, as a variant is called; two recipes may share it."""
        parts = []
        if self.source == "student":
            parts.append("student")
        if self.pruned:
            parts.append(f"pruned-{round(100 * self.ratio)}")
        if self.precision != "float32":
            parts.append(self.precision)
        if self.n_float:
            parts.append(f"float-{self.n_float}")
        if self.engine == "tflite":
            parts.append("tflite")
        return "-".join(parts) or "float32"

    @property
    def text(self) -> str:
        """All that is not as usual, for people."""
        words = [self.id]
        if self.precision == "int8" and self.engine == "onnxruntime":
            pair = {"uint8": "U8", "int8": "S8"}
            words.append(f"{pair[self.activations]}{pair[self.weights]}{' 7 bit' if self.reduce_range else ''}")
            words.append(self.ranges)
            words += [word for word, on in (("equalised", self.equalized), ("bias", self.bias_corrected)) if on]
            words += [f"smooth {self.smoothed:g}"] if self.smoothed is not None else []
        words += ["each group"] if self.local else []
        words += [self.trained_int8] if self.trained_int8 else []
        words += [f"{self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}"] if self.epochs else []
        words += [f"head of {self.cut}"] if self.cut else []
        return " ".join(words)


def distinct_ids(recipes: Sequence[Recipe]) -> Mapping[Recipe, str]:
    """An id for each recipe; the second of a name is called `NAME-2`, in the order given."""
    counts: dict[str, int] = {}
    ids = {}
    for recipe in recipes:
        counts[recipe.id] = counts.get(recipe.id, 0) + 1
        ids[recipe] = recipe.id if counts[recipe.id] == 1 else f"{recipe.id}-{counts[recipe.id]}"
    return ids
