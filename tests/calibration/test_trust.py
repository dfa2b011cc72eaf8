"""Whose word permits a lossy codec: the keys that the user trusts, and the publisher of the artifact; nobody else's."""

import shutil
import stat

import msgspec
import pytest

from hybrid.artifact.attachments import attach, attachment_of
from hybrid.artifact.folder import from_onnx, open_folder, write_folder, write_papers
from hybrid.artifact.publishers import (
    config_dir,
    create_key,
    own_key_path,
    parse_public_key,
    publishers,
    read_key,
    trust,
    trusted_keys,
)
from hybrid.artifact.signature import Signature, key_id, new_private_key, public_key_of, sign
from hybrid.calibration.calibrate import as_attachment
from hybrid.calibration.permits import CalibrationFinder, own_folder
from hybrid.calibration.record import Calibration, Cell, parse_calibration
from hybrid.errors import BadMessage, Conflict, Forbidden, HybridError, NotFound, TooLarge
from tests import small_models

SHAPES = '{"x":[1,64]}'
CUT = "0123456789abcdef"


def cell(cut="", codec="q8", drop_high=0.004, **more):
    return Cell(cut=cut, codec=codec, n=500, drop=0.0, drop_low=0.0, drop_high=drop_high, **more)


def calibration(digest, *cells, **more):
    given = {"model_digest": digest, "shape_key": SHAPES, "metric": "agreement", "n_samples": 500, "made_s": 1.0}
    return Calibration(**(given | {"data_digest": "d" * 64, "cells": cells or (cell(),)} | more))


@pytest.fixture
def artifact(tmp_path):
    bare = from_onnx(small_models.mlp(tmp_path / "mlp.onnx"), "mlp", "1")
    return write_folder(bare, tmp_path / "artifact")


@pytest.fixture
def finder(artifact):
    """Looks at what was put beside the model and into the user's folder, each time anew."""

    def look():
        found = CalibrationFinder(artifact.model_path, artifact.manifest.model_digest)
        found.look()
        return found

    return look


def put(artifact, attachment):
    attach(artifact.folder, attachment)


def permitted(finder):
    found = finder()
    return {codec: found.drop(SHAPES, "", codec) for codec in found.codecs(SHAPES, "")}


def test_the_users_own_key_permits(artifact, finder, own_key):
    attach(
        own_folder(artifact.manifest.model_digest), as_attachment(calibration(artifact.manifest.model_digest), own_key)
    )
    assert permitted(finder) == {"q8": 0.004, "q8z": 0.004}


def test_an_unsigned_calibration_permits_nothing(artifact, finder, own_key):
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest), None))
    assert permitted(finder) == {}


def test_a_strangers_signature_permits_nothing_until_the_user_trusts_it(artifact, finder, monkeypatch):
    stranger = new_private_key()
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest), stranger))
    assert permitted(finder) == {}
    monkeypatch.setenv("HYBRID_PUBLISHERS", public_key_of(stranger).hex())
    assert permitted(finder) == {"q8": 0.004, "q8z": 0.004}
    monkeypatch.delenv("HYBRID_PUBLISHERS")
    trust(public_key_of(stranger), "somebody")
    assert permitted(finder) == {"q8": 0.004, "q8z": 0.004}


def test_a_session_that_is_open_takes_a_word_as_soon_as_its_key_is_trusted(artifact, finder):
    """What was refused is remembered by its digest alone, and looked at again when another key is trusted."""
    stranger = new_private_key()
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest), stranger))
    found = finder()
    assert not found.look()
    assert [len(stamp) for stamp in found._refused] == [32]
    trust(public_key_of(new_private_key()), "another one")
    assert not found.look()
    trust(public_key_of(stranger), "somebody")
    assert found.look()
    assert set(found.codecs(SHAPES, "")) == {"q8", "q8z"}
    assert not found.look()


def test_what_is_refused_or_broken_is_said_once(artifact, finder, caplog):
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest), new_private_key()))
    (artifact.folder / "attachments" / "calibration" / "original" / "x.json").write_bytes(b"{")
    found = finder()
    assert len(caplog.messages) == 2
    for _ in range(3):
        assert not found.look()
    assert len(caplog.messages) == 2


def test_the_memory_for_what_is_refused_has_an_end(artifact, finder, monkeypatch):
    monkeypatch.setattr("hybrid.calibration.permits._MOST_REFUSED", 5)
    found = finder()
    for number in range(12):
        word = calibration(artifact.manifest.model_digest, made_s=float(number))
        assert not found._take([as_attachment(word, new_private_key())])
    assert len(found._refused) == 2


