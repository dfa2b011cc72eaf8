"""What `--train-script` is given in the benchmarks: the trained net of a task with its training images.

Which seed comes from the environment (`SEED`), since the function takes no arguments.
"""

import os

import torch

from benchmarks.compression_parts import tasks
from compression.training.training_set import TrainingSet


def digits() -> TrainingSet:
    """The digits net, trained with this seed."""
    return _of(tasks.digits())


def fashion() -> TrainingSet:
    """The Fashion-MNIST net, trained with this seed."""
    return _of(tasks.fashion())


def _of(task: tasks.Task) -> TrainingSet:
    def augment(inputs: tuple[torch.Tensor, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (tasks.shifted(inputs[0], task.shift, generator),)

    return TrainingSet(
        module=tasks.trained(task, int(os.environ.get("SEED", "0"))),
        inputs={"image": task.images},
        labels=task.labels.astype("int64"),
        augment=augment,
        output_names=("scores",),
    )
