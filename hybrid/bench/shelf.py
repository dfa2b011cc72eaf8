"""The measured parts that come with the package."""

from pathlib import Path
from typing import Final

from hybrid.bench.parts import ModelParts, read
from hybrid.errors import BadMessage

FOLDER: Final = Path(__file__).resolve().parent / "parts_data"
"""One JSON file a model."""


def shelved(names: list[str] | None = None, folder: Path = FOLDER) -> list[ModelParts]:
    """The parts of these models, or of all.

    Raises:
        BadMessage: one that is not there.
    """
    known = {path.stem: path for path in sorted(folder.glob("*.json"))}
    wanted = list(known) if names is None else names
    strange = next((name for name in wanted if name not in known), None)
    if strange is not None:
        raise BadMessage(
            f"no measured parts of a model {strange!r}; there are {', '.join(known) or 'none'}; measure your own with "
            "`hybrid bench MODEL.onnx --data …`"
        )
    return [read(known[name]) for name in wanted]