def test_content_that_was_changed_after_signing_permits_nothing(artifact, finder, own_key):
    signed = as_attachment(calibration(artifact.manifest.model_digest, cell(drop_high=0.3)), own_key)
    better = signed.content.replace(b'"drop_high":0.3', b'"drop_high":0.001')
    assert better != signed.content
    put(artifact, attachment_of(better, signed.signature))
    assert permitted(finder) == {}


def test_a_signature_under_a_trusted_name_that_is_not_that_keys_permits_nothing(artifact, finder, own_key):
    content = calibration(artifact.manifest.model_digest, publisher=public_key_of(own_key).hex()).content
    forged = Signature(key_id=key_id(public_key_of(own_key)), signature=sign(content, new_private_key()).signature)
    put(artifact, attachment_of(content, forged))
    assert permitted(finder) == {}


@pytest.mark.parametrize("more", [{"model_digest": "e" * 64}, {"variant": "int8"}, {"shape_key": '{"x":[2,64]}'}])
def test_a_calibration_of_something_else_permits_nothing_here(artifact, own_key, more):
    """Handed in directly as a gateway could: folders sort out other digests before."""
    found = CalibrationFinder(artifact.model_path, artifact.manifest.model_digest)
    found.look()
    assert found._take([as_attachment(calibration("d" * 64), own_key)]) is False
    found._take([as_attachment(calibration(artifact.manifest.model_digest, **more), own_key)])
    assert found.codecs(SHAPES, "") == ()
    assert found.drop(SHAPES, "", "q8") is None


def test_the_artifacts_own_publisher_permits(artifact, finder):
    publisher = new_private_key()
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest), publisher))
    assert permitted(finder) == {}
    write_papers(artifact.signed(sign(artifact.manifest_bytes, publisher)), artifact.folder)
    assert permitted(finder) == {"q8": 0.004, "q8z": 0.004}


def test_a_key_that_only_calls_itself_the_publishers_permits_nothing(artifact, finder):
    """The manifest names its key by id: whoever brings another key under that id must have signed the manifest too."""
    publisher, other = new_private_key(), new_private_key()
    write_papers(artifact.signed(sign(artifact.manifest_bytes, publisher)), artifact.folder)
    claimed = calibration(artifact.manifest.model_digest, publisher=public_key_of(publisher).hex())
    forged = Signature(key_id=key_id(public_key_of(publisher)), signature=sign(claimed.content, other).signature)
    put(artifact, attachment_of(claimed.content, forged))
    assert permitted(finder) == {}


def test_a_manifest_whose_signature_is_false_vouches_for_nobody(artifact, finder):
    publisher = new_private_key()
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest), publisher))
    false = Signature(key_id=key_id(public_key_of(publisher)), signature=bytes(64))
    write_papers(artifact.signed(false), artifact.folder)
    assert permitted(finder) == {}


def test_a_model_beside_the_artifact_is_not_the_artifacts(artifact, tmp_path):
    """The publisher of a folder says nothing about another file that lies in it."""
    publisher = new_private_key()
    write_papers(artifact.signed(sign(artifact.manifest_bytes, publisher)), artifact.folder)
    other = shutil.copy(small_models.mlp(tmp_path / "other.onnx", seed=5), artifact.folder / "attachments-other.onnx")
    put(artifact, as_attachment(calibration("f" * 64), publisher))
    found = CalibrationFinder(artifact.folder / "attachments-other.onnx", "f" * 64)
    found.look()
    assert other
    assert found.codecs(SHAPES, "") == ()


def test_the_newest_word_of_a_publisher_counts_and_the_worst_of_several(artifact, finder, own_key):
    digest, other = artifact.manifest.model_digest, new_private_key()
    put(artifact, as_attachment(calibration(digest, cell(drop_high=0.02), made_s=1.0), own_key))
    put(artifact, as_attachment(calibration(digest, cell(drop_high=0.003), made_s=2.0), own_key))
    assert permitted(finder)["q8"] == 0.003
    trust(public_key_of(other))
    put(artifact, as_attachment(calibration(digest, cell(drop_high=0.008), made_s=1.5), other))
    assert permitted(finder)["q8"] == 0.008


def test_lossless_and_unknown_codecs_need_no_permit(artifact, finder, own_key):
    cells = (cell(codec="lossless", is_lossy=False), cell(codec="telepathy"), cell(codec="jpeg"), cell(CUT, "fp16"))
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest, *cells), own_key))
    assert set(permitted(finder)) == {"jpeg"}
    assert finder().codecs(SHAPES, CUT) == ("fp16",)


