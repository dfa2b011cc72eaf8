"""Heads that learn: their float weights in a file of their own, or a small update of low rank beside them.

Design: what can learn lies in external data of one file, everything else stays inside the model, byte for byte, however
often the head learns. The head is what stands on the feature tensor: all nodes that it reaches. A low rank update
(A, then B, added to what a frozen product answers) begins as nothing: B is zero.

Source: Hu et al.: LoRA: Low-rank adaptation of large language models, 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, NoReturn

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from compression.errors import NotTrainable

HEAD_FILE: Final = "head.bin"
"""How the file of what can learn is called; it lies beside the model."""

_INTEGER: Final = ("ConvInteger", "MatMulInteger", "MatMulNBits")
_ROUNDING: Final = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS: Final = ("Gemm", "MatMul")
_LEARNING: Final = (*_PRODUCTS, "Conv", "ConvTranspose")
"""Without one of these on it, a tensor carries nothing that is worth learning."""

_UPDATES: Final = ("/lora_a", "/lora_b")
"""How the tensors of an update of low rank end; where a head has such, all else of it stays as it is."""

_KEEP_FLOAT: Final = "quantize the model again and keep head_nodes(model, feature_tensor) float"
_KEEP_WHOLE: Final = "let the float model learn, and make int8 of what was learned with `hybrid compress`"
_STAYS: Final = {
    "BatchNormalization": (3, 4), "Clip": (1, 2), "Pad": (2,), "Pow": (1,), "Resize": (1, 2), "Upsample": (1,),
}  # fmt: skip
"""Inputs that no gradient reaches, though they are float: means and variances of normalisation, bounds, sizes."""

_NEAR: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SeparatedHead:
    """A model whose head lies in a file of its own.

    Attributes:
        model: names `file` as external data of what can learn; needs it beside itself.
        file: its name.
        content: its bytes: float32, little-endian, each tensor at the offset that the model says.
        tensors: names of what can learn, in the file's order.
        feature_tensor: on which the head stands.
        nodes: of the head.
    """

    model: onnx.ModelProto
    file: str
    content: bytes
    tensors: tuple[str, ...]
    feature_tensor: str
    nodes: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """What an update of the head weighs, as it lies in the file."""
        return len(self.content)

    def arrays(self) -> dict[str, np.ndarray]:
        """What can learn, by name."""
        return unpacked(self.model, self.content)


def unpacked(model: onnx.ModelProto, content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a head's file, by name.

    Raises:
        NotTrainable: the file has not the size that the model says.
    """
    places = _places(model)
    n_bytes = max((offset + length for _, offset, length in places), default=0)
    if n_bytes != len(content):
        raise NotTrainable(f"the head's file has {len(content)} bytes, the model says {n_bytes}; it is another one's")
    return {
        tensor.name: np.frombuffer(content, "<f4", length // 4, offset).reshape(tensor.dims)
        for tensor, offset, length in places
    }


def packed(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file of a head that has learned, from all its tensors by name.

    Raises:
        NotTrainable: a tensor that is missing, too many, or of another shape.
    """
    places = _places(model)
    wanted = {tensor.name: tuple(tensor.dims) for tensor, _, _ in places}
    seen = {name: tuple(array.shape) for name, array in arrays.items()}
    if seen != wanted:
        raise NotTrainable(f"the head has the tensors {wanted}, these are {seen}; hand over each of them")
    content = bytearray(max((offset + length for _, offset, length in places), default=0))
    for tensor, offset, length in places:
        content[offset : offset + length] = np.ascontiguousarray(arrays[tensor.name], "<f4").tobytes()
    return bytes(content)


def _places(model: onnx.ModelProto) -> list[tuple[TensorProto, int, int]]:
    places = []
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            said = {entry.key: entry.value for entry in tensor.external_data}
            places.append((tensor, int(said["offset"]), int(said["length"])))
    return places


def head_nodes(model: onnx.ModelProto, feature_tensor: str) -> tuple[str, ...]:
    """Names of the nodes behind a tensor: a quantizer that keeps them float leaves the head trainable.

    Raises:
        NotTrainable: no such tensor, nothing or everything stands on it, or a node of the head has no name.
    """
    names = tuple(node.name for node in _head(model, feature_tensor))
    if not all(names):
        raise NotTrainable("a node of the head has no name; name all nodes (the exporter and the quantizer do)")
    return names


@dataclass(frozen=True, slots=True)
class HeadParts:
    """The nodes of a model on both sides of a feature tensor, in the graph's order.

    Attributes:
        head: what stands on the tensor.
        head_and_constants: the same, with the nodes that make constants for it.
        body: all that is not of the head; a node that makes a constant for both is in both.
    """

    head: tuple[onnx.NodeProto, ...]
    head_and_constants: tuple[onnx.NodeProto, ...]
    body: tuple[onnx.NodeProto, ...]


def head_parts(model: onnx.ModelProto, feature_tensor: str) -> HeadParts:
    """Which nodes are of the head, and which of the body; raises `NotTrainable` as `head_nodes` does."""
    head = _head(model, feature_tensor)
    of_head = {name for node in head for name in node.output}
    alone = {name for node in _body(model, head) for name in node.output}
    both = [node for node in model.graph.node if not of_head.intersection(node.output)]
    needed = {name for node in both if alone.intersection(node.output) for name in node.input}
    needed |= {value.name for value in model.graph.output}
    for node in reversed(both):  # constants of the head that the body, or an output, reads too
        if needed.intersection(node.output):
            needed.update(node.input)
    return HeadParts(
        head=tuple(head),
        head_and_constants=tuple(node for node in model.graph.node if not alone.intersection(node.output)),
        body=tuple(node for node in both if alone.intersection(node.output) or needed.intersection(node.output)),
    )


def separate_head(
    model: onnx.ModelProto, feature_tensor: str, *, file: str = HEAD_FILE, is_whole: bool = False
) -> SeparatedHead:
    """Moves the float weights behind a tensor into a file of their own, of low rank updates these alone.

    Args:
        model: float, or quantized with a float head; not changed.
        feature_tensor: what the head stands on.
        file: the name of the new file, without a folder.
        is_whole: the tensor may be the model's input: then all of it learns.

    Raises:
        NotTrainable: no such tensor, a head without float weights, one that is quantized, or that shares its weights.
    """
    nodes = _reached(model, feature_tensor) if is_whole else _head(model, feature_tensor)
    _require_float(model, nodes, feature_tensor, advice=_KEEP_WHOLE if is_whole else _KEEP_FLOAT)
    weights = _weights(model, nodes)
    weights = [name for name in weights if name.endswith(_UPDATES)] or weights
    body = _body(model, nodes)
    shared = {name for node in body for name in node.input} & set(weights)
    if shared:
        raise NotTrainable(f"the head shares {', '.join(sorted(shared))} with the body; it cannot learn alone")
    if not weights:
        raise NotTrainable(f"no float weights stand on {feature_tensor!r}; choose an earlier tensor")
    if not any(node.op_type in _LEARNING for node in nodes):
        kinds = ", ".join(sorted({node.op_type for node in nodes}))
        raise NotTrainable(
            f"no product by weights stands on {feature_tensor!r}, only {kinds}; choose an earlier tensor"
        )
    return _separated(model, weights, feature_tensor, nodes, file)


def low_rank_head(
    model: onnx.ModelProto, feature_tensor: str, rank: int, *, seed: int = 0, file: str = HEAD_FILE
) -> SeparatedHead:
    """Puts an update of low rank beside each product of the head; it alone can learn, in a file of its own.

    The model computes the same until it has learned.

    Args:
        model: as `separate_head` has it; the head itself may be quantized, it is frozen.
        feature_tensor: what the head stands on.
        rank: columns of A, rows of B.
        seed: of A.
        file: as `separate_head` has it.

    Raises:
        NotTrainable: no such tensor, no product with a constant weight, or a rank that makes nothing smaller.
    """
    if rank < 1:
        raise NotTrainable(f"a rank of {rank}; give 1 or more")
    nodes = _head(model, feature_tensor)
    if any(name.endswith(_UPDATES) for node in nodes for name in node.input):
        raise NotTrainable(
            f"the head behind {feature_tensor!r} has updates of low rank already; take the model that it was made of"
        )
    made = onnx.ModelProto()
    made.CopyFrom(model)
    chance = np.random.default_rng(seed)
    names: list[str] = []
    for node in nodes:
        sizes = _sizes(model, node)
        if sizes is not None and rank * sum(sizes) < sizes[0] * sizes[1]:
            names += _add_update(made, node, sizes, rank, chance)
    if not names:
        _refuse_rank(made, nodes, feature_tensor, rank)
    return _separated(made, names, feature_tensor, _head(made, feature_tensor), file)


def _refuse_rank(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], feature_tensor: str, rank: int) -> NoReturn:
    sizes = [found for node in nodes if (found := _sizes(model, node)) is not None]
    if not sizes:
        kinds = ", ".join(sorted({node.op_type for node in nodes}))
        raise NotTrainable(
            f"no product by a constant matrix stands on {feature_tensor!r}, only {kinds}; choose another tensor, or let"
            " the head's own weights learn, without a rank"
        )
    rows, columns = max(sizes, key=lambda size: size[0] * size[1])
    most = (rows * columns - 1) // (rows + columns)
    advice = f"choose a rank of at most {most}, or let" if most else "let"
    raise NotTrainable(
        f"no product behind {feature_tensor!r} becomes smaller at rank {rank}: the largest is {rows} x {columns};"
        f" {advice} the head's own weights learn, without a rank"
    )


def _reached(model: onnx.ModelProto, feature_tensor: str) -> list[onnx.NodeProto]:
    """The nodes that a tensor reaches."""
    reached, n_reached = {feature_tensor}, 0
    while n_reached != len(reached):  # quantizers leave nodes in another order than that of computation
        n_reached = len(reached)
        for node in model.graph.node:
            if not reached.isdisjoint(node.input):
                reached.update(node.output)
    return [node for node in model.graph.node if not reached.isdisjoint(node.input)]


def _head(model: onnx.ModelProto, feature_tensor: str) -> list[onnx.NodeProto]:
    known = {value.name for value in model.graph.input} | {name for node in model.graph.node for name in node.output}
    if feature_tensor not in known:
        near = get_close_matches(feature_tensor, sorted(filter(None, known)), 5, _NEAR)
        some = ", ".join(near or sorted(filter(None, known))[:8])
        raise NotTrainable(f"there is no tensor {feature_tensor!r}; {'near it' if near else 'the model has'} {some}, …")
    nodes = _reached(model, feature_tensor)
    made = {name for node in nodes for name in node.output}
    if not made.intersection(value.name for value in model.graph.output):
        raise NotTrainable(f"nothing stands on {feature_tensor!r}; choose a tensor before the outputs")
    if not _has_body(model, nodes):
        raise NotTrainable(
            f"the whole model stands on {feature_tensor!r}; choose a tensor behind the body, or let all of it learn: "
            "`hybrid models push MODEL.onnx --head input`"
        )
    return nodes


def _has_body(model: onnx.ModelProto, head: Sequence[onnx.NodeProto]) -> bool:
    """Whether anything but constants is computed before the head."""
    given = {one.name for one in model.graph.initializer}
    reads = {name for node in _body(model, head) for name in node.input if name}
    made = {name for node in model.graph.node for name in node.output}
    return bool(reads - made - given)


def _body(model: onnx.ModelProto, head: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that are not of the head, nor rearrange constants for it alone."""
    inside = {name for node in head for name in node.output}
    made_by, constants = _makers(model), {one.name: one for one in model.graph.initializer}
    wanted = [name for node in head for name in node.input]
    while wanted:
        name = wanted.pop()
        if name in made_by and name not in inside and _is_constant(name, made_by, constants):
            inside.update(made_by[name].output)
            wanted += made_by[name].input
    return [node for node in model.graph.node if not inside.intersection(node.output)]


def _require_float(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], feature_tensor: str, *, advice: str = _KEEP_FLOAT
) -> None:
    made_by = _makers(model)
    integers = [node.name for node in nodes if node.op_type.startswith("QLinear") or node.op_type in _INTEGER]
    for node in nodes:
        sources = [made_by[name] for name in node.input if name in made_by]
        if any(one.op_type == "DequantizeLinear" and one.input[0] not in made_by for one in sources):
            integers.append(node.name)
    if integers:
        raise NotTrainable(f"the head behind {feature_tensor!r} is quantized ({', '.join(integers[:3])}); {advice}")


def _makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def _weights(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Float tensors of one axis or more that these nodes compute with, in the order of their use."""
    made_by = _makers(model)
    constants = {one.name: one for one in model.graph.initializer}
    wanted = [
        name
        for node in nodes
        if node.op_type not in _ROUNDING
        for at, name in enumerate(node.input)
        if at not in _STAYS.get(node.op_type, ())
    ]
    found: dict[str, None] = {}
    while wanted:
        name = wanted.pop(0)
        tensor = constants.get(name)
        if tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims):
            found[name] = None
        elif name in made_by and _is_constant(name, made_by, constants):
            wanted = [*made_by[name].input, *wanted]
    return list(found)


def _is_constant(name: str, made_by: Mapping[str, onnx.NodeProto], constants: Mapping[str, TensorProto]) -> bool:
    if name in constants or not name:
        return True
    return name in made_by and all(_is_constant(one, made_by, constants) for one in made_by[name].input)


def _sizes(model: onnx.ModelProto, node: onnx.NodeProto) -> tuple[int, int] | None:
    """Rows and columns of the constant matrix that a node multiplies with; None for any other node."""
    if node.op_type not in _PRODUCTS or len(node.input) < 2:
        return None
    flags = {one.name: one.i for one in node.attribute}
    maker = _makers(model).get(node.input[1])
    name = maker.input[0] if maker is not None and maker.op_type == "DequantizeLinear" else node.input[1]
    dims = next((list(one.dims) for one in model.graph.initializer if one.name == name), [])
    if len(dims) != 2 or flags.get("transA"):
        return None
    return (dims[1], dims[0]) if flags.get("transB") else (dims[0], dims[1])


def _add_update(
    model: onnx.ModelProto, node: onnx.NodeProto, sizes: tuple[int, int], rank: int, chance: np.random.Generator
) -> list[str]:
    """Adds `x A B` to what a node of the model answers; the names of A and B."""
    at = next(at for at, one in enumerate(model.graph.node) if one.output[0] == node.output[0])
    answer, source = node.output[0], node.input[0]
    down, up, small, update, frozen = (f"{answer}/{part}" for part in ("lora_a", "lora_b", "small", "update", "frozen"))
    first = chance.normal(0, sizes[0] ** -0.5, (sizes[0], rank)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(first, down))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((rank, sizes[1]), np.float32), up))
    model.graph.node[at].output[0] = frozen
    added = [
        helper.make_node("MatMul", [source, down], [small], name=small),
        helper.make_node("MatMul", [small, up], [update], name=update),
        helper.make_node("Add", [frozen, update], [answer], name=f"{answer}/updated"),
    ]
    for offset, one in enumerate(added, 1):
        model.graph.node.insert(at + offset, one)
    return [down, up]


def _separated(
    model: onnx.ModelProto, names: Sequence[str], feature_tensor: str, nodes: Sequence[onnx.NodeProto], file: str
) -> SeparatedHead:
    if not file or any(sign in file for sign in "/\\"):
        raise NotTrainable(f"the head's file is called {file!r}; give a name without a folder")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensors = {one.name: one for one in made.graph.initializer}
    content = b""
    for name in names:
        tensor = tensors[name]
        raw = numpy_helper.to_array(tensor).astype("<f4").tobytes()
        tensor.ClearField("float_data")
        tensor.raw_data = raw
        set_external_data(tensor, location=file, offset=len(content), length=len(raw))
        tensor.ClearField("raw_data")
        content += raw
    return SeparatedHead(
        model=made,
        file=file,
        content=content,
        tensors=tuple(names),
        feature_tensor=feature_tensor,
        nodes=tuple(node.name for node in nodes),
    )
