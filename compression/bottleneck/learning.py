"""The two stages of training: all towards the teacher's features within the bits, then the decoder alone."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Final

import numpy as np
import torch

from compression.bottleneck.bottleneck_recipe import BottleneckRecipe
from compression.bottleneck.graph import Crossing
from compression.bottleneck.network import Decoder, Encoder, Probabilities
from compression.bottleneck.submodules import Place, replaced, submodules_after
from compression.errors import NotTrainable
from compression.training.answering import arguments, evaluating, outputs_of
from compression.training.distilling import Features, Objective, features_of, holds_probabilities, relative_distance
from compression.training.fit_recipe import FitRecipe
from compression.training.training_set import TrainingSet

Stepped = Callable[[int, int], None]

_FIRST_BETA: Final = 0.3
_BETA_RATE: Final = 0.04
_LAST_BETA_RATE: Final = 0.005
_BETA_RANGE: Final = (1e-4, 1e3)
_FIRST_SHARE: Final = 0.6
"""What the first stage may take of a budget, where there is a second."""


class Parts(torch.nn.Module):
    """What is trained: encoder, decoder and the probabilities of latents."""

    def __init__(self, encoder: Encoder, decoder: Decoder, probabilities: Probabilities, crossing: Crossing) -> None:
        super().__init__()
        self.encoder, self.decoder, self.probabilities = encoder, decoder, probabilities
        self._sequence = len(crossing.shape) == 3
        self._planes = crossing.planes[1:]

    def planes(self, crossing: torch.Tensor) -> torch.Tensor:
        """A crossing tensor as (n, c, h, w), where the encoder lies."""
        crossing = crossing.to(self.encoder.first.weight.device)
        ordered = crossing.transpose(1, 2) if self._sequence else crossing
        return ordered.reshape(len(crossing), *self._planes)

    def restored(self, latent: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of a latent, in the form of the crossing tensor."""
        planes: torch.Tensor = self.decoder(latent.to(self.encoder.first.weight.device))
        if self._sequence:
            return planes[..., 0].transpose(1, 2)
        return planes.reshape(like.shape)

    def whole(self, crossing: torch.Tensor, step: float) -> torch.Tensor:
        """The latent as the exported graph quantizes it: whole numbers of this step, as floats."""
        made: torch.Tensor = self.encoder(self.planes(crossing))
        return (made / step).round().clamp(-128, 127)

    def rounded(self, latent: torch.Tensor) -> torch.Tensor:
        """The same of what the encoder made, in steps of one; gradients pass straight through."""
        return latent + (latent.round().clamp(-128, 127) - latent).detach()


