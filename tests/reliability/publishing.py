"""Small signed artifacts whose model files say how a simulated engine takes them."""

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np

from hybrid.artifact import signature
from hybrid.artifact.digest import HashedFile, digest_of_files
from hybrid.artifact.manifest import FileEntry, Golden, Manifest, Variant, artifact_digest, canonical_bytes

PUBLISHER = bytes(range(32))
STRANGER = bytes(range(1, 33))

CHARACTERS = ("good", "good", "good", "golden differs", "does not open", "crashes", "fails in use")
"""What becomes of a version that is installed."""


@dataclass(frozen=True)
class Published:
    """A version as the gateway hands it out."""

    name: str
    version: str
    sequence: int
    character: str
    manifest: bytes
    signature: str
    digest: str
    model_digest: str
    files: dict[str, bytes]

    @property
    def is_good(self) -> bool:
        return self.character == "good"


def answer_of(model: bytes) -> np.ndarray:
    """What a simulated engine computes."""
    return np.frombuffer(hashlib.sha256(model).digest(), dtype=np.uint8).astype(np.float32)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@cache
def published(name: str, sequence: int, character: str, n_bytes: int = 3000, key: bytes = PUBLISHER) -> Published:
    """A version; the same arguments give the same bytes."""
    rng = Random(f"{name} {sequence} {character} {n_bytes}")
    model = character.encode().ljust(32, b".") + rng.randbytes(n_bytes)
    expected = answer_of(model) + (1.0 if character == "golden differs" else 0.0)
    files = {
        "model.onnx": model,
        "golden/x.npy": _npy(np.zeros(1, np.float32)),
        "golden/y.npy": _npy(expected.astype(np.float32)),
    }
    entries = {
        path: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for path, content in files.items()
    }
    shipped = HashedFile(name="model.onnx", size=len(model), sha256=entries["model.onnx"].sha256)
    manifest = canonical_bytes(
        Manifest(
            schema=1,
            name=name,
            version=str(sequence),
            sequence=sequence,
            model_digest=digest_of_files([shipped]),
            files=entries,
            variants=(Variant(id="full", engine="onnxruntime", precision="float32", files=("model.onnx",)),),
            golden=Golden(inputs={"x": "golden/x.npy"}, outputs={"y": "golden/y.npy"}, tolerance={"onnxruntime": 1e-4}),
        )
    )
    return Published(
        name=name,
        version=str(sequence),
        sequence=sequence,
        character=character,
        manifest=manifest,
        signature=signature.sign(manifest, key).text,
        digest=artifact_digest(manifest),
        model_digest=digest_of_files([shipped]),
        files={entries[path].sha256: content for path, content in files.items()},
    )
