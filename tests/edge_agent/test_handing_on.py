"""What a box hands on while one of its versions is replaced: the others, and `warming` for what may be that one's."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from edge_agent.models.handing_on import _Calls
from edge_agent.models.version import ModelVersion
from hybrid.artifact.folder import open_folder
from hybrid.artifact.manifest import CascadeRule
from hybrid.cascade.build import write_artifact
from hybrid.errors import NotFound, Warming
from tests.cascade.made import classifier
from tests.edge_agent.model_room import version


def artifact(folder: Path, name: str, used: int) -> ModelVersion:
    small, large = classifier(folder / "s.onnx", used=4), classifier(folder / "l.onnx", used=used)
    rule = CascadeRule(
        small="small", output="scores", kind="logits", temperature=1.0, threshold=0.9, max_accuracy_drop=0.01
    )
    made = write_artifact(small, large, rule, name=name, version="1", folder=folder / "artifact")
    return version(made.folder / "l.onnx", name, folder=made.folder, artifact_digest=made.digest)


async def test_a_slot_that_changes_keeps_no_other_file_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    changing, standing = artifact(tmp_path / "a", "a", 12), artifact(tmp_path / "b", "b", 8)
    entries = [
        {entry.sha256 for entry in open_folder(one.folder).manifest.files.values()}  # type: ignore[arg-type]
        for one in (changing, standing)
    ]
    changing = dataclasses.replace(changing, artifact_digest="0" * 64)  # the slot holds another one by now
    answering = SimpleNamespace(versions=lambda: [changing, standing], named={"a": changing, "b": standing}.get)
    calls = _Calls(answering, lambda _request, _right: None)  # type: ignore[arg-type]

    async def sent(sha256: str) -> int:
        request = make_mocked_request("GET", f"/v2/hybrid/blobs/{sha256}", match_info={"sha256": sha256})
        return (await calls.send_file(request)).status

    assert await sent(min(entries[1])) == 200
    with pytest.raises(Warming) as told:
        await sent(min(entries[0] - entries[1]))
    assert told.value.fields["retry_after_s"] > 0
    listed = await calls.list_models(make_mocked_request("GET", "/v2/hybrid/models"))
    assert [one["name"] for one in msgspec.json.decode(listed.body)["models"]] == ["b"]  # type: ignore[attr-defined]
    answering.versions = lambda: [standing]
    with pytest.raises(NotFound):
        await sent("0" * 64)
