"""A learned bottleneck at a cut: an encoder for the device, a decoder for the gateway, and the tables between them."""

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import torch

from compression.bottleneck.bottleneck_recipe import BottleneckRecipe, BottleneckShape
from compression.bottleneck.examined import Examiner, Trained, require_same
from compression.bottleneck.graph import LATENT, Chain, Crossing, decoder_model, encoder_model
from compression.bottleneck.learning import Learning, Parts, Stepped
from compression.bottleneck.linear import Components, components
from compression.bottleneck.network import Decoder, Encoder, Probabilities
from compression.bottleneck.prior import Prior
from compression.errors import NotTrainable
from compression.training.answering import device_of, seeded
from compression.training.training_set import TrainingSet

_MAX_LOOKED_AT: Final = 256
_MAX_VALUES: Final = 1 << 24
"""Samples, and values of their crossing tensors, that encoder and decoder begin with: these are held several times."""

_MAX_COUNTED: Final = 2000
"""Samples whose latents make the prior's tables."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bottleneck:
    """What a split of an artifact takes: crossing tensor to `latent`, and back, and the tables of the entropy coder."""

    encoder: onnx.ModelProto
    decoder: onnx.ModelProto
    prior: Prior
    trained: Trained


def train_bottlenecks(
    training_set: TrainingSet,
    at: str,
    *,
    crossing: Crossing | None = None,
    shape: BottleneckShape | None = None,
    recipe: BottleneckRecipe | None = None,
    seed: int = 0,
    budget_s: float | None = None,
    stepped: Stepped | None = None,
) -> list[Bottleneck]:
    """One bottleneck for each of the recipe's steps, of one training.

    Args:
        training_set: its module is the teacher, whose part behind the cut stays as it is; it is not changed.
        at: the submodule whose output crosses.
        crossing: name and static shape of the tensor in the exported graph; None: named `at`, for one sample.
        shape: sizes of both nets.
        recipe: how they are trained.
        seed: the same seed gives the same bottlenecks where no budget cuts the training.
        budget_s: both stages end within it, as far as they have come.
        stepped: told steps done and steps in all.

    Raises:
        NotTrainable: no such submodule, an output that is not one float32 tensor, a shape that does not fit it, or a
            loss that is no number or has no gradient.
        NotExportable: the graphs answer otherwise than torch.
    """
    shape, recipe = shape or BottleneckShape(), recipe or BottleneckRecipe()
    began_s = time.perf_counter()
    order = np.random.default_rng(seed).permutation(training_set.n_samples)
    n_held_out = min(max(1, round(recipe.held_out_ratio * len(order))), len(order) - 1)
    held_out, index = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
    examiner = Examiner(training_set, at)
    with seeded(seed) as chance:
        few = looked_at(examiner, index)
        crossing = _crossing(at, crossing, few)
        parts = _begun(few, crossing, shape, recipe).to(device_of(training_set.module))
        learning = Learning(training_set, at, parts, recipe, chance=chance, seed=seed)
        learning.run(index, budget_s=budget_s, stepped=stepped)
        parts.requires_grad_(False)
        seconds = time.perf_counter() - began_s
        made = []
        for step in recipe.steps:
            counted = index[:: max(1, len(index) // _MAX_COUNTED)]
            prior = Prior.fitted(examiner.latents(counted, parts, step))
            encoder, decoder = _graphs(parts, crossing, step)
            require_same(parts, np.resize(few, crossing.shape), step, (encoder, decoder), crossing)
            trained = Trained(
                at=at,
                step=step,
                n_held_out=n_held_out,
                beta=learning.beta,
                n_steps=learning.n_steps,
                seconds=seconds,
                **examiner.examined(held_out, parts, step, prior)._asdict(),
            )
            made.append(Bottleneck(encoder=encoder, decoder=decoder, prior=prior, trained=trained))
    return made


def looked_at(examiner: Examiner, index: np.ndarray) -> np.ndarray:
    """The crossing tensors of some samples; of fewer where they are large, as early ones of high pictures are.

    Raises:
        NotTrainable: they are not finite.
    """
    n_values = examiner.crossed(index[:1]).size
    few = examiner.crossed(index[: max(1, min(_MAX_LOOKED_AT, _MAX_VALUES // n_values))])
    if not np.isfinite(few).all():
        raise NotTrainable("what crosses holds infinities or no numbers for some samples; mend these, or the module")
    return few


def _crossing(at: str, crossing: Crossing | None, seen: np.ndarray) -> Crossing:
    if crossing is None:
        return Crossing(name=at, shape=(1, *seen.shape[1:]))
    if crossing.shape[1:] != seen.shape[1:]:
        raise NotTrainable(f"{at} gives {seen.shape[1:]} a sample, {crossing.name} is {crossing.shape[1:]}")
    return crossing


def _begun(few: np.ndarray, crossing: Crossing, shape: BottleneckShape, recipe: BottleneckRecipe) -> Parts:
    """Encoder and decoder at the principal components, in steps that take about the wanted bits."""
    if len(crossing.shape) < 4 and shape.window > 1:
        raise NotTrainable(f"stride and kernel are 1 for a tensor without height and width ({crossing.shape})")
    planes = crossing.as_planes(few)
    patch = crossing.planes[1] * shape.stride**2
    if shape.channels > patch:
        raise NotTrainable(f"{shape.channels} channels were wanted for patches of {patch} elements")
    scale = max(float(planes.std()), 1e-12)
    found = components(planes / scale, channels=shape.channels, stride=shape.stride)
    step = _step_for(found, recipe.bits_per_element * patch)
    encoder = Encoder(crossing.planes, shape, scale=scale)
    decoder = Decoder(
        crossing.planes, shape, scale=scale, sequence=len(crossing.shape) < 4, rectified=bool((planes >= 0).all())
    )
    encoder.begin_at(found, step)
    decoder.begin_at(found, step)
    return Parts(encoder, decoder, Probabilities(torch.from_numpy(found.strengths / step).float()), crossing)


def _step_for(found: Components, bits: float) -> float:
    """The rounding step at which components take about so many bits a patch, were each of them Gaussian."""
    low, high = 1e-4 * float(found.strengths[0]) + 1e-9, 100 * float(found.strengths[0]) + 1e-6
    for _ in range(40):
        step = (low * high) ** 0.5
        taken = 0.5 * np.log2(1 + 2 * np.pi * np.e * (found.strengths / step) ** 2 / 4).sum()
        low, high = (step, high) if taken > bits else (low, step)
    return float((low * high) ** 0.5)


def _graphs(parts: Parts, crossing: Crossing, step: float) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    with torch.no_grad():
        latent = parts.whole(torch.zeros(crossing.shape), step).shape
    sizes = (int(latent[0]), int(latent[1]), int(latent[2]), int(latent[3]))
    encoder = Chain(crossing.name)
    encoder.into_planes(crossing)
    parts.encoder.write(encoder)
    encoder.quantize(step)
    decoder = Chain(LATENT)
    decoder.dequantize(step)
    parts.decoder.write(decoder)
    decoder.out_of_planes(crossing)
    return encoder_model(encoder, crossing, sizes), decoder_model(decoder, crossing, sizes)