class Learning:
    """One training; the module is asked and never changed."""

    def __init__(
        self,
        training_set: TrainingSet,
        at: str,
        parts: Parts,
        recipe: BottleneckRecipe,
        *,
        chance: torch.Generator,
        seed: int,
    ) -> None:
        self._set, self._at, self._parts, self._recipe = training_set, at, parts, recipe
        self._chance = chance
        self._shuffle = np.random.default_rng(seed)
        self.beta = _FIRST_BETA
        self.n_steps = 0
        self._progress = 0.0
        example = training_set.example(2)
        self._features = tuple(submodules_after(training_set.module, at, example, recipe.n_features))
        with evaluating(training_set.module):
            probabilities = holds_probabilities(outputs_of(training_set.module(*example))[0])
        taught, both = (FitRecipe(kd_share=share, temperature=recipe.temperature) for share in (1.0, recipe.kd_share))
        self._towards_teacher, self._towards_all = (
            Objective(training_set, one, with_teacher=True, probabilities=probabilities) for one in (taught, both)
        )

    def run(self, index: np.ndarray, *, budget_s: float | None, stepped: Stepped | None) -> None:
        """Both stages on these samples.

        Raises:
            NotTrainable: the loss is no number any more, or knows no gradient.
        """
        recipe, batches = self._recipe, -(-len(index) // self._recipe.batch)
        n_first, n_second = batches * recipe.epochs, batches * recipe.decoder_epochs
        began_s = time.perf_counter()
        first_s = None if budget_s is None else budget_s * (_FIRST_SHARE if n_second else 1.0)
        module = self._set.module
        was = [(one, one.requires_grad) for one in module.parameters()]
        try:
            module.requires_grad_(False)
            with ExitStack() as stack:
                place = stack.enter_context(replaced(module, self._at))
                seen = stack.enter_context(features_of(module, self._features))
                stage = _Stage(recipe.learning_rate, n_first, first_s)
                for done in self._stage(stage, index, lambda chosen: self._first_loss(chosen, place, seen)):
                    _tell(stepped, done, n_first + n_second)
                for part in (self._parts.encoder, self._parts.probabilities):
                    part.requires_grad_(False)
                left_s = None if budget_s is None else budget_s - (time.perf_counter() - began_s)
                stage = _Stage(recipe.learning_rate / 2, n_second, left_s)
                for done in self._stage(stage, index, lambda chosen: self._second_loss(chosen, place, seen)):
                    _tell(stepped, n_first + done, n_first + n_second)
        finally:
            for one, required in was:
                one.requires_grad_(required)
        _tell(stepped, n_first + n_second, n_first + n_second)

    def _stage(
        self, stage: "_Stage", index: np.ndarray, loss_of: Callable[[np.ndarray], torch.Tensor]
    ) -> Iterator[int]:
        """Steps of what may be trained, until the stage is over; yields how many were done."""
        trained = [one for one in self._parts.parameters() if one.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=stage.learning_rate)
        for chosen in self._batches(index):
            if stage.over:
                return
            for group in optimizer.param_groups:
                group["lr"] = stage.rate()
            self._progress = stage.progress()
            loss = loss_of(chosen)
            if not bool(torch.isfinite(loss)):
                seen = float(loss.detach())
                raise NotTrainable(
                    f"the bottleneck's loss is {seen} after {self.n_steps} steps; lower the learning rate"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, self._recipe.clip_norm)
            optimizer.step()
            stage.done += 1
            self.n_steps += 1
            yield stage.done

    def _batches(self, index: np.ndarray) -> Iterator[np.ndarray]:
        while True:
            order = self._shuffle.permutation(index)
            for start in range(0, len(order), self._recipe.batch):
                yield order[start : start + self._recipe.batch]

    def _first_loss(self, chosen: np.ndarray, place: Place, seen: Features) -> torch.Tensor:
        recipe, parts = self._recipe, self._parts
        batch = self._batch(chosen)
        wanted, features, own = self._taught(batch, place, seen)
        latent = parts.encoder(parts.planes(own))
        noise = torch.rand(latent.shape, generator=self._chance) - 0.5
        bits = parts.probabilities.bits(latent + noise.to(latent.device)).sum() / own.numel()
        restored = parts.restored(parts.rounded(latent), own)
        answer = self._answered(batch, place, restored)
        with torch.no_grad():
            self._steer(float(parts.probabilities.bits(parts.rounded(latent)).sum() / own.numel()))
        loss = self.beta * bits + recipe.cut_weight * relative_distance(restored, own)
        loss = loss + recipe.output_weight * self._towards_teacher(answer, None, wanted, ({}, {}))
        for name in self._features:
            loss = loss + recipe.feature_weight / len(self._features) * relative_distance(seen[name], features[name])
        return loss

    def _second_loss(self, chosen: np.ndarray, place: Place, seen: Features) -> torch.Tensor:
        parts = self._parts
        batch = self._batch(chosen)
        wanted, _, own = self._taught(batch, place, seen)
        step = float(self._shuffle.choice(self._recipe.steps))
        with torch.no_grad():
            latent = parts.whole(own, step) * step
        answer = self._answered(batch, place, parts.restored(latent, own))
        labels = None
        if self._set.labels is not None:
            labels = torch.from_numpy(np.array(self._set.labels[chosen])).to(own.device)
            labels = labels.long() if self._towards_all.classes else labels
        return self._towards_all(answer, labels, wanted, ({}, {}))

    def _batch(self, chosen: np.ndarray) -> tuple[torch.Tensor, ...]:
        batch = arguments(self._set.module, self._set.inputs, chosen)
        return batch if self._set.augment is None else self._set.augment(batch, self._chance)

    def _taught(
        self, batch: tuple[torch.Tensor, ...], place: Place, seen: Features
    ) -> tuple[tuple[torch.Tensor, ...], Mapping[str, torch.Tensor], torch.Tensor]:
        """The teacher's outputs, features, and crossing tensor."""
        place.through = None
        with evaluating(self._set.module):
            wanted = outputs_of(self._set.module(*batch))
        assert place.own is not None
        return wanted, dict(seen), place.own

    def _answered(self, batch: tuple[torch.Tensor, ...], place: Place, restored: torch.Tensor) -> object:
        """What the module answers where `restored` stands at the cut; with gradients.

        Raises:
            NotTrainable: there are none.
        """
        place.through = lambda _own: restored
        module = self._set.module
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            answer: object = module(*batch)
        finally:
            place.through = None
            for part, mode in modes:
                part.training = mode
        if not any(output.requires_grad for output in outputs_of(answer)):
            raise NotTrainable(
                f"no gradient comes from the outputs back to {self._at}: behind it the module computes without"
                " gradients (torch.no_grad, detach, argmax); give a module that can be trained"
            )
        return answer

    def _steer(self, bits: float) -> None:
        """More weight on bits where there are too many, less where there are too few; calmer towards the end."""
        off = math.log(max(bits, 1e-6) / self._recipe.bits_per_element)
        rate = _BETA_RATE * (1 - self._progress) + _LAST_BETA_RATE
        self.beta = float(np.clip(self.beta * math.exp(rate * np.clip(off, -1, 1)), *_BETA_RANGE))


def _tell(stepped: Stepped | None, done: int, total: int) -> None:
    if stepped is not None:
        stepped(done, total)


class _Stage:
    """How far a stage is: by its steps, or by its seconds where these end first."""

    def __init__(self, learning_rate: float, n_steps: int, budget_s: float | None) -> None:
        self.learning_rate, self.done = learning_rate, 0
        self._n_steps, self._budget_s = n_steps, budget_s
        self._began_s = time.perf_counter()

    @property
    def over(self) -> bool:
        return self.progress() >= 1

    def rate(self) -> float:
        """Along a cosine, after a short rise."""
        progress = self.progress()
        return self.learning_rate * min(1.0, (self.done + 1) / 20, 0.5 * (1 + math.cos(math.pi * progress)) + 0.01)

    def progress(self) -> float:
        """From 0 to 1, and beyond."""
        progress = self.done / max(self._n_steps, 1)
        if self._budget_s is not None:
            progress = max(progress, (time.perf_counter() - self._began_s) / max(self._budget_s, 1e-9))
        return progress
