"""The MODEL of a command: a file, an artifact's folder or zip, or the name of a model that a gateway holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid.artifact.folder import Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenModel:
    """What a command works on.

    Attributes:
        path: the shipped model's file.
        digest: its model digest.
        artifact: where the model came as one, or lies in one.
        name: what to call it.
    """

    path: Path
    digest: str
    artifact: "Artifact | None"
    name: str


def open_model(text: str, gateway: str, token: str | None) -> GivenModel:
    """The model that an argument means.

    Raises:
        ModelMissing: no such file.
        ModelInvalid: no model in it.
        ModelUnavailable: a name that neither the cache nor the gateway knows.
    """
    from hybrid.artifact.digest import model_digest
    from hybrid.artifact.opening import open_artifact
    from hybrid.calibration.permits import artifact_of
    from hybrid.cli.gateway_choice import choose
    from hybrid.session.named import fetched
    from hybrid.session.source import parse_model_string

    path = Path(text)
    if path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file()):
        artifact = open_artifact(path)
        return GivenModel(
            path=artifact.model_path,
            digest=artifact.manifest.model_digest,
            artifact=artifact,
            name=artifact.manifest.name,
        )
    source = parse_model_string(text)
    if source.name:
        urls = None if gateway == "none" else [choose(gateway, token).url]
        source = fetched(source.name, urls, token)
    file = source.file()
    return GivenModel(path=file, digest=model_digest(file), artifact=artifact_of(file), name=source.name or file.name)
