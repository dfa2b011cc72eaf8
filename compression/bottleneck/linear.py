"""A bottleneck without training: principal components of the crossing tensor's patches, rounded to int8."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from compression.bottleneck.graph import Chain, Crossing, decoder_model, encoder_model
from compression.bottleneck.prior import Prior
from compression.errors import NotQuantizable

_MAX_PATCHES = 20_000
_COARSE = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """The directions in which patches of a tensor differ most.

    Attributes:
        mean: of each element of a patch: float64, (c * stride * stride,).
        basis: orthonormal rows, the strongest first: (channels, c * stride * stride).
        strengths: standard deviation along each row.
    """

    mean: np.ndarray
    basis: np.ndarray
    strengths: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearBottleneck:
    """Both graphs and the tables, as a split of an artifact takes them."""

    encoder: onnx.ModelProto
    decoder: onnx.ModelProto
    prior: Prior


def components(planes: np.ndarray, *, channels: int, stride: int, seed: int = 0) -> Components:
    """Principal components of patches of `stride` by `stride` points of (n, c, h, w).

    Raises:
        NotQuantizable: more channels than a patch has elements, no sample, or values that are not finite.
    """
    if not planes.size or not np.isfinite(planes).all():
        raise NotQuantizable("components want at least one crossing tensor, and finite values")
    patches = _patches(planes, stride)
    if not 1 <= channels <= patches.shape[1]:
        raise NotQuantizable(f"{channels} channels were wanted of patches with {patches.shape[1]} elements")
    if len(patches) > _MAX_PATCHES:
        patches = patches[np.random.default_rng(seed).choice(len(patches), _MAX_PATCHES, replace=False)]
    mean = patches.mean(axis=0)
    centred = patches - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.argsort(-values)[:channels]
    basis = vectors[:, order].T
    signs = np.where(basis[np.arange(channels), np.abs(basis).argmax(axis=1)] < 0, -1.0, 1.0)
    return Components(mean=mean, basis=basis * signs[:, None], strengths=np.sqrt(np.maximum(values[order], 0)))


def _patches(planes: np.ndarray, stride: int) -> np.ndarray:
    n, c, height, width = planes.shape
    down, right = -height % stride, -width % stride
    padded = np.pad(planes, ((0, 0), (0, 0), (0, down), (0, right)))
    rows, columns = (height + down) // stride, (width + right) // stride
    blocks = padded.reshape(n, c, rows, stride, columns, stride).transpose(0, 2, 4, 1, 3, 5)
    return blocks.reshape(-1, c * stride * stride).astype(np.float64)


def linear_bottleneck(
    crossing: Crossing, samples: Sequence[np.ndarray], *, channels: int, stride: int = 1, levels: float = 16.0
) -> LinearBottleneck:
    """Components as an encoder, their transpose as the decoder, tables of the samples' own latents.

    Args:
        crossing: the tensor; `stride` is 1 where it has no height and width.
        samples: values of the crossing tensor.
        channels: of the latent.
        stride: side of a patch.
        levels: how many steps of the rounding two standard deviations of the strongest component take.

    Raises:
        NotQuantizable: see `components`; or a stride for a tensor without height and width.
    """
    if stride > 1 and len(crossing.shape) < 4:
        raise NotQuantizable(f"a stride of {stride} wants a tensor (n, c, h, w), this one is {crossing.shape}")
    planes = np.concatenate([crossing.as_planes(sample) for sample in samples])
    found = components(planes, channels=channels, stride=stride)
    step = max(2 * float(found.strengths[0]) / levels, _COARSE)
    n, c, height, width = crossing.planes
    latent = (n, channels, -(-height // stride), -(-width // stride))
    weight = found.basis.reshape(channels, c, stride, stride)
    encoder = Chain(crossing.name)
    encoder.into_planes(crossing)
    encoder.convolve(weight, -found.basis @ found.mean, stride=stride, pads=(0, 0, -height % stride, -width % stride))
    encoder.quantize(step)
    decoder = Chain("latent")
    decoder.dequantize(step)
    decoder.convolve(weight, np.zeros(c), stride=stride, transposed=True)
    mean = np.tile(found.mean.reshape(c, stride, stride), (1, latent[2], latent[3]))
    decoder.node("Add", decoder.constant(mean[None].astype(np.float32)))
    decoder.out_of_planes(crossing)
    codes = np.clip(np.round((_patches(planes, stride) - found.mean) @ found.basis.T / step), -128, 127)
    latents = codes.reshape(len(planes), latent[2], latent[3], channels).transpose(0, 3, 1, 2).astype(np.int8)
    return LinearBottleneck(
        encoder=encoder_model(encoder, crossing, latent),
        decoder=decoder_model(decoder, crossing, latent),
        prior=Prior.fitted(latents),
    )
