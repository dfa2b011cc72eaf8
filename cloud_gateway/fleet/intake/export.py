"""Files of what boxes brought: results and telemetry as they are, samples as arrays that numpy opens without pickle."""

import io
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from cloud_gateway.fleet.intake.listing import StoredThing
from hybrid.artifact.durable import storing, write_atomically
from hybrid.errors import CorruptContent
from hybrid.fleet.sample import parse_sample

INDEX: Final = "index.jsonl"


def is_there(folder: Path, one: StoredThing) -> bool:
    """Whether it was written before."""
    return any((folder / one.box / f"{one.id:012d}{suffix}").exists() for suffix in (".bin", ".npz"))


def write_other(folder: Path, one: StoredThing, content: bytes) -> None:
    """`FOLDER/BOX/ID.bin`, and its line in the index."""
    _check(one, content)
    path = folder / one.box / f"{one.id:012d}.bin"
    write_atomically(path, content)
    _index(folder, one, {"file": str(path.relative_to(folder))})


def write_sample(folder: Path, one: StoredThing, content: bytes) -> None:
    """`FOLDER/BOX/ID.npz` with arrays `input.NAME` and `output.NAME`, and its line in the index with the label."""
    _check(one, content)
    sample = parse_sample(content)
    arrays = {f"input.{name}": _plain(array) for name, array in sample.input_arrays().items()}
    arrays |= {f"output.{name}": _plain(array) for name, array in sample.output_arrays().items()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # what numpy.savez writes, but for pickles
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    path = folder / one.box / f"{one.id:012d}.npz"
    write_atomically(path, packed.getvalue())
    about = {
        "file": str(path.relative_to(folder)),
        "sample": sample.id,
        "model": sample.model,
        "model_digest": sample.model_digest,
        "variant": sample.variant,
        "label": msgspec.json.decode(sample.label) if sample.label else None,
        "made_on_box_s": sample.made_s,
    }
    _index(folder, one, about)


def _plain(array: np.ndarray) -> np.ndarray:
    """Strings as bytes of fixed width: object arrays would be pickled."""
    return array.astype(np.bytes_) if array.dtype.kind == "O" else array


def _check(one: StoredThing, content: bytes) -> None:
    if sha256(content).hexdigest() != one.sha256:
        raise CorruptContent(f"item {one.id} came with another digest; export it again")


def _index(folder: Path, one: StoredThing, about: dict[str, object]) -> None:
    line = msgspec.json.encode(msgspec.structs.asdict(one) | about) + b"\n"
    path = folder / INDEX
    with storing(path), path.open("ab") as file:
        file.write(line)
