"""Bytes that are not what was signed are never opened: flipped, cut off, extra, linked, or of another version."""

import hashlib
import os
from pathlib import Path
from random import Random

import pytest

from edge_agent.disk import RealDisk
from edge_agent.install.contents import check_content, entries
from hybrid.errors import CorruptContent
from tests.install.box_lab import TRIAL, Box, Fleet, Made, Shelf, committed, live
from tests.reliability.page_cache import File, Image
from tests.reliability.simulated_disk import SimulatedDisk

N_FLIPS = 1000
N_TRUNCATIONS = 100
SLOT = Path("/data/models/net/a")


def prepare(box: Box) -> None:
    box.host.n_good_a_look = 1


@pytest.fixture(scope="module")
def with_one(fleet: Fleet, versions: list[Made]) -> Image:
    image = Image()
    live(
        image, Shelf(*versions), fleet.trust(), versions[0].assigned(trial=TRIAL), until=committed("1"), prepare=prepare
    )
    return image


@pytest.fixture(scope="module")
def with_two(with_one: Image, fleet: Fleet, versions: list[Made]) -> Image:
    """Version 2 answers from slot b, version 1 is its last good one in slot a."""
    image = with_one.copy()
    live(
        image, Shelf(*versions), fleet.trust(), versions[1].assigned(trial=TRIAL), until=committed("2"), prepare=prepare
    )
    return image


def content_of(image: Image, folder: Path) -> list[Path]:
    disk = SimulatedDisk(image, Random(0))
    return [folder / name for name in entries(disk, folder) if disk.size(folder / name) and name != "manifest.sig"]


def change(image: Image, path: Path, at: int | None, length: int | None) -> None:
    node = image.find(path)
    assert isinstance(node, File)
    content = bytearray(node.live)
    if at is not None:
        content[at] ^= 1 << (at % 8)
    node.live[:] = node.durable[:] = content if length is None else content[:length]
    node.pending.clear()


def test_a_thousand_flipped_bits_and_a_hundred_truncations_are_never_opened(
    with_two: Image, fleet: Fleet, versions: list[Made]
) -> None:
    """The answering slot is damaged while the box is off, without a network: the last good version answers."""
    slot, trust, rng = SLOT.with_name("b"), fleet.trust(), Random(11)
    paths = content_of(with_two, slot)
    sizes = {path: SimulatedDisk(with_two, rng).size(path) for path in paths}
    for number in range(N_FLIPS + N_TRUNCATIONS):
        path = rng.choices(paths, weights=[sizes[path] for path in paths])[0]
        image, shelf = with_two.copy(), Shelf(*versions)
        shelf.is_down = True
        at = rng.randrange(sizes[path])
        change(image, path, at if number < N_FLIPS else None, None if number < N_FLIPS else at)
        box = live(image, shelf, trust, until=lambda box: box.install.begun.is_set(), seed=number)
        assert box.host.version() == "1", (number, path, at)
        assert any(".corrupt-" in name for name in box.disk.names(slot.parent))


def test_what_was_damaged_is_fetched_again_and_only_that(with_two: Image, fleet: Fleet, versions: list[Made]) -> None:
    image, shelf = with_two.copy(), Shelf(*versions)
    change(image, SLOT.with_name("b") / "model.onnx", 100, None)
    box = live(image, shelf, fleet.trust(), versions[1].assigned(trial=TRIAL), until=committed("2"), prepare=prepare)
    assert box.host.version() == "2"
    assert box.host.history == ["1", "2"]
    assert shelf.n_sent_bytes == len(versions[1].files["model.onnx"])


