"""Gradients of a training set's loss, for ranking channels by what the loss would miss.

Source: P. Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (1906.10771).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from compression.training.training_set import TrainingSet


def loss_gradients(
    training_set: TrainingSet, n_samples: int = 512, batch: int = 64, seed: int = 0
) -> Callable[[Any], None]:
    """What `prune` takes as `gradients`: leaves the loss's gradients over a seeded part of the samples in a module.

    Without labels the module's own likeliest classes are the labels. Normalisations keep their running statistics.
    """
    chosen = np.random.default_rng(seed).permutation(training_set.n_samples)[:n_samples]
    part = training_set.part(np.sort(chosen))

    def leave(module: Any) -> None:
        import torch
        from torch.nn import functional

        from compression.training.answering import arguments, outputs_of

        module.eval()
        for start in range(0, part.n_samples, batch):
            index = slice(start, start + batch)
            answer = module(*arguments(module, part.inputs, index))
            scores = outputs_of(answer)[0]
            labels = scores.argmax(1) if part.labels is None else torch.from_numpy(np.array(part.labels[index]))
            labels = labels.to(scores.device)
            loss = functional.cross_entropy(scores, labels) if part.loss is None else part.loss(answer, labels)
            loss.backward()  # type: ignore[no-untyped-call]

    return leave
