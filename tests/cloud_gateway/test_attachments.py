"""What a gateway keeps beside its models is bounded, and no device crowds out the others."""

import os
import signal
from pathlib import Path

import msgspec
import pytest

from cloud_gateway.attachment_store import (
    MAX_OTHERS,
    MAX_PROFILES,
    MAX_SUBJECTS,
    MAX_SUBJECTS_OF_TOKEN,
    AttachmentStore,
)
from hybrid.artifact.attachments import Attachment, attachment_of
from hybrid.artifact.signature import new_private_key, sign
from hybrid.errors import BadMessage, DiskFull, HybridError, TooLarge
from hybrid.profile.record import Profile, Setting, Timing

DIGEST = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> AttachmentStore:
    return AttachmentStore(tmp_path)


def profile(machine: str = "one", seconds: float = 0.01) -> Profile:
    setting = Setting(engine="onnxruntime 1.0", provider="CPUExecutionProvider", n_threads=0, machine=machine)
    timing = Timing(median_s=seconds, low_s=seconds)
    return Profile(model_digest=DIGEST, shape_key='{"x":[1,3]}', setting=setting, whole=timing)


def said(known: Profile) -> Attachment:
    return attachment_of(known.content)


def calibration(number: int) -> Attachment:
    word = {
        "kind": "calibration", "schema": 1, "model_digest": DIGEST, "variant": "original", "shape_key": '{"x":[1,3]}',
        "metric": "agreement", "n_samples": 9, "data_digest": "d" * 64, "cells": [], "made_s": float(number),
    }  # fmt: skip
    return attachment_of(msgspec.json.encode(word))


def test_a_token_has_one_word_on_a_subject(store: AttachmentStore) -> None:
    store.put(said(profile(seconds=0.01)), "anna")
    store.put(said(profile(seconds=0.02)), "anna")
    store.put(said(profile(seconds=0.03)), "bert")
    found = store.find(DIGEST, "profile", "original", profile().subject)
    assert {attachment.content for attachment in found} == {
        profile(seconds=0.02).content,
        profile(seconds=0.03).content,
    }


def test_a_subject_keeps_the_newest_profiles(store: AttachmentStore, tmp_path: Path) -> None:
    for number in range(MAX_PROFILES + 4):
        store.put(said(profile(seconds=0.01 + number / 1000)), f"token{number}")
        for path in tmp_path.rglob(f"token{number}.json"):
            os.utime(path, (number, number))
    found = store.find(DIGEST, "profile", "original", profile().subject)
    assert len(found) == MAX_PROFILES
    assert profile(seconds=0.01).content not in {attachment.content for attachment in found}


def test_a_token_that_brings_many_subjects_crowds_out_only_its_own(store: AttachmentStore, tmp_path: Path) -> None:
    store.put(said(profile("honest")), "anna")
    for number in range(MAX_SUBJECTS + 3):
        store.put(said(profile(f"made up {number}")), "mallory")
    kept = store.find(DIGEST, "profile", "original")
    assert len(kept) == 1 + MAX_SUBJECTS_OF_TOKEN
    assert profile("honest").content in {attachment.content for attachment in kept}
    assert len(list(tmp_path.rglob("*.json"))) == len(kept)


def test_a_token_cannot_fill_the_disk_with_made_up_variants(store: AttachmentStore, tmp_path: Path) -> None:
    store.put(said(profile("honest")), "anna")
    for number in range(4 * MAX_SUBJECTS_OF_TOKEN):
        word = msgspec.json.decode(profile(f"made up {number}").content) | {"variant": f"v{number}"}
        store.put(attachment_of(msgspec.json.encode(word)), "mallory")
    assert len(list(tmp_path.rglob("mallory.json"))) == MAX_SUBJECTS_OF_TOKEN
    assert len(store.find(DIGEST, "profile", "original")) == 1


def test_calibrations_are_bounded_too(store: AttachmentStore) -> None:
    for number in range(MAX_OTHERS + 5):
        store.put(calibration(number), "publisher")
    assert len(store.find(DIGEST, "calibration", "original")) == MAX_OTHERS


def test_a_signature_lies_beside_its_content_and_leaves_with_it(store: AttachmentStore, tmp_path: Path) -> None:
    word = calibration(1)
    signed = attachment_of(word.content, sign(word.content, new_private_key()))
    store.put(signed, "publisher")
    assert store.find(DIGEST, "calibration", "original") == (signed,)
    for number in range(2, MAX_OTHERS + 5):
        store.put(calibration(number), "publisher")
        for path in tmp_path.rglob("*.json"):
            if path.read_bytes() == signed.content:
                os.utime(path, (1, 1))
    assert list(tmp_path.rglob("*.sig")) == []


