"""What the model string means: a file, bytes, or the name of a model that a gateway holds."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hybrid.artifact.cache import cache_dir
from hybrid.artifact.digest import bytes_name, digest_of_bytes, model_digest
from hybrid.artifact.names import BUNDLE_SUFFIX, MANIFEST_NAME
from hybrid.errors import ModelInvalid, ModelMissing

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(:[a-z0-9][a-z0-9._-]{0,63})?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a session's model comes from.

    Attributes:
        path: the model's file, None where it came as bytes.
        data: the model's bytes, None where it is a file.
        name: `NAME[:VERSION]` at a gateway, empty for a local file.
    """

    path: Path | None = None
    data: bytes | None = None
    name: str = ""

    @property
    def shown(self) -> str:
        """What to call the model in messages."""
        return self.name or (str(self.path) if self.path is not None else "the model given as bytes")

    def digest(self) -> str:
        """The model digest; reads the whole file unless it is remembered."""
        if self.data is not None:
            return digest_of_bytes(self.data)
        return model_digest(self.file())

    def file(self) -> Path:
        """A path to the model; bytes are written into the cache once."""
        if self.path is not None:
            return self.path
        if self.data is None:
            raise ModelInvalid("neither a path nor bytes were given for the model", path="")
        folder = cache_dir() / "bytes" / digest_of_bytes(self.data)
        path = folder / bytes_name(self.data)
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"{path.name}.{os.getpid()}.part"
            part.write_bytes(self.data)
            part.replace(path)
        return path


def parse_model_string(path_or_bytes: str | bytes | os.PathLike[str]) -> Source:
    """The source that a session's first parameter names.

    An existing file, or anything with a separator or a suffix, is a path, of a model or of an artifact (its folder, or
    its zip); a bare `NAME[:VERSION]` is a model of a gateway or agent.

    Raises:
        ModelMissing: a missing file.
        ModelInvalid, BadMessage, CorruptContent: an artifact that is not sound.
        TypeError: neither text, path nor bytes.
    """
    if isinstance(path_or_bytes, bytes | bytearray | memoryview):
        return Source(data=bytes(path_or_bytes))
    if not isinstance(path_or_bytes, str | os.PathLike):
        raise TypeError(
            f"the model is a {type(path_or_bytes).__name__}; give a path, a model's bytes, or NAME[:VERSION]"
        )
    path = Path(path_or_bytes)
    if path.is_file():
        return Source(path=_shipped(path) if path.suffix.lower() in (".zip", BUNDLE_SUFFIX) else path)
    text = os.fspath(path_or_bytes)
    has_suffix = Path(text.partition(":")[0]).suffix != ""
    if _NAME.fullmatch(text) and os.sep not in text and "/" not in text and not has_suffix:
        return Source(name=text)
    if (path / MANIFEST_NAME).is_file():
        return Source(path=_shipped(path))
    raise ModelMissing(
        f"no model file at {text}; give an existing .onnx or .tflite file, an artifact or NAME[:VERSION] of a model",
        advice="Check the path; a model that a gateway holds is named without folder, suffix or capital letters.",
        path=text,
    )


def _shipped(path: Path) -> Path:
    """The shipped model of an artifact in a folder or a zip."""
    from hybrid.artifact.opening import open_artifact

    return open_artifact(path).model_path
