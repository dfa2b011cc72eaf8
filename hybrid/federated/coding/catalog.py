"""The forms by their names, as a campaign and a difference name them."""

from typing import Final

from hybrid.errors import BadMessage
from hybrid.federated.coding.exact import Exact
from hybrid.federated.coding.form import Form
from hybrid.federated.coding.quantized import Quantized
from hybrid.federated.coding.sparse import Sparse

TOP_K: Final = "top-k"
_DENSE: Final[dict[str, Form]] = {
    "float32": Exact(),
    "int8": Quantized(n_bits=8, block_elements=4096),
    "int4": Quantized(n_bits=4, block_elements=256),
}
NAMES: Final = (*_DENSE, TOP_K)


def form(name: str, share_ratio: float = 0.01) -> Form:
    """The form of this name: `float32`, `int8`, `int4`, or `top-k` of this share of the elements.

    Raises:
        BadMessage: there is none, or no such share.
    """
    if name == TOP_K:
        return Sparse(share_ratio=share_ratio)
    if name not in _DENSE:
        raise BadMessage(f"there is no form {name!r}: {', '.join(NAMES)}")
    return _DENSE[name]