def test_a_gain_counts_as_no_drop(artifact, finder, own_key):
    gained = Cell(cut="", codec="fp16", n=500, drop=-0.02, drop_low=-0.04, drop_high=-0.01)
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest, gained), own_key))
    assert permitted(finder) == {"fp16": 0.0}


def test_a_damaged_attachment_costs_only_itself(artifact, finder, own_key):
    attach(
        own_folder(artifact.manifest.model_digest), as_attachment(calibration(artifact.manifest.model_digest), own_key)
    )
    folder = artifact.folder / "attachments" / "calibration" / "original"
    folder.mkdir(parents=True)
    (folder / f"{'0' * 64}.json").write_bytes(b"{")
    assert permitted(finder) == {"q8": 0.004, "q8z": 0.004}


@pytest.mark.parametrize(
    "more",
    [
        {"schema": 2},
        {"shape_key": "{}x"},
        {"data_digest": "x"},
        {"cells": (cell(), cell())},
        {"cells": (Cell(cut="", codec="q8", n=0, drop=0.0, drop_low=0.0, drop_high=0.0),)},
        {"cells": (Cell(cut="", codec="q8", n=9, drop=0.5, drop_low=0.0, drop_high=0.1),)},
        {"cells": (Cell(cut="", codec="q" * 999, n=9, drop=0.0, drop_low=0.0, drop_high=0.1),)},
    ],
)
def test_a_calibration_that_contradicts_itself_is_refused(more):
    with pytest.raises(HybridError):
        parse_calibration(calibration("a" * 64, **more).content)


def test_a_large_one_is_refused_unread():
    with pytest.raises(TooLarge):
        parse_calibration(b" " * (2 << 20))


# -- keys


def test_a_new_key_is_its_owners_alone_and_never_overwritten(tmp_path):
    path = tmp_path / "deep" / "publisher.key"
    public_key = create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_key_of(read_key(path)) == public_key
    before = path.read_bytes()
    with pytest.raises(Conflict):
        create_key(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["publisher.key"]


def test_a_key_that_others_may_read_is_refused(own_key):
    own_key_path().chmod(0o644)
    with pytest.raises(Forbidden, match="chmod 600"):
        read_key(own_key_path())


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "some.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(BadMessage):
        read_key(path)


def test_a_key_of_another_kind_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    path = tmp_path / "ec.key"
    path.touch(0o600)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(*form))
    with pytest.raises(BadMessage, match="Ed25519"):
        read_key(path)
    with pytest.raises(NotFound):
        read_key(tmp_path / "nowhere")


def test_who_is_trusted(tmp_path, monkeypatch, own_key):
    first, second, third = (public_key_of(new_private_key()) for _ in range(3))
    (tmp_path / "team.txt").write_text(f"# the team\n{first.hex()} anna\n\n{second.hex()}  # bert\n")
    monkeypatch.setenv("HYBRID_PUBLISHERS", f"{tmp_path / 'team.txt'}, {third.hex()}")
    assert set(trusted_keys().values()) == {first, second, third, public_key_of(own_key)}
    assert trust(first)
    assert not trust(first)
    origins = {known.public_key: known.origin for known in publishers()}
    assert origins[public_key_of(own_key)] == str(own_key_path())
    assert len(publishers()) == 4
    assert (config_dir() / "publishers.txt").read_text() == f"{first.hex()}\n"


@pytest.mark.parametrize("value", ["zz", "/nowhere/at/all", "0" * 63])
def test_a_setting_that_names_nobody_is_said(monkeypatch, value):
    monkeypatch.setenv("HYBRID_PUBLISHERS", value)
    with pytest.raises(BadMessage, match="HYBRID_PUBLISHERS"):
        trusted_keys()
    with pytest.raises(BadMessage):
        parse_public_key(value)


def test_a_broken_setting_permits_nothing_and_breaks_nothing(artifact, finder, own_key, monkeypatch):
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest), own_key))
    monkeypatch.setenv("HYBRID_PUBLISHERS", "zz")
    assert permitted(finder) == {}


def test_an_artifact_with_attachments_still_opens(artifact, own_key):
    put(artifact, as_attachment(calibration(artifact.manifest.model_digest), own_key))
    assert open_folder(artifact.folder).digest == artifact.digest
    assert msgspec.json.decode(as_attachment(calibration("a" * 64), own_key).content)["publisher"]
