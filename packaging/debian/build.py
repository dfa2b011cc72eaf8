"""Builds the Debian packages hybrid-split, hybrid-agent and hybrid-gateway with dpkg-deb, from this environment.

Design: boxes have no compiler and often no network but their gateway, so the packages hold everything but Python
itself: what this environment has installed for hybrid (the closure of its requirements, by their own records) is copied
into a virtual environment of its own below /usr/lib/hybrid. Two builds from the same environment give the same bytes.
"""

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
HOME: Final = Path("usr/lib/hybrid")
EXTRAS: Final = ("agent", "gateway", "tflite")
OWN: Final = ("hybrid", "edge_agent", "cloud_gateway", "compression", "devices")
SERVICES: Final = {
    "hybrid-agent": "the edge agent: models on this box, updated and looked after",
    "hybrid-gateway": "the gateway: models, inference and fleets of boxes",
}
MAINTAINER: Final = "hybrid maintainers <maintainers@hybrid.invalid>"
EPOCH_S: Final = 1_767_225_600
"""What files of a package are dated, so that two builds are alike."""


def main() -> None:
    """Build what was asked for, and say where it lies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the .deb files (default: dist)")
    parser.add_argument("--python", default="/usr/bin/python3.11", help="the interpreter on the box")
    parser.add_argument("--compression", default="xz", choices=("xz", "zstd", "gzip", "none"), help="of the packages")
    parser.add_argument(
        "--site", type=Path, help="use the packages of this folder instead of copying them (a package for trying out)"
    )
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as room:
        for build in (_library, *(_service(name) for name in SERVICES)):
            print(build(Path(room), chosen))


def _library(room: Path, chosen: argparse.Namespace) -> Path:
    tree = room / "hybrid-split"
    home = tree / HOME
    python = Path(chosen.python)
    site = home / "lib" / python.name / "site-packages"
    site.mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(python)
    _write(home / "pyvenv.cfg", f"home = {python.parent}\ninclude-system-site-packages = false\n")
    _write(
        home / "bin" / "hybrid",
        '#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/python3" -I -m hybrid "$@"\n',
        mode=0o755,
    )
    (tree / "usr" / "bin").mkdir()
    (tree / "usr" / "bin" / "hybrid").symlink_to("../lib/hybrid/bin/hybrid")
    if chosen.site is not None:
        _write(site / "elsewhere.pth", f"import site; site.addsitedir({str(chosen.site.resolve())!r})\n")
    else:
        _copy_packages(site)
    _doc(tree, "hybrid-split")
    for script in ("postinst", "prerm"):
        _write(tree / "DEBIAN" / script, (HERE / f"library.{script}").read_text(encoding="utf-8"), mode=0o755)
    version = python.name.removeprefix("python")
    architecture = "all" if chosen.site is not None else _architecture()
    depends = f"python{version}, libgomp1, ca-certificates"
    return _package(tree, chosen, depends, architecture, "the library and the command `hybrid` with all that they need")


def _service(name: str) -> Callable[[Path, argparse.Namespace], Path]:
    """What builds the package of one service."""

    def build(room: Path, chosen: argparse.Namespace) -> Path:
        tree = room / name
        units = tree / "lib" / "systemd" / "system"
        units.mkdir(parents=True)
        shutil.copy(HERE.parent / "systemd" / f"{name}.service", units)
        settings = tree / "etc" / "hybrid"
        settings.mkdir(parents=True)
        shutil.copy(HERE.parent / "systemd" / f"{name.removeprefix('hybrid-')}.toml", settings)
        if name == "hybrid-agent":
            examples = tree / "usr" / "share" / "doc" / name / "examples"
            examples.mkdir(parents=True)
            for example in ("accelerator.conf", "credential.conf"):
                shutil.copy(HERE.parent / "systemd" / example, examples)
            _write(tree / "usr" / "bin" / name, (HERE / "hybrid-agent.sh").read_text(encoding="utf-8"), mode=0o755)
        _doc(tree, name)
        control = tree / "DEBIAN"
        _write(control / "conffiles", f"/etc/hybrid/{name.removeprefix('hybrid-')}.toml\n")
        for script in ("postinst", "prerm", "postrm"):
            text = (HERE / f"service.{script}").read_text(encoding="utf-8").replace("@SERVICE@", name)
            _write(control / script, text, mode=0o755)
        depends = f"hybrid-split (= {_version()}), adduser, util-linux"
        return _package(tree, chosen, depends, "all", SERVICES[name])

    return build


def _package(tree: Path, chosen: argparse.Namespace, depends: str, architecture: str, what: str) -> Path:
    name = tree.name
    size_kb = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir()) // 1024 + 1
    _write(
        tree / "DEBIAN" / "control",
        f"Package: {name}\nVersion: {_version()}\nSection: science\nPriority: optional\nArchitecture: {architecture}\n"
        f"Maintainer: {MAINTAINER}\nInstalled-Size: {size_kb}\nDepends: {depends}\n"
        f"Description: hybrid: {what}\n One model, two places: every request is computed on the device, on a gateway,\n"
        " or split between both.\n",
    )
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)
        os.utime(path, (EPOCH_S, EPOCH_S), follow_symlinks=False)
    target: Path = chosen.out / f"{name}_{_version()}_{architecture}.deb"
    command = ["dpkg-deb", f"-Z{chosen.compression}", "--root-owner-group", "--build", str(tree), str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH_S)})
    return target


def _copy_packages(site: Path) -> None:
    """Own packages out of the checkout, and the closure of what they require out of this environment."""
    for name in OWN:
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    own = distribution("hybrid-split")
    info = site / f"hybrid_split-{own.version}.dist-info"
    info.mkdir()
    for file in ("METADATA", "entry_points.txt"):
        _write(info / file, own.read_text(file) or own.read_text({"METADATA": "PKG-INFO"}.get(file, file)) or "")
    for found in _closure(own):
        for path in found.files or ():
            source = Path(str(path.locate()))
            if ".." in path.parts or path.suffix == ".pyc" or not source.is_file():
                continue  # scripts in bin/, and what is compiled on the box anyway
            target = site / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _closure(own: Distribution) -> list[Distribution]:
    """Everything that hybrid requires with its extras, and what these require, in this environment."""
    from packaging.requirements import Requirement

    waiting = [(own, EXTRAS)]
    found: dict[str, Distribution] = {}
    while waiting:
        at, extras = waiting.pop()
        for text in at.requires or ():
            wanted = Requirement(text)
            marker = wanted.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                continue
            key = re.sub(r"[-_.]+", "-", wanted.name).lower()
            if key in found or key == "hybrid-split":
                continue
            try:
                found[key] = distribution(wanted.name)
            except PackageNotFoundError:
                sys.exit(f"{wanted.name} is not installed here, and {at.name} requires it: pip install -e '.[agent]'")
            waiting.append((found[key], tuple(wanted.extras)))
    return [found[key] for key in sorted(found)]


def _doc(tree: Path, name: str) -> None:
    folder = tree / "usr" / "share" / "doc" / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "LICENSE", folder / "copyright")
    shutil.copyfile(ROOT / "docs" / "operating.md", folder / "operating.md")
    with (folder / "changelog.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write((ROOT / "CHANGELOG.md").read_bytes())


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _version() -> str:
    return distribution("hybrid-split").version


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