def test_an_answer_ends_before_it_is_too_large_and_reads_no_further(
    store: AttachmentStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(6):
        store.put(calibration(number), "publisher")
        for path in tmp_path.rglob("*.json"):
            if path.read_bytes() == calibration(number).content:
                os.utime(path, (number, number))
    oldest = min(tmp_path.rglob("*.json"), key=lambda path: path.stat().st_mtime)
    oldest.write_bytes(b"{" * len(calibration(0).content))
    os.utime(oldest, (0, 0))
    n_bytes = len(calibration(0).content)
    found = store.find(DIGEST, "calibration", "original", most_bytes=3 * n_bytes + 5)
    assert [attachment.content for attachment in found] == [calibration(number).content for number in (5, 4, 3)]
    assert "unreadable" not in caplog.text
    assert len(store.find(DIGEST, "calibration", "original")) == 5
    assert "unreadable" in caplog.text  # it is there for whoever reads that far


def test_all_attachments_together_are_bounded_and_only_profiles_leave(tmp_path: Path) -> None:
    size = len(profile("machine 00").content)
    store = AttachmentStore(tmp_path, max_kept_bytes=20 * size)
    store.put(calibration(1), "publisher")
    for number in range(30):
        store.put(said(profile(f"machine {number:02}")), f"token{number}")
        for path in tmp_path.rglob(f"token{number}.json"):
            os.utime(path, (1e9 + number, 1e9 + number))
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.json")) <= 20 * size
    assert store.find(DIGEST, "calibration", "original") == (calibration(1),)
    kept = {attachment.content for attachment in store.find(DIGEST, "profile", "original")}
    assert profile("machine 29").content in kept
    assert profile("machine 00").content not in kept
    assert len(kept) >= 15
    again = AttachmentStore(tmp_path, max_kept_bytes=20 * size)  # a new start counts what is there
    again.put(said(profile("machine 30")), "token30")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.json")) <= 20 * size


def test_what_publishers_brought_is_never_pushed_out(tmp_path: Path) -> None:
    store = AttachmentStore(tmp_path, max_kept_bytes=3 * len(calibration(1).content))
    for number in range(3):
        store.put(calibration(number), "publisher")
    with pytest.raises(DiskFull, match="at most"):
        store.put(calibration(4), "publisher")
    with pytest.raises(DiskFull, match="at most"):
        store.put(said(profile()), "anna")
    assert len(store.find(DIGEST, "calibration", "original")) == 3


def test_a_full_disk_is_one_error_and_the_one_before_stands(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    store = AttachmentStore(tmp_path)
    signed = attachment_of(profile(seconds=0.01).content, sign(profile(seconds=0.01).content, new_private_key()))
    store.put(signed, "anna")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(DiskFull, match="make room"):
            store.put(said(profile(seconds=0.02)), "anna")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    (found,) = store.find(DIGEST, "profile", "original")
    assert found.content == signed.content
    assert found.signature in (None, signed.signature)
    assert list(tmp_path.rglob(".tmp-*")) == []
    store.put(said(profile(seconds=0.02)), "anna")
    assert store.find(DIGEST, "profile", "original") == (said(profile(seconds=0.02)),)


def test_a_damaged_file_is_left_out(store: AttachmentStore, tmp_path: Path) -> None:
    store.put(calibration(1), "publisher")
    store.put(calibration(2), "publisher")
    next(iter(tmp_path.rglob("*.json"))).write_bytes(b"{")
    assert len(store.find(DIGEST, "calibration", "original")) == 1


@pytest.mark.parametrize(
    "content",
    [
        profile(seconds=-1.0).content,
        profile(seconds=1e12).content,
        calibration(1).content.replace(b'"cells":[]', b'"cells":[{}]'),
        b'{"kind":"report","model_digest":"../../etc/passwd","variant":"original"}',
        b'{"kind":"report","model_digest":"%s","variant":"../x"}' % (b"a" * 64),
        b'{"kind":"gossip","model_digest":"%s","variant":"original"}' % (b"a" * 64),
    ],
)
def test_nonsense_is_not_kept(store: AttachmentStore, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(HybridError):
        store.put(attachment_of(content), "anna")
    assert list(tmp_path.rglob("*.json")) == []


def test_large_ones_are_refused(store: AttachmentStore) -> None:
    report = {"kind": "report", "model_digest": DIGEST, "variant": "original", "text": "x" * (2 << 20)}
    with pytest.raises(TooLarge):
        store.put(attachment_of(msgspec.json.encode(report)), "publisher")


@pytest.mark.parametrize("subject", ["../..", "*", "a" * 15, f"{'0' * 16}.{'0' * 16}.{'0' * 16}", f"{'0' * 16}/x"])
def test_a_search_cannot_leave_its_folder(store: AttachmentStore, subject: str) -> None:
    with pytest.raises(BadMessage):
        store.find(DIGEST, "profile", "original", subject)
