"""What the demo works on: two trained models and a photo, found in installed packages without importing them."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Final

from hybrid.cli.words import MissingExtra

_DETECTOR: Final = ("rapidocr", "PP-OCRv6_det_small.onnx")
_RECOGNISER: Final = ("rapidocr", "PP-OCRv6_rec_small.onnx")
_PAGE: Final = ("scikit-image", "page.png")


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The demo's files.

    Attributes:
        detector: PP-OCRv6 text detector (ONNX, Apache-2.0, from rapidocr's wheel), its map of chances as bytes.
        recogniser: PP-OCRv6 text recogniser of the same wheel, with the arg max of each step inside the graph.
        characters: text file of the recogniser's classes, one a line.
        photo: a photograph of a printed page, from scikit-image's wheel.
    """

    detector: Path
    recogniser: Path
    characters: Path
    photo: Path


def gather(folder: Path) -> Material:
    """Finds the files, and writes what is made of them into `folder`.

    Raises:
        MissingExtra: a package of the extra `demo` is not installed.
    """
    detector, recogniser, characters = folder / "detector.onnx", folder / "recogniser.onnx", folder / "characters.txt"
    _with_byte_map(_located(*_DETECTOR), detector)
    characters.write_text(_with_arg_max(_located(*_RECOGNISER), recogniser), encoding="utf-8")
    return Material(detector=detector, recogniser=recogniser, characters=characters, photo=photo())


def photo() -> Path:
    """The photograph of a page alone; raises as `gather` does."""
    return _located(*_PAGE)


def _located(package: str, name: str) -> Path:
    try:
        found = next((file for file in files(package) or [] if file.name == name), None)
    except PackageNotFoundError as error:
        raise MissingExtra("demo", package) from error
    if found is None:
        raise MissingExtra("demo", f"{package} with {name}")
    return Path(str(found.locate()))


def _with_byte_map(source: Path, target: Path) -> None:
    """Writes the detector with its map of chances as bytes, 0 to 255, a quarter of what it puts out as shipped."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(source)
    graph = model.graph
    chances = graph.output[0].name
    scale = helper.make_tensor("demo_scale", TensorProto.FLOAT, [], [255.0])
    graph.initializer.append(scale)
    graph.node.append(helper.make_node("Mul", [chances, "demo_scale"], ["demo_scaled"], name="demo_mul"))
    graph.node.append(helper.make_node("Cast", ["demo_scaled"], ["map"], name="demo_cast", to=TensorProto.UINT8))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("map", TensorProto.UINT8, ["n", 1, "h", "w"]))
    onnx.save(model, target)


def _with_arg_max(source: Path, target: Path) -> str:
    """Writes the recogniser with the decision of each step as its outputs; returns its character list.

    As shipped it puts out 18,710 chances a step, 8 MB a line: nobody who exports it for a link would leave that so.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(source)
    graph = model.graph
    chances = graph.output[0].name
    graph.node.append(helper.make_node("ArgMax", [chances], ["best"], name="demo_best", axis=2, keepdims=0))
    graph.node.append(helper.make_node("ReduceMax", [chances], ["chance"], name="demo_chance", axes=[2], keepdims=0))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["n", "t"]))
    graph.output.append(helper.make_tensor_value_info("chance", TensorProto.FLOAT, ["n", "t"]))
    characters = next((entry.value for entry in model.metadata_props if entry.key == "character"), "")
    onnx.save(model, target)
    return characters
