"""Versions as files: from a gateway, into another one, and onto a box that has no network."""

import hashlib
import json
from pathlib import Path

import pytest

from edge_agent.disk import RealDisk
from edge_agent.follow.bringing import bring
from edge_agent.follow.imports import TRUST, Imports
from edge_agent.trust.identity import BoxIdentity, Enrolment
from edge_agent.trust.machine import Machine
from hybrid.artifact.bundle import pack_bundle, trust_in
from hybrid.artifact.folder import Artifact, from_onnx, write_folder
from hybrid.artifact.opening import open_artifact
from hybrid.artifact.signature import public_key_of, sign
from hybrid.errors import CorruptContent, Forbidden, HybridError, ModelInvalid, NotFound, VersionReplayed
from tests.install.box_lab import Fleet
from tests.live_gateway import LiveGateway
from tests.model_making import make_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "config"))


def artifact(tmp_path: Path, key: bytes | None, version: str = "1", sequence: int = 1, seed: int = 0) -> Artifact:
    made = from_onnx(make_model(tmp_path / f"model {seed}", seed), "net", version, sequence=sequence)
    made = write_folder(made, tmp_path / f"artifact {version} {seed} {key is None}")
    return made if key is None else made.signed(sign(made.manifest_bytes, key))


def box(tmp_path: Path, fleet: Fleet | None) -> tuple[Path, BoxIdentity]:
    data = tmp_path / "box"
    identity = BoxIdentity(data, RealDisk(), Machine(serial="s", machine_id="m", addresses=(), words="w"))
    root = hashlib.sha256(public_key_of(fleet.root)).hexdigest() if fleet is not None else ""
    enrolment = Enrolment(url="", authority_sha256="0" * 64, box_id="0" * 32, root_sha256=root)
    identity.enrolled(enrolment, fleet.bundle() if fleet is not None else None)
    return data, identity


def put(file: Path, data: Path, identity: BoxIdentity):
    return bring(file, data, RealDisk(), identity, lambda: 1.7e9)


def test_a_bundle_is_an_artifact_that_brings_a_trust_bundle(tmp_path: Path, fleet: Fleet) -> None:
    made, envelope = artifact(tmp_path, fleet.publisher), fleet.bundle()
    pack_bundle(made, envelope, tmp_path / "one.hybrid")
    assert trust_in(tmp_path / "one.hybrid") == envelope
    assert open_artifact(tmp_path / "one.hybrid").digest == made.digest
    pack_bundle(made, envelope, tmp_path / "two.hybrid")
    assert (tmp_path / "one.hybrid").read_bytes() == (tmp_path / "two.hybrid").read_bytes()
    pack_bundle(made, None, tmp_path / "three.hybrid")
    assert trust_in(tmp_path / "three.hybrid") is None


def test_a_signed_bundle_is_laid_down_with_its_newer_keys(tmp_path: Path, fleet: Fleet) -> None:
    data, identity = box(tmp_path, fleet)
    envelope = fleet.bundle()
    pack_bundle(artifact(tmp_path, fleet.publisher), envelope, tmp_path / "one.hybrid")
    brought = put(tmp_path / "one.hybrid", data, identity)
    assert brought.has_root
    assert brought.has_new_trust
    assert (data / "imports" / TRUST).read_bytes() == envelope
    assert [one.assigned for one in Imports(data, RealDisk()).all()] == [brought.assigned]
    again = put(tmp_path / "one.hybrid", data, identity)
    assert again.assigned == brought.assigned


