"""From a recipe to a model file: what is taken away, trained and quantized, in that order, each part kept once.

Design: the ground floor takes and gives protos; here they become files of the journal. A part that cannot be had (no
training set, no channel that can go, a type that an operator lacks) raises a `CompressionError`, which costs the
candidate and is its reason in the report, never the search.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from compression.errors import CompressionError, NotPrunable, TrainingNeeded
from hybrid.calibration.samples import Feeds
from hybrid.compress.journal import Journal, Kept
from hybrid.compress.making.lite_heads import headed_files
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.making.trainable_heads import around_head, body_alone, filed, nodes_of_head
from hybrid.compress.material import Material
from hybrid.errors import ModelUntrainable

if TYPE_CHECKING:
    from onnx import ModelProto

    from compression.pruning.without_source import PrunedGraph
    from compression.quantization.recipe import Int8Recipe, Quantized
    from hybrid.compress.making.trained import Trainer

FILES: Final = {"onnxruntime": "model.onnx", "tflite": "model.tflite"}
"""What a model's file is called, by its engine."""

N_QUICK: Final = 16
"""Samples that sensitivities are found with, and that a model is calibrated with which is only timed."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a model that was made.

    Attributes:
        notes: remarks of those who made it.
        n_int8, n_float: its products by kind of number.
        feature_tensor: on which its trainable head stands, where that lies in a file of its own.
    """

    notes: tuple[str, ...] = ()
    n_int8: int = 0
    n_float: int = 0
    feature_tensor: str = ""


