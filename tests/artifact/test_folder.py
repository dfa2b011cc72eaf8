"""Artifacts on a disk: bare models, folders, zips; damage, extra files and hostile archives are refused."""

import io
import os
import shutil
import stat
import struct
import tracemalloc
import zipfile

import onnxruntime as ort
import pytest

from hybrid.artifact.attachments import attach, attachment_of, attachments_in
from hybrid.artifact.digest import model_digest
from hybrid.artifact.folder import from_onnx, open_folder, verify, write_folder
from hybrid.artifact.opening import open_artifact
from hybrid.artifact.signature import Signature, key_id, new_private_key, public_key_of, sign
from hybrid.artifact.signature import verify as verify_signature
from hybrid.artifact.stored_zip import pack, unpack
from hybrid.errors import BadMessage, CorruptContent, Forbidden, ModelInvalid, StorageError, TooLarge


@pytest.fixture
def artifact(make_external):
    return from_onnx(make_external("w.bin", "deep/v.bin"), "net", "1")


def test_a_bare_model_is_an_artifact_without_a_copy(make_external):
    path = make_external("w.bin")
    (path.parent / "unrelated.txt").write_text("lies in the same folder")
    artifact = from_onnx(path, "net", "7", sequence=3)
    assert artifact.model_path == path
    assert artifact.manifest.model_digest == model_digest(path)
    assert set(artifact.manifest.files) == {"net.onnx", "w.bin"}
    assert [variant.id for variant in artifact.manifest.variants] == ["original"]
    verify(artifact)
    assert not (path.parent / "manifest.json").exists()


@pytest.mark.parametrize("way", ["folder", "zip"])
def test_both_containers_give_the_same_artifact_and_run(artifact, tmp_path, way):
    signed = artifact.signed(sign(artifact.manifest_bytes, new_private_key()))
    if way == "folder":
        write_folder(signed, tmp_path / "out")
        opened = open_artifact(tmp_path / "out")
    else:
        pack(signed, tmp_path / "out.zip")
        opened = open_artifact(tmp_path / "out.zip")
    assert opened.manifest_bytes == artifact.manifest_bytes
    assert opened.digest == artifact.digest
    assert opened.signature == signed.signature
    assert model_digest(opened.model_path) == artifact.manifest.model_digest
    verify(opened)
    assert ort.InferenceSession(opened.model_path).get_inputs()[0].name == "x"


def test_the_same_artifact_packs_to_the_same_bytes(artifact, tmp_path):
    for name in ("a.zip", "b.zip"):
        pack(artifact, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[0] == "manifest.json"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_zip_made_by_hand_is_taken(artifact, tmp_path):
    folder = write_folder(artifact, tmp_path / "by-hand").folder
    with zipfile.ZipFile(tmp_path / "hand.zip", "w") as archive:
        archive.mkdir("deep")
        for path in folder.rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    assert open_artifact(tmp_path / "hand.zip").digest == artifact.digest


def test_damage_extra_and_missing_files_are_named(artifact, tmp_path):
    folder = write_folder(artifact, tmp_path / "out").folder
    weights = folder / "deep" / "v.bin"
    kept = weights.read_bytes()

    weights.write_bytes(bytes([kept[0] ^ 1]) + kept[1:])
    with pytest.raises(CorruptContent, match=r"v\.bin"):
        verify(open_artifact(folder))
    weights.write_bytes(kept[:-1])
    with pytest.raises(ModelInvalid, match=r"v\.bin"):
        open_artifact(folder)
    weights.unlink()
    with pytest.raises(ModelInvalid, match=r"v\.bin"):
        open_artifact(folder)
    weights.symlink_to(artifact.path_of("deep/v.bin"))
    with pytest.raises(ModelInvalid, match=r"v\.bin"):
        open_artifact(folder)
    weights.unlink()
    weights.write_bytes(kept)
    (folder / "deep" / "extra.bin").write_bytes(b"x")
    with pytest.raises(ModelInvalid, match=r"deep/extra\.bin"):
        open_artifact(folder)


def test_every_flipped_bit_of_the_weights_is_found(artifact, tmp_path):
    folder = write_folder(artifact, tmp_path / "out").folder
    weights = folder / "w.bin"
    kept = weights.read_bytes()
    opened = open_artifact(folder)
    for position in range(0, len(kept), 511):
        weights.write_bytes(kept[:position] + bytes([kept[position] ^ 0x10]) + kept[position + 1 :])
        with pytest.raises(CorruptContent):
            verify(opened)


def test_writing_leaves_nothing_when_a_source_changed(artifact, tmp_path):
    artifact.path_of("w.bin").write_bytes(bytes(8192))
    with pytest.raises(CorruptContent):
        write_folder(artifact, tmp_path / "out" / "net")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_artifact_is_said_so(tmp_path, small_model):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none", small_model):
        with pytest.raises(ModelInvalid) as caught:
            open_artifact(path)
        assert str(path) in str(caught.value)


# Hostile zips.


def _zip(tmp_path, artifact, change):
    """A zip of the artifact after `change(archive, members)` wrote it its own way."""
    members = {"manifest.json": artifact.manifest_bytes} | {
        name: artifact.path_of(name).read_bytes() for name in artifact.manifest.files
    }
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w") as archive:
        change(archive, members)
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _climbing(archive, members):
    archive.writestr("../outside.txt", b"x")


def _absolute(archive, members):
    archive.writestr("/tmp/outside.txt", b"x")


def _link(archive, members):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def _listed_link(archive, members):
    info = zipfile.ZipInfo("w.bin")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, members.pop("w.bin"))


