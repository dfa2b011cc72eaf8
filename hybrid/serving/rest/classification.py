"""The classification extension: the k largest values of an output as "value:index" or "value:index:label" strings."""

import numpy as np

from compression.tensor import BYTES
from hybrid.errors import TensorMismatch


def classify(name: str, datatype: str, array: np.ndarray, k: int, labels: tuple[str, ...]) -> np.ndarray:
    """The k best classes along the last axis, best first.

    Args:
        name: the output's name, for messages.
        datatype: its datatype; strings have no order.
        array: shape (..., n).
        k: how many; more than n gives n.
        labels: used where there are exactly n of them.

    Returns:
        Object array of byte strings, shape (..., min(k, n)).

    Raises:
        TensorMismatch: k below 1, strings, or an output without a last axis.
    """
    if k < 1:
        raise TensorMismatch(f"output {name!r}: classification wants {k} classes; ask for at least 1")
    if datatype == BYTES or array.size == 0 or array.ndim == 0:
        raise TensorMismatch(
            f"output {name!r} is {datatype} {list(array.shape)}; only numbers with an axis have classes"
        )
    n_classes = array.shape[-1]
    rows = array.reshape(-1, n_classes)
    best = np.argsort(-rows.astype(np.float64), axis=-1, kind="stable")[:, :k]
    named = len(labels) == n_classes
    found = np.empty(best.shape, dtype=object)
    for row, indices in enumerate(best):
        for place, index in enumerate(indices):
            text = f"{float(rows[row, index]):.6f}:{index}"
            found[row, place] = (f"{text}:{labels[index]}" if named else text).encode()
    return found.reshape(*array.shape[:-1], best.shape[-1])
