"""SmoothQuant: what a layer normalisation makes is divided by channel, the weights that read it are multiplied.

Source: G. Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models,
ICML 2023, equation 4: s_j = max|x_j|^α / max|w_j|^(1-α).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from compression.measuring import Feeds
from compression.quantization.editing import Weights, attribute, copied, makers, readers
from compression.quantization.running import open_session, run, with_outputs

_LEAST = 1e-5


@dataclass(frozen=True, slots=True)
class _Site:
    """What a normalisation makes, the products that read it, and its own factors if nothing else reads it."""

    tensor: str
    products: list[onnx.NodeProto]
    factors: list[tuple[onnx.NodeProto, int]]


def smooth(prepared: onnx.ModelProto, samples: Sequence[Feeds], alpha: float) -> tuple[onnx.ModelProto, int]:
    """A model that computes the same with calmer inputs of its matrix products, and how many inputs were calmed.

    Where a normalisation's result goes to these products alone its own factors are divided, which costs nothing;
    else one multiplication is put before the products.
    """
    model = copied(prepared)
    weights, read = Weights(model), readers(model)
    sites = _sites(model, weights, read)
    if not sites:
        return model, 0
    reach = _reach(model, sites, samples)
    for site in sites:
        into = np.max([np.abs(_as_rows(node, weights)).max(axis=1) for node in site.products], axis=0)
        power = np.maximum(reach[site.tensor], _LEAST) ** alpha / np.maximum(into, _LEAST) ** (1.0 - alpha)
        scale = np.maximum(power, _LEAST).astype(np.float32)
        scale /= np.exp(np.log(scale).mean())  # one factor for all channels would change nothing but the bias of LN
        for node in site.products:
            name = weights.own(node, 1, read)
            weights[name] = weights[name] * scale.reshape((1, -1) if _transposed(node) else (-1, 1))
        if site.factors:
            for node, at in site.factors:
                name = weights.own(node, at, read)
                weights[name] = weights[name] / scale
        else:
            _insert(model, site, weights, scale)
    return model, len(sites)


def _sites(model: onnx.ModelProto, weights: Weights, read: Mapping[str, list[onnx.NodeProto]]) -> list[_Site]:
    made = makers(model)
    answers = {value.name for value in model.graph.output}
    sites = []
    for node in model.graph.node:
        factors = _factors(node, made, weights, read)
        if factors is None:
            continue
        tensor = node.output[0]
        products = [one for one in read[tensor] if _is_product(one, tensor, weights)]
        n_channels = weights[factors[0][0].input[factors[0][1]]].size
        products = [one for one in products if _as_rows(one, weights).shape[0] == n_channels]
        if products:
            alone = len(products) == len(read[tensor]) and tensor not in answers
            sites.append(_Site(tensor, products, factors if alone else []))
    return sites


def _factors(
    node: onnx.NodeProto,
    made: Mapping[str, onnx.NodeProto],
    weights: Weights,
    read: Mapping[str, list[onnx.NodeProto]],
) -> list[tuple[onnx.NodeProto, int]] | None:
    """The constants by channel that end a layer normalisation, as (node, input); None where there is none."""
    if node.op_type == "LayerNormalization":
        constant = all(name in weights for name in node.input[1:] if name)
        at_end = attribute(node, "axis", -1) == -1 and len(node.output) == 1
        return [(node, at) for at in range(1, len(node.input)) if node.input[at]] if constant and at_end else None
    if node.op_type != "Add":
        return None
    constants = [at for at in (0, 1) if node.input[at] in weights and weights[node.input[at]].ndim == 1]
    if len(constants) != 1:
        return None
    product = made.get(node.input[1 - constants[0]])
    if product is None or product.op_type != "Mul" or len(read[product.output[0]]) != 1:
        return None
    factor = [at for at in (0, 1) if product.input[at] in weights and weights[product.input[at]].ndim == 1]
    if len(factor) != 1 or weights[product.input[factor[0]]].shape != weights[node.input[constants[0]]].shape:
        return None
    divided = made.get(product.input[1 - factor[0]])
    if divided is None or divided.op_type not in ("Div", "Mul"):
        return None
    return [(product, factor[0]), (node, constants[0])]


def _is_product(node: onnx.NodeProto, tensor: str, weights: Weights) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] != tensor or node.input[1] not in weights:
        return False
    return weights[node.input[1]].ndim == 2 and not attribute(node, "transA", 0)


def _transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))


def _as_rows(node: onnx.NodeProto, weights: Weights) -> np.ndarray:
    values = weights[node.input[1]]
    return values.T if _transposed(node) else values


def _reach(model: onnx.ModelProto, sites: list[_Site], samples: Sequence[Feeds]) -> dict[str, np.ndarray]:
    names = [site.tensor for site in sites]
    session = open_session(with_outputs(model, names))
    reach: dict[str, np.ndarray] = {}
    for feeds in samples:
        for name, values in zip(names, run(session, names, feeds), strict=True):
            most = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            reach[name] = np.maximum(reach[name], most) if name in reach else most
    return reach


def _insert(model: onnx.ModelProto, site: _Site, weights: Weights, scale: np.ndarray) -> None:
    name = f"{site.tensor}.calm"
    weights[f"{name}.factor"] = 1.0 / scale
    at = min(number for number, node in enumerate(model.graph.node) if site.tensor in node.input)
    model.graph.node.insert(at, helper.make_node("Mul", [site.tensor, f"{name}.factor"], [name], name=name))
    like = next((value for value in model.graph.value_info if value.name == site.tensor), None)
    if like is not None:
        shown = model.graph.value_info.add()
        shown.CopyFrom(like)
        shown.name = name
    for node in site.products:
        node.input[0] = name
