"""The docs say what is true: the README's example runs, links lead somewhere, codes and flags are documented."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.cli.explanations import EXPLANATIONS
from hybrid.errors import CATALOG

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"```.*?```", re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a web forge makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")) for heading in headings)
    return {text.strip().replace(" ", "-") for text in kept}


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    """With a real model under the example's name, in a fresh process, warnings being errors."""
    from tests import zoo

    examples = blocks(ROOT / "README.md", "python")
    assert len(examples) == 1
    lines = [line for line in examples[0].splitlines() if line.strip()]
    assert len(lines) <= 12
    shutil.copy(zoo.path("ppocr_cls"), tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", examples[0]], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, 2) local")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        led_to = (page.parent / path).resolve() if path else page
        assert led_to.exists(), f"{page.name}: {target}"
        if anchor and led_to.suffix == ".md":
            assert anchor in anchors(led_to), f"{page.name}: {target}"


def test_every_error_code_is_explained() -> None:
    """Codes of the library, of compression and of devices."""
    from compression.errors import CompressionError
    from devices.errors import DeviceError

    codes = set(CATALOG)
    for kind in (CompressionError, DeviceError):
        codes |= {kind.code} | {child.code for child in kind.__subclasses__()}
    assert codes <= set(EXPLANATIONS)
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for code in EXPLANATIONS:
        assert f"\n## {code}\n" in page


def test_generated_pages_are_what_the_program_says() -> None:
    """docs/errors.md holds every code, docs/cli.md every flag of every command."""
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_flag_of_every_command_is_documented(hybrid_here) -> None:
    """What `--help` of each command prints, against the page: an independent way to the same answer."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for path in re.findall(r"^## hybrid (.+)$", page, re.MULTILINE):
        done = hybrid_here(*path.split(), "--help", TERM="dumb", COLUMNS="200")
        assert done.returncode == 0, path
        section = page.split(f"\n## hybrid {path}\n")[1].split("\n## ")[0]
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout)) - {"--help"}
        assert all(flag in section for flag in shown), (path, shown)


def test_every_command_has_an_example() -> None:
    """In its own help or in that of the group above it: a line that begins with the command's words."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for path in re.findall(r"^## hybrid (.+)$", page, re.MULTILINE):
        assert re.search(rf"^  hybrid {path}\b", page, re.MULTILINE), path


def test_every_variable_is_documented() -> None:
    """Those of the services are made from their settings, so their prefixes stand for them."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    packages = ("hybrid", "edge_agent", "cloud_gateway", "compression", "devices")
    texts = [path.read_text(encoding="utf-8") for package in packages for path in (ROOT / package).rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"\bHYBRID_[A-Z]+(?:_[A-Z]+)*", text)}
    assert "HYBRID_TOKEN" in names
    own = {name for name in names if not name.startswith(("HYBRID_GATEWAY_", "HYBRID_AGENT"))}
    assert own <= set(re.findall(r"HYBRID_\w+", page))


def test_the_changelog_names_this_version() -> None:
    import hybrid

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    assert f"## [{hybrid.__version__}]" in text


def test_nothing_names_a_machine_of_ours() -> None:
    """Paths of the places where this was written, and hosts of package mirrors, have no business in the project."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split(
        "\n"
    )
    wrong = re.compile(rf"{re.escape(str(ROOT))}/|/root/|/home/\w+/|index-url|trusted-host")
    for name in filter(None, listed):
        path = ROOT / name
        if (
            path == Path(__file__)
            or path.suffix not in {".py", ".md", ".toml", ".txt", ".yml", ""}
            or not path.is_file()
        ):
            continue
        found = wrong.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{name}: {found}"