@pytest.mark.parametrize(
    "trick", ["unsigned", "unknown", "key of a foreign root", "flipped", "truncated", "text", "nothing", "other zip"]
)
def test_what_is_not_signed_right_is_not_even_unpacked(tmp_path: Path, fleet: Fleet, trick: str) -> None:
    data, identity = box(tmp_path, fleet)
    file, wanted = tmp_path / "one.hybrid", HybridError
    key = {"unsigned": None, "unknown": fleet.other}.get(trick, fleet.publisher)
    envelope = fleet.bundle()
    if trick == "key of a foreign root":
        stranger = Fleet()
        key, envelope = stranger.publisher, stranger.bundle()
    made = artifact(tmp_path, key)
    pack_bundle(made, envelope, file)
    content = file.read_bytes()
    if trick in ("unsigned", "unknown", "key of a foreign root"):
        wanted = Forbidden
    elif trick == "flipped":
        at = content.index(made.model_path.read_bytes()[100:164]) + 30
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        wanted = CorruptContent
    elif trick == "truncated":
        file.write_bytes(content[: len(content) // 2])
        wanted = ModelInvalid
    elif trick == "text":
        file.write_text("no zip at all")
        wanted = ModelInvalid
    elif trick == "nothing":
        file.unlink()
        wanted = NotFound
    else:
        import zipfile

        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("hello.txt", "x")
        wanted = ModelInvalid
    with pytest.raises(wanted):
        put(file, data, identity)
    assert not list((data / "imports").glob("*")) or trick == "flipped"
    assert not Imports(data, RealDisk()).all()
    assert not [path for path in (data / "imports").rglob("*") if path.is_file()]


def test_an_old_version_does_not_come_back_by_a_file(tmp_path: Path, fleet: Fleet) -> None:
    from edge_agent.install.records import Slots
    from edge_agent.install.shelf import Shelf

    data, identity = box(tmp_path, fleet)
    Shelf(RealDisk(), data, lambda: 0.0).save(Slots(name="net", sequence=7))
    pack_bundle(artifact(tmp_path, fleet.publisher), None, tmp_path / "one.hybrid")
    with pytest.raises(VersionReplayed):
        put(tmp_path / "one.hybrid", data, identity)


def test_a_box_without_a_root_takes_what_it_is_given_and_says_so(tmp_path: Path) -> None:
    data, identity = box(tmp_path, None)
    pack_bundle(artifact(tmp_path, None), None, tmp_path / "one.hybrid")
    assert not put(tmp_path / "one.hybrid", data, identity).has_root


@pytest.mark.slow
def test_from_a_gateway_to_a_gateway_and_onto_a_box(tmp_path: Path, fleet: Fleet, hybrid_here) -> None:
    """Signed and pushed, exported, imported into a second gateway, laid down on a box; test_live_trial.py goes on."""
    key = tmp_path / "publisher.pem"
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key.write_bytes(
        Ed25519PrivateKey.from_private_bytes(fleet.publisher).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    key.chmod(0o600)
    data, _ = box(tmp_path, fleet)
    model = make_model(tmp_path / "pushed", 3)
    (tmp_path / "trust.json").write_bytes(fleet.bundle())
    with LiveGateway(tmp_path / "first") as first:
        settings = {"HYBRID_TOKEN": first.token, "HYBRID_GATEWAY": first.url}
        done = hybrid_here("models", "push", str(model), "--name", "net", "--sign", str(key), "--json", **settings)
        assert done.returncode == 0, done.stderr
        done = hybrid_here("fleet", "trust", "set", str(tmp_path / "trust.json"), **settings)
        assert done.returncode == 0, done.stderr
        done = hybrid_here("models", "export", "net:1", "--out", "net.hybrid", "--json", **settings)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)["data"]
        assert told["has_trust"]
        assert told["signed_by"]
        file = Path(told["path"]) if Path(told["path"]).is_absolute() else tmp_path / told["path"]
        assert hybrid_here("models", "export", "net:9", "--out", "x.hybrid", **settings).returncode == 3
    with LiveGateway(tmp_path / "second") as second:
        settings = {"HYBRID_TOKEN": second.token, "HYBRID_GATEWAY": second.url}
        for is_new in (True, False):
            done = hybrid_here("models", "import", str(file), "--json", **settings)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["data"]["is_new"] == is_new
        assert json.loads(done.stdout)["data"]["model"]["signed_by"] == told["signed_by"]
    done = hybrid_here("agent", "import", str(file), "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout)["data"]["agent_runs"]


def test_golden_outputs_are_made_by_a_push_and_found_again(tmp_path: Path, hybrid_here) -> None:
    from edge_agent.install.golden import golden_arrays
    from hybrid.cli.golden_files import with_golden

    model = make_model(tmp_path / "pushed", 4, external=True)
    (tmp_path / "staging").mkdir()
    made = with_golden(from_onnx(model, "net", "1"), tmp_path / "staging", "random", 1e-3)
    golden = made.manifest.golden
    assert golden is not None
    assert golden_arrays(Path.read_bytes, made.folder, golden.outputs)["y"].shape == (1, 64)
    with LiveGateway(tmp_path / "gateway") as gateway:
        settings = {"HYBRID_TOKEN": gateway.token, "HYBRID_GATEWAY": gateway.url}
        words = ("models", "push", str(model), "--name", "net", "--json")
        told = [
            json.loads(hybrid_here(*words, *more, **settings).stdout)["data"]
            for more in ((), ("--golden", "random"), ("--golden", "random"), ("--golden", "random", "--sign", "own"))
        ]
        assert [(one["model"]["version"], one["is_new"]) for one in told] == [
            ("1", True), ("2", True), ("2", False), ("3", True),
        ]  # fmt: skip
        assert len({one["model"]["model_digest"] for one in told}) == 1
        (tmp_path / "x.npz").write_bytes(b"no arrays")
        assert hybrid_here(*words, "--golden", str(tmp_path / "x.npz"), **settings).returncode == 1