def _device(archive, members):
    info = zipfile.ZipInfo("device")
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    archive.writestr(info, b"")


def _double(archive, members):
    archive.writestr("w.bin", b"other")
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("w.bin", members.pop("w.bin"))


def _compressed(archive, members):
    archive.writestr("w.bin", members.pop("w.bin"), zipfile.ZIP_DEFLATED)


def _bomb(archive, members):
    archive.writestr("bomb", bytes(50 << 20), zipfile.ZIP_DEFLATED)


def _extra(archive, members):
    archive.writestr("extra.bin", b"x")


def _missing(archive, members):
    del members["w.bin"]


def _short(archive, members):
    members["w.bin"] = members["w.bin"][:-1]


def _no_manifest(archive, members):
    del members["manifest.json"]


def _large_attachment(archive, members):
    archive.writestr(f"attachments/report/original/{'0' * 64}.json", bytes((16 << 20) + 1))


CHANGES = [
    _climbing, _absolute, _link, _listed_link, _device, _double, _compressed, _bomb, _extra, _missing, _short,
    _no_manifest, _large_attachment,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_hostile_zip_is_refused_and_leaves_nothing(artifact, tmp_path, cache, change):
    path = _zip(tmp_path, artifact, change)
    before = sorted(item for item in tmp_path.rglob("*"))
    with pytest.raises(ModelInvalid) as caught:
        open_artifact(path)
    assert str(path) in str(caught.value)
    assert sorted(item for item in tmp_path.rglob("*")) == before


def test_a_zip_with_other_bytes_is_corrupt(artifact, tmp_path, cache):
    def change(archive, members):
        members["w.bin"] = bytes(len(members["w.bin"]))

    with pytest.raises(CorruptContent, match=r"w\.bin"):
        open_artifact(_zip(tmp_path, artifact, change))
    assert list((cache / "unpacked").iterdir()) == []


def test_a_name_that_hides_behind_a_zero_byte_is_refused(artifact, tmp_path):
    path = _zip(tmp_path, artifact, lambda archive, members: None)
    data = path.read_bytes().replace(b"deep/v.bin", b"w.bin\0.bin")
    path.write_bytes(data)
    with pytest.raises((ModelInvalid, CorruptContent)):
        open_artifact(path)


def test_overlapping_entries_are_refused(artifact, tmp_path):
    """Two central entries that share one local file: more bytes come out than the file has."""
    path = tmp_path / "overlap.zip"
    pack(artifact, path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    at = data.rindex(b"net.onnx") - 46
    struct.pack_into("<LL", data, at + 20, path.stat().st_size, path.stat().st_size)
    path.write_bytes(data)
    with pytest.raises((ModelInvalid, CorruptContent)):
        open_artifact(path)
    assert infos["net.onnx"].file_size < path.stat().st_size


@pytest.mark.parametrize("keep", [0, 1, 50, -30, -1])
def test_a_cut_zip_is_refused(artifact, tmp_path, keep):
    path = tmp_path / "cut.zip"
    pack(artifact, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((ModelInvalid, CorruptContent)):
        open_artifact(path)


def test_unpacking_twice_finds_the_first(artifact, tmp_path):
    pack(artifact, tmp_path / "a.zip")
    first = unpack(tmp_path / "a.zip", tmp_path / "under")
    inode = first.model_path.stat().st_ino
    assert unpack(tmp_path / "a.zip", tmp_path / "under").model_path.stat().st_ino == inode


# Signatures and attachments.


def test_signatures_are_over_exact_bytes(artifact):
    private = new_private_key()
    public = public_key_of(private)
    trusted = {key_id(public): public}
    signature = sign(artifact.manifest_bytes, private)
    assert verify_signature(artifact.manifest_bytes, signature, trusted) == key_id(public)
    assert Signature.of_text(signature.text) == signature
    assert Signature.of_file_bytes(signature.file_bytes) == signature

    with pytest.raises(CorruptContent):
        verify_signature(artifact.manifest_bytes + b" ", signature, trusted)
    with pytest.raises(Forbidden):
        verify_signature(artifact.manifest_bytes, None, trusted)
    with pytest.raises(Forbidden):
        verify_signature(artifact.manifest_bytes, sign(artifact.manifest_bytes, new_private_key()), trusted)
    other = public_key_of(new_private_key())
    with pytest.raises(Forbidden):
        verify_signature(artifact.manifest_bytes, signature, {key_id(public): other})


@pytest.mark.parametrize(
    "text", ["", "x", "0123456789abcdef:", "0123456789abcdef:AAAA", ":" + "A" * 88, "zz" * 8 + ":" + "A" * 88]
)
def test_what_is_no_signature_is_refused(text):
    with pytest.raises(BadMessage):
        Signature.of_text(text)


def test_another_algorithm_is_refused():
    signature = sign(b"x", new_private_key())
    with pytest.raises(BadMessage, match="none"):
        Signature.of_file_bytes(signature.file_bytes.replace(b"ed25519", b"none"))


def test_attachments_belong_to_model_and_variant(artifact, tmp_path):
    folder = write_folder(artifact, tmp_path / "out").folder
    digest = artifact.manifest.model_digest
    content = b'{"kind":"calibration","model_digest":"%s","variant":"original","drop":0.01}' % digest.encode()
    private = new_private_key()
    attach(folder, attachment_of(content, sign(content, private)))
    attach(folder, attachment_of(content.replace(digest.encode(), b"0" * 64)))

    assert open_artifact(folder).digest == artifact.digest
    [found] = attachments_in(folder, digest, "calibration")
    assert found.content == content
    public = public_key_of(private)
    assert verify_signature(content, found.signature, {key_id(public): public})
    assert attachments_in(folder, digest, "profile") == ()

    moved = folder / "attachments/calibration/other"
    shutil.copytree(folder / "attachments/calibration/original", moved)
    broken = []
    assert attachments_in(folder, digest, "calibration", broken=lambda *told: broken.append(told)) == (found,)
    assert {path.parent for path, _ in broken} == {moved}
    assert {type(error) for _, error in broken} == {CorruptContent}


def test_a_broken_attachment_costs_only_itself_and_a_large_one_is_not_read(artifact, tmp_path):
    """Two gigabytes, a pipe that nobody writes to, a folder, a link to nowhere, a signature that is none."""
    folder = write_folder(artifact, tmp_path / "out").folder
    content = (
        b'{"kind":"calibration","model_digest":"%s","variant":"original"}' % artifact.manifest.model_digest.encode()
    )
    path = attach(folder, attachment_of(content))
    with (path.parent / "2.json").open("wb") as large:
        large.truncate(2 << 30)
    os.mkfifo(path.parent / "3.json")
    (path.parent / "4.json").mkdir()
    (path.parent / "5.json").symlink_to("nowhere")
    other = attach(folder, attachment_of(content + b" "))
    other.with_name(other.name + ".sig").write_bytes(bytes(5000))
    (path.parent / "6.json").write_bytes(b"[" * 100_000)
    tracemalloc.start()
    broken = []
    found = attachments_in(
        folder, artifact.manifest.model_digest, "calibration", broken=lambda *told: broken.append(told)
    )
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert [attachment.content for attachment in found] == [content]
    assert {path.name for path, _ in broken} == {"2.json", "3.json", "4.json", "5.json", "6.json", other.name}


def test_papers_of_an_artifact_that_are_no_plain_files_are_refused_and_not_waited_for(artifact, tmp_path):
    folder = write_folder(artifact, tmp_path / "out").folder
    os.mkfifo(folder / "manifest.sig")
    with pytest.raises(BadMessage, match="no plain file"):
        open_folder(folder)
    (folder / "manifest.sig").unlink()
    with (folder / "manifest.sig").open("wb") as large:
        large.truncate(2 << 30)
    with pytest.raises(TooLarge):
        open_folder(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"kind":"other","model_digest":"","variant":""}', b"[1]"])
def test_what_is_no_attachment_is_refused(content):
    with pytest.raises(BadMessage):
        attachment_of(content)


def test_a_place_that_cannot_be_written_is_a_storage_error(artifact, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        write_folder(artifact, tmp_path / "file" / "out")
    with pytest.raises(StorageError):
        pack(artifact, tmp_path / "file" / "out.zip")
