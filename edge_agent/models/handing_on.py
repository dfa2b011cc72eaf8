"""Hands installed models on: a program or device that names a model gets its artifact from this box.

Design: the calls are the gateway's own, read only, so that `hybrid.InferenceSession("NAME", gateway=BOX)` and `hybrid
models pull` work with either. Who gets a file verifies it, as always: a slot may be replaced while it is read.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from aiohttp import web

from edge_agent.models.source import Answering
from edge_agent.models.version import ModelVersion
from hybrid.artifact.folder import Artifact, open_folder
from hybrid.artifact.manifest import LATEST
from hybrid.artifact.names import check_digest, check_word
from hybrid.errors import HybridError, NotFound, Warming
from hybrid.hosting.http_replies import json_reply
from hybrid.hosting.identity import Right
from hybrid.transport.registry_client import ModelInfo, VersionInfo

SIGNATURE_HEADER: Final = "Hybrid-Signature"
_REPLACED_S: Final = 1.0
Admit = Callable[[web.Request, Right], None]


def add_handing_on(app: web.Application, answering: Answering, admit: Admit) -> None:
    """Serve manifests and files of the versions that answer.

    Args:
        app: gets the routes.
        answering: the versions.
        admit: returns, or raises `Forbidden`.
    """
    calls = _Calls(answering, admit)
    one = "/v2/hybrid/models/{name}/versions/{version}"
    app.router.add_get("/v2/hybrid/models", calls.list_models)
    app.router.add_get("/v2/hybrid/models/{name}", calls.list_versions)
    app.router.add_get(one, calls.show_version)
    app.router.add_get(one + "/manifest", calls.send_manifest)
    app.router.add_get("/v2/hybrid/blobs/{sha256}", calls.send_file, allow_head=False)


class _Calls:
    def __init__(self, answering: Answering, admit: Admit) -> None:
        self._answering = answering
        self._admit = admit

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        """Every model that can be handed on."""
        self._admit(request, "read")
        found = []
        for version in self._answering.versions():
            with suppress(Warming):  # it is being replaced: the next list has it
                if version.folder is not None:
                    found.append(await self._told(version))
        models = [ModelInfo(name=info.name, versions=(info,)) for info in found]
        return json_reply({"models": sorted(models, key=lambda model: model.name)})

    async def list_versions(self, request: web.Request) -> web.StreamResponse:
        """The version of one name."""
        version = self._asked(request)
        return json_reply(ModelInfo(name=version.name, versions=(await self._told(version),)))

    async def show_version(self, request: web.Request) -> web.StreamResponse:
        """One version."""
        return json_reply(await self._told(self._asked(request)))

    async def send_manifest(self, request: web.Request) -> web.StreamResponse:
        """The exact bytes of a version's manifest."""
        artifact = await _opened(self._asked(request))
        headers = {"Hybrid-Artifact-Digest": artifact.digest}
        if artifact.signature is not None:
            headers[SIGNATURE_HEADER] = artifact.signature.text
        return web.Response(body=artifact.manifest_bytes, content_type="application/json", headers=headers)

    async def send_file(self, request: web.Request) -> web.StreamResponse:
        """The bytes of a file; aiohttp honours `Range`."""
        self._admit(request, "read")
        sha256 = check_digest(request.match_info["sha256"])
        replaced = ""
        for version in self._answering.versions():
            if version.folder is None:
                continue
            try:
                artifact = await _opened(version)
            except Warming:
                replaced = version.name
                continue
            name = next((name for name, entry in artifact.manifest.files.items() if entry.sha256 == sha256), None)
            if name is not None:
                headers = {"Content-Type": "application/octet-stream"}
                return web.FileResponse(artifact.path_of(name), headers=headers)
        if replaced:  # it may be one of that version's
            raise _replaced(replaced)
        raise NotFound("no such file on this box")

    def _asked(self, request: web.Request) -> ModelVersion:
        self._admit(request, "read")
        name = check_word(request.match_info["name"])
        wanted = check_word(request.match_info.get("version", LATEST), "version")
        version = self._answering.named(name)
        if version is None or version.folder is None or wanted not in (LATEST, version.version):
            raise NotFound(f"no installed model {name!r} {wanted} is on this box")
        return version

    async def _told(self, version: ModelVersion) -> VersionInfo:
        artifact = await _opened(version)
        return VersionInfo(
            name=version.name,
            version=version.version,
            sequence=artifact.manifest.sequence,
            model_digest=artifact.manifest.model_digest,
            artifact_digest=artifact.digest,
            size_bytes=sum(entry.size for entry in artifact.manifest.files.values()),
            created_s=0.0,
            signed_by=artifact.signature.key_id if artifact.signature is not None else None,
        )


async def _opened(version: ModelVersion) -> Artifact:
    assert version.folder is not None
    try:
        return await asyncio.to_thread(_artifact, version.folder, version.artifact_digest)
    except HybridError as exc:
        raise _replaced(version.name) from exc


def _replaced(name: str) -> Warming:
    """What is told while a slot changes: not that there is nothing, which a device would take for an answer."""
    return Warming(f"model {name!r} is being replaced; ask again", retry_after_s=_REPLACED_S)


@lru_cache(maxsize=64)
def _artifact(folder: Path, artifact_digest: str) -> Artifact:
    """The artifact in a slot; by its digest, since slots are used again."""
    artifact = open_folder(folder)
    if artifact.digest != artifact_digest:
        _artifact.cache_clear()
        raise NotFound("the slot holds another version by now")
    return artifact
