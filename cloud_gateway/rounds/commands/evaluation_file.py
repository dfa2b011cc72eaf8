"""An evaluation set out of the files that people have: one .npz of `labels` and an array an input."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cloud_gateway.rounds.evaluation import LABELS, MOST_BYTES
from hybrid.cli.registry_asking import ask_registry
from hybrid.errors import BadMessage, DataUnfit, NotFound, TooLarge
from hybrid.federated.campaign import Campaign

if TYPE_CHECKING:
    from hybrid.transport.registry_client import RegistryClient


_ADVICE: Final = "Check the files of --evaluate and --labels: as many labels as samples, in their order."


def packed_set(inputs: Path, labels: Path | None, name: Callable[[], str]) -> bytes:
    """The bytes of a set.

    Args:
        inputs: .npz of one array an input, and perhaps `labels`; or .npy of a model's only input.
        labels: whole numbers as .npy, .csv or one a line; None where they are in the .npz.
        name: of the model's only input; asked where a .npy does not say it.

    Raises:
        NotFound: no such file.
        BadMessage, DataUnfit: not one label for every sample.
        TooLarge: more than a gateway takes.
    """
    try:
        arrays = read_set(inputs, labels, name)
    except (BadMessage, DataUnfit) as exc:
        raise type(exc)(str(exc), advice=exc.advice or _ADVICE) from exc
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    content = packed.getvalue()
    if len(content) > MOST_BYTES:
        raise TooLarge(
            f"the evaluation set has {len(content)} bytes where {MOST_BYTES} are allowed; take fewer samples"
        )
    return content


def read_set(inputs: Path, labels: Path | None, name: Callable[[], str]) -> dict[str, np.ndarray]:
    """The arrays of a set; arguments and errors as `packed_set` has them."""
    from hybrid.calibration import arrays as files
    from hybrid.calibration.labels import read_labels

    if not inputs.is_file():
        raise NotFound(f"{inputs}: no such file; give inputs as .npz or .npy", advice="Check the path of the samples.")
    found = files.load(inputs)
    if inputs.suffix.lower() == ".npy":
        found = {name(): array for array in found.values()}
    if labels is not None:
        n_samples = min((len(array) for key, array in found.items() if key != LABELS and array.ndim), default=0)
        numbers = read_labels(labels, [str(at) for at in range(n_samples)])
        found[LABELS] = np.array(numbers, np.int64)
    if LABELS not in found or len(found) < 2:
        raise BadMessage(f"{inputs} holds {', '.join(sorted(found))}; name the file of its labels with --labels")
    short = [key for key, array in found.items() if array.ndim < 1 or len(array) != len(found[LABELS])]
    if short:
        raise BadMessage(f"{short[0]!r} has shape {found[short[0]].shape} for {len(found[LABELS])} labels")
    return found


def input_name(gateway: str, token: str | None, order: Campaign) -> str:
    """Of a version's only input, by its golden inputs. Raises `BadMessage` where nothing tells it."""
    from hybrid.artifact.manifest import LATEST, parse

    async def work(client: "RegistryClient") -> bytes:
        manifest, _ = await client.manifest(order.model, order.version or LATEST)
        return manifest

    golden = parse(ask_registry(gateway, token, work)).golden
    names = tuple(golden.inputs) if golden is not None else ()
    if len(names) != 1:
        raise BadMessage(
            f"an .npy names no input, and {order.model} has {len(names) or 'no'} golden inputs to go by: give an .npz "
            "with one array an input"
        )
    return names[0]