class Sensitive(msgspec.Struct, frozen=True, kw_only=True):
    """An operator, and how far the outputs move where it alone is int8."""

    node: str
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Makes the models of one job.

    Attributes:
        path: the uncompressed model.
        material: samples.
        journal: where what is made is kept.
        trainer: with a training script.
        saving: what pruning of graphs takes away first: multiplications, or weights.
        head: the tensor that the trainable head stands on, which stays in float and apart; empty for none.
        module_head: the same as exports of the script's module name it; empty where it is not in them.
        stage: told what is done.
    """

    path: Path
    material: Material
    journal: Journal
    trainer: "Trainer | None" = None
    saving: Literal["macs", "weights"] = "macs"
    head: str = ""
    module_head: str = ""
    stage: Callable[[str], None] = lambda _text: None

    def model(self, recipe: Recipe) -> tuple[Path, Made]:
        """The model file of a recipe, and what is told of it.

        Raises:
            CompressionError: it cannot be made; the message says why.
            DiskFull, StorageError: there is no room for it.
        """
        kept = self.journal.find(self._key(recipe))
        if kept is None:
            kept = self._made(recipe)
        made = msgspec.json.decode(kept.content, type=Made)
        return kept.path(FILES["onnxruntime" if made.feature_tensor else recipe.engine]), made

    def sensitivities(self, recipe: Recipe) -> list[Sensitive]:
        """Operators of the uncompressed model, the most sensitive to int8 first; raises `CompressionError`."""
        from compression.quantization.sensitivity import sensitivities

        plain = Recipe(
            precision="int8",
            activations=recipe.activations,
            weights=recipe.weights,
            reduce_range=recipe.reduce_range,
            ranges=recipe.ranges,
        )
        kept = self.journal.find(["sensitivities", plain])
        if kept is None:
            self.stage("sensitivities")
            some = self.material.calibrate[:N_QUICK]
            whole = body_alone(self._float(Recipe()), self.head)
            found = sensitivities(whole, some, self.int8_recipe(plain))
            told = [Sensitive(node=each.node, distance=float(each.distance)) for each in found]
            kept = self.journal.keep(["sensitivities", plain], sorted(told, key=lambda each: -each.distance))
        return msgspec.json.decode(kept.content, type=list[Sensitive])

    def int8_recipe(self, recipe: Recipe) -> "Int8Recipe":
        """What quantization is told."""
        from compression.quantization.recipe import Int8Recipe

        kept = [each.node for each in self.sensitivities(recipe)[: recipe.n_float]] if recipe.n_float else []
        return Int8Recipe(
            activations=recipe.activations,
            weights=recipe.weights,
            reduce_range=recipe.reduce_range,
            ranges=recipe.ranges,
            equalized=recipe.equalized,
            bias_corrected=recipe.bias_corrected,
            smoothed=recipe.smoothed,
            kept_float=tuple(kept),
        )

    def kept(self, recipe: Recipe) -> Made | None:
        """What is told of a recipe's model, where it was made."""
        found = self.journal.find(self._key(recipe))
        return msgspec.json.decode(found.content, type=Made) if found is not None else None

    def widths(self, recipe: Recipe) -> str:
        """What the layers of a float model are as wide as; empty where that is what the uncompressed model's are.

        Raises:
            CompressionError: it cannot be made.
        """
        mine, whole = _shapes(self.model(recipe)[0]), _shapes(self.path)
        return "" if sorted(mine) == sorted(whole) else " ".join("x".join(map(str, shape)) for shape in mine)

    def _key(self, recipe: Recipe) -> object:
        return ["model", recipe, self.saving if recipe.pruned == "graph" else ""]

    def _made(self, recipe: Recipe) -> Kept:
        self.stage(recipe.text)
        if recipe.engine == "tflite":
            return self._lite(recipe)
        if recipe.trained_int8:
            from compression.quantization.static import quantize
            from hybrid.compress.making.trained import quantizer

            int8, samples = self.int8_recipe(recipe), self._samples(recipe)
            model, ranges, notes = self._needed().rounded(recipe, quantizer(samples, int8, self.module_head))
            int8 = replace(int8, kept_float=nodes_of_head(model, self.module_head)) if self.module_head else int8
            found = quantize(model, samples, int8, **({"ranges": ranges} if ranges else {}))
            return self._kept(recipe, found.model, _told(found, notes))
        if recipe.precision == "int8":
            return self._quantized(recipe)
        if recipe.precision != "float32":
            from compression.quantization.weights_only import half_weights, weights_only

            whole = self._float(recipe.float_part)
            bits = {"weights-8": 8, "weights-4": 4}.get(recipe.precision)
            small = around_head(
                whole,
                self._head(recipe),
                lambda body: half_weights(body) if bits is None else weights_only(body, bits=bits),
            )
            return self._kept(recipe, small, Made())
        return self._reduced(recipe)

    def _quantized(self, recipe: Recipe) -> Kept:
        """Int8 by samples alone; a trainable head stays as it is."""
        from compression.quantization.static import quantize

        found: list[Quantized] = []

        def small(body: "ModelProto") -> "ModelProto":
            found.append(quantize(body, self._samples(recipe), self.int8_recipe(recipe)))
            return found[0].model

        made = around_head(self._float(recipe.float_part), self._head(recipe), small)
        return self._kept(recipe, made, _told(found[0], ()))

    def _lite(self, recipe: Recipe) -> Kept:
        """TensorFlow Lite, from the module: int8 with ranges of the samples, dynamic range, or as it is.

        With a trainable head it is the body that becomes such a file, where it can; the head stays as its ONNX model's.
        """
        from compression.tflite.int8 import quantized

        part = recipe.float_part
        twin, feature_tensor = self._twin(part)
        key = ["lite", part, feature_tensor] if feature_tensor else ["lite", part]
        kept = self.journal.find(key)
        if kept is None:
            kept = self.journal.keep(key, *self._lite_float(part, twin, feature_tensor))
        made = msgspec.json.decode(kept.content, type=Made)
        plain = kept.path(FILES["tflite"]).read_bytes()
        if recipe.precision != "float32":
            plain = quantized(plain, self._samples(recipe), "int8" if recipe.precision == "int8" else "dynamic")
        if not made.feature_tensor:
            return self.journal.keep(self._key(recipe), made, {FILES["tflite"]: plain})
        files = headed_files(plain, twin, made.feature_tensor, FILES["onnxruntime"])
        return self.journal.keep(self._key(recipe), made, files)

    def _lite_float(self, part: Recipe, twin: Path, feature_tensor: str) -> tuple[Made, dict[str, bytes | Path]]:
        """The body of the twin, in float, where it has a head apart and that can be had; else the whole module."""
        notes: tuple[str, ...] = ()
        if feature_tensor:
            try:
                written, told = self._needed().lite_body(part, twin, feature_tensor, self.material.feeds)
            except (CompressionError, ModelUntrainable) as exc:
                notes = (f"its head cannot learn in TensorFlow Lite: {exc}",)
            else:
                return Made(notes=told, feature_tensor=feature_tensor), {FILES["tflite"]: written}
        written, told = self._needed().lite(part, self.material.feeds[0])
        return Made(notes=(*told, *notes)), {FILES["tflite"]: written}

    def _twin(self, part: Recipe) -> tuple[Path, str]:
        """The ONNX model of a float recipe, and what its head stands on; empty where it has none apart."""
        if not self.head:
            return self.path, ""
        if part == Recipe():
            return self.path, self.head
        path, made = self.model(part)
        return path, made.feature_tensor

    def _reduced(self, recipe: Recipe) -> Kept:
        """A float32 model with channels taken away, or a student."""
        if recipe.pruned == "graph":
            from compression.pruning.without_source import prune_graph

            found: list[PrunedGraph] = []

            def narrow(body: "ModelProto") -> "ModelProto":
                samples, local = self._samples(recipe), recipe.local
                found.append(prune_graph(body, samples, recipe.ratio, recipe.multiple, local=local, saving=self.saving))
                return found[0].model

            made = around_head(self._float(Recipe()), self.head, narrow)
            return self._kept(recipe, made, Made(notes=(_gone(found[0]), *_left(found[0].left))))
        if not recipe.pruned and recipe.source == "given":
            raise NotPrunable("the uncompressed model is no candidate")
        proto, notes = self._needed().reduced(recipe)
        return self._kept(recipe, proto, Made(notes=notes))

    def _float(self, recipe: Recipe) -> "ModelProto":
        """The float32 model that others are made from; the given one for a recipe that changes nothing."""
        import onnx

        return onnx.load(self.path if recipe == Recipe() else self.model(recipe)[0])

    def _samples(self, recipe: Recipe) -> Sequence[Feeds]:
        """All of the calibrating part; a few for what is pruned and not trained, which is only timed."""
        found = self.material.calibrate
        is_only_timed = recipe.pruned == "module" and not recipe.epochs
        return found[:N_QUICK] if is_only_timed else found

    def _head(self, recipe: Recipe) -> str:
        """The tensor that a recipe's head stands on, as the graph that it is made of names it."""
        is_of_module = recipe.pruned == "module" or recipe.source == "student" or bool(recipe.trained_int8)
        return self.module_head if is_of_module else self.head

    def _needed(self) -> "Trainer":
        if self.trainer is None:
            raise TrainingNeeded("this takes a training set; give --train-script")
        return self.trainer

    def _kept(self, recipe: Recipe, proto: "ModelProto", made: Made) -> Kept:
        apart = filed(proto, self._head(recipe) or self.head)
        told = msgspec.structs.replace(
            made, feature_tensor=apart.feature_tensor, notes=(*made.notes, *([apart.note] if apart.note else []))
        )
        return self.journal.keep(self._key(recipe), told, {FILES["onnxruntime"]: apart.content, **apart.head_files})


def _told(found: "Quantized", notes: Sequence[str]) -> Made:
    return Made(notes=(*notes, *found.notes), n_int8=found.n_int8, n_float=found.n_float)


def _shapes(path: Path) -> list[tuple[int, ...]]:
    """Of all weights of two axes or more, in the graph's order; which way round one lies is no matter of its width."""
    import onnx

    weights = onnx.load(path, load_external_data=False).graph.initializer
    return [tuple(sorted(one.dims)) for one in weights if one.data_type == one.FLOAT and len(one.dims) > 1]


def _gone(found: "PrunedGraph") -> str:
    return f"{found.ratio:.0%} of the channels gone, {found.macs_ratio:.0%} of the products left"


def _left(left: object) -> tuple[str, ...]:
    """Layers that could not be pruned, and why, as remarks."""
    pairs = list(left) if isinstance(left, Sequence) else []
    return tuple(f"{name} stays whole: {reason}" for name, reason in pairs)
