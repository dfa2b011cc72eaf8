"""Ways with files of their own: as the manifest declares them, and laid out in an artifact's folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from hybrid.artifact.cache import fresh_sha256
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.manifest import SCHEMA, FileEntry, Manifest, Split
from hybrid.artifact.splits import ROLES, Role, found_splits
from hybrid.compress.splits.ways import LEARNED, Head, ShippedWay, Way, path_of, way_id
from hybrid.partition.cut import Cut

FILE_OF: Mapping[Role, str] = {
    "head": "head.onnx",
    "encoder": "encoder.onnx",
    "decoder": "decoder.onnx",
    "prior": "prior.json",
}


def filed(
    cut: Cut,
    head: Head,
    codec: str,
    *,
    shape_key: str,
    places: Mapping[Role, Path],
    rate: int = 0,
    note: str = "",
) -> Way:
    """A way with these files.

    Args:
        cut: where.
        head: what the device computes.
        codec: carries what crosses, or `learned`.
        shape_key: text of the shapes that it is for.
        places: where each file lies.
        rate: counts the bottlenecks of one training.
        note: a remark of who made it.
    """
    split_id = way_id(cut, head, codec, rate)
    # Several ways share a head, or a bottleneck: each lies in the artifact once.
    folders: dict[Role, str] = dict.fromkeys(ROLES, f"{LEARNED}-{cut.id[:8]}-{rate}") | {"head": f"int8-{cut.id[:8]}"}
    names = {role: f"splits/{folders[role]}/{FILE_OF[role]}" for role in ROLES if role in places}
    content = {
        names[role]: FileEntry(sha256=fresh_sha256(places[role]), size=places[role].stat().st_size) for role in names
    }
    entry = Split(
        id=split_id,
        cut=cut.id,
        shape_key=shape_key,
        files=tuple(names.values()),
        carrier="lossless" if codec == LEARNED else codec,
        head=names.get("head"),
        encoder=names.get("encoder"),
        decoder=names.get("decoder"),
        prior=names.get("prior"),
    )
    manifest = Manifest(
        schema=SCHEMA,
        name="splits",
        version="1",
        sequence=1,
        model_digest="",
        files=content,
        variants=(),
        splits=(entry,),
    )
    by_name = {name: places[role] for role, name in names.items()}
    (files,) = found_splits(manifest, lambda name, _entry: by_name[name])
    return Way(
        cut=cut, head=head, codec=codec, entry=entry, files=files, content=content, notes=(note,) if note else ()
    )


def laid_out(shipped: Iterable[ShippedWay], folder: Path, entries: dict[str, FileEntry]) -> tuple[Split, ...]:
    """Copies the files into an artifact's folder; adds to `entries`, and gives what the manifest declares."""
    declared = []
    for way in (one.way for one in shipped):
        if way.entry is None:
            continue
        for name, entry in way.content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, path_of(way, name).read_bytes())
            entries[name] = entry
        declared.append(way.entry)
    return tuple(declared)