def test_a_box_whose_only_version_is_damaged_answers_with_none_and_says_so(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    shelf.is_down = True
    change(image, SLOT / "weights" / "w.bin", 7, None)
    problems: list[str] = []

    def note(box: Box) -> bool:
        problems.extend(problem.code for problem in box.install.problems() if problem.blocks)
        return bool(problems)

    box = live(image, shelf, fleet.trust(), versions[0].assigned(trial=TRIAL), until=note, within_s=20.0)
    assert box.host.version() == ""
    assert "model_unavailable" in problems
    shelf.is_down = False
    box = live(image, shelf, fleet.trust(), versions[0].assigned(trial=TRIAL), until=committed("1"), prepare=prepare)
    assert box.host.version() == "1"


@pytest.mark.parametrize("truncates", [True, False])
def test_damage_on_the_way_is_never_opened_and_mended_where_it_can_be(
    with_one: Image, fleet: Fleet, versions: list[Made], truncates: bool
) -> None:
    """Once damaged: it comes again. Always damaged: the version failed, the old one answers, the next one installs."""
    rng, trust = Random(3), fleet.trust()
    for number in range(30):
        is_once = number % 3 == 0
        shelf, seen = Shelf(*versions), set()

        def damage(sha256: str, data: bytes, is_once: bool = is_once, seen: set[str] = seen) -> bytes:
            if len(data) < 1000 or (is_once and sha256 in seen):
                return data
            seen.add(sha256)
            at = rng.randrange(len(data))
            return data[:at] + (b"" if truncates else bytes([data[at] ^ 1])) + data[at + 1 :]

        shelf.damage = damage
        image = with_one.copy()
        wanted = versions[1].assigned(trial=TRIAL)

        def over(box: Box) -> bool:
            return box.told().phase in ("committed", "failed") and box.told().rollout == "r"

        box = live(
            image,
            shelf,
            trust,
            versions[1].assigned(trial=TRIAL, rollout="r"),
            until=over,
            prepare=prepare,
            within_s=300.0,
        )
        if is_once:
            assert box.host.version() == "2"
            continue
        assert box.host.history == ["1"], box.phases
        assert truncates or box.told().code == "corrupt_content"
        shelf.damage = lambda sha256, data: data
        assert wanted.artifact_digest != versions[2].digest
        box = live(image, shelf, trust, versions[2].assigned(trial=TRIAL), until=committed("3"), prepare=prepare)
        assert box.host.version() == "3"


# -- what may lie in a slot, on a real disk


@pytest.fixture
def slot(tmp_path: Path, versions: list[Made]) -> Path:
    made = versions[0]
    folder = tmp_path / "a"
    for name, data in {**made.files, "manifest.json": made.data}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    check_content(RealDisk(), folder, made.digest, made.manifest)
    return folder


def extra(folder: Path) -> None:
    (folder / "more.so").write_bytes(b"x")


def extra_below(folder: Path) -> None:
    (folder / "weights" / "more.bin").write_bytes(b"x")


def hard_link(folder: Path) -> None:
    os.link(folder / "model.onnx", folder.parent / "second name")


def soft_link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere")


def linked_folder(folder: Path) -> None:
    (folder / "weights").rename(folder.parent / "elsewhere")
    (folder / "weights").symlink_to(folder.parent / "elsewhere", target_is_directory=True)


def pipe(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    os.mkfifo(folder / "labels.txt")


def empty_folder(folder: Path) -> None:
    (folder / "weights" / "nothing").mkdir()


def missing(folder: Path) -> None:
    (folder / "weights" / "w.bin").unlink()


def folder_in_place(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").mkdir()


def half_of_another(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(Random(5).randbytes(3000)[::-1])


def other_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes() + b" ")


TRICKS = (
    extra, extra_below, hard_link, soft_link, linked_folder, pipe, empty_folder, missing, folder_in_place,
    half_of_another, other_manifest,
)  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_a_slot_holds_plain_files_of_its_manifest_and_nothing_else(slot: Path, versions: list[Made], trick) -> None:
    trick(slot)
    with pytest.raises(CorruptContent):
        check_content(RealDisk(), slot, versions[0].digest, versions[0].manifest)


def test_head_and_tail_of_two_versions_never_meet(slot: Path, versions: list[Made]) -> None:
    """Files of the same name and size from another version are another digest."""
    other = versions[2].files["weights/w.bin"]
    assert len(other) == len(versions[0].files["weights/w.bin"])
    (slot / "weights" / "w.bin").write_bytes(other)
    with pytest.raises(CorruptContent, match=r"w\.bin"):
        check_content(RealDisk(), slot, versions[0].digest, versions[0].manifest)


def test_a_copy_shares_no_name_with_its_source(tmp_path: Path) -> None:
    disk = RealDisk()
    disk.append(tmp_path / "one", b"x" * 100_000)
    disk.copy(tmp_path / "one", tmp_path / "below" / "two")
    assert disk.is_plain(tmp_path / "one")
    assert disk.is_plain(tmp_path / "below" / "two")
    assert disk.sha256(tmp_path / "below" / "two") == hashlib.sha256(b"x" * 100_000).hexdigest()
