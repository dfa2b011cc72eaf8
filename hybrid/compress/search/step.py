"""One step of the search: what is to be done next, for which recipe."""

from dataclasses import dataclass
from typing import Literal

from hybrid.compress.making.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Time a candidate (whatever its weights), make it in full and grade it, or see how wide a pruned one's layers are.

    The fourth kind is about the device alone: its staircase is measured.
    """

    kind: Literal["time", "grade", "staircase", "widths"]
    recipe: Recipe = Recipe()
