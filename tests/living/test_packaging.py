"""Units that systemd accepts; a Debian package that installs, starts, stops and goes; a container file."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from cloud_gateway.config import GatewayConfig
from edge_agent.config import AgentConfig
from hybrid.hosting.settings import load

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNITS = ("hybrid-agent.service", "hybrid-gateway.service")


def run(*command: object, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | settings,
        check=False,
    )


def lines_of(unit: str, key: str) -> list[str]:
    text = (PACKAGING / "systemd" / unit).read_text()
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The three packages, with this environment's libraries in place of copies."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    out = tmp_path_factory.mktemp("debs")
    site = Path(sys.executable).parent.parent / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    python = Path(sys.executable).resolve()
    command = (sys.executable, PACKAGING / "debian" / "build.py", "--out", out, "--compression", "none")
    done = run(*command, "--site", site, "--python", python)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.split()]


def dpkg(root: Path, *words: object) -> None:
    """dpkg on a folder of its own, with the packages' scripts."""
    for name in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / name).mkdir(parents=True, exist_ok=True)
    for name in ("status", "available"):
        (root / "var/lib/dpkg" / name).touch()
    flags = ("--force-not-root", "--force-script-chrootless", "--force-depends")
    done = run("dpkg", f"--root={root}", f"--log={root}/dpkg.log", *flags, *words)
    assert done.returncode == 0, done.stderr


def test_installed_started_removed_and_purged(packages: list[Path], tmp_path: Path, start_agent):
    root = tmp_path / "root"
    dpkg(root, "-i", *packages)
    program = root / "usr/bin/hybrid"
    told = run(program, "--version")
    assert told.returncode == 0, told.stderr
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string((root / "lib/systemd/system/hybrid-agent.service").read_text())
    words = unit["Service"]["ExecStart"].split()
    assert words[0] == "/usr/bin/hybrid"
    placed = [str(root) + word if word.startswith("/") else word for word in words]
    agent = start_agent("--port", "0", command=tuple(placed), watchdog_s=60)
    agent.hear("READY=1")
    assert agent.stop() == 0
    agent.hear("STOPPING=1")
    data = root / "var/lib/hybrid-agent"
    assert (data / "identity" / "installation.json").exists()
    assert data.stat().st_mode & 0o777 == 0o700
    (root / "etc/hybrid/agent.toml").write_text("port = 8711\n")
    dpkg(root, "-i", "--force-confold", *packages)
    assert (root / "etc/hybrid/agent.toml").read_text() == "port = 8711\n"
    dpkg(root, "--remove", "hybrid-agent", "hybrid-gateway", "hybrid-split")
    assert (data / "identity" / "installation.json").exists()
    assert (root / "etc/hybrid/agent.toml").exists()
    assert not program.exists()
    dpkg(root, "--purge", "hybrid-agent", "hybrid-gateway", "hybrid-split")
    left = [path for path in root.rglob("*") if path.is_file() and "dpkg" not in str(path.relative_to(root))]
    assert left == []
    assert not data.exists()


def test_a_package_is_built_twice_alike(packages: list[Path], tmp_path: Path):
    site = Path(sys.executable).parent.parent / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    python = Path(sys.executable).resolve()
    command = (sys.executable, PACKAGING / "debian" / "build.py", "--out", tmp_path, "--compression", "none")
    assert run(*command, "--site", site, "--python", python).returncode == 0
    for package in packages:
        assert package.read_bytes() == (tmp_path / package.name).read_bytes(), package.name
    listing = run("dpkg-deb", "--contents", packages[0]).stdout
    assert "root/root" in listing
    assert "__pycache__" not in listing


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit_and_finds_it_closed(unit: str, tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    copy = tmp_path / unit
    text = (PACKAGING / "systemd" / unit).read_text()
    copy.write_text(text.replace("/usr/bin/hybrid ", "/bin/true "))
    done = run("systemd-analyze", "verify", "--man=no", copy)
    complaints = [line for line in done.stderr.splitlines() if unit in line and "RestartSteps" not in line]
    assert [line for line in complaints if "RestartMaxDelaySec" not in line] == []
    assert done.returncode == 0, done.stderr
    found = run("systemd-analyze", "security", "--offline=true", copy)
    if "unrecognized option" in found.stderr:
        pytest.skip("this systemd-analyze looks at running services only")
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", found.stdout)
    assert exposure is not None, found.stdout[-300:] + found.stderr
    assert float(exposure[1]) <= 2.0


@pytest.mark.parametrize("unit", UNITS)
def test_units_name_what_the_programs_know(unit: str):
    service = unit.removesuffix(".service")
    kind = AgentConfig if service == "hybrid-agent" else GatewayConfig
    settings = PACKAGING / "systemd" / f"{service.removeprefix('hybrid-')}.toml"
    chosen = load(kind, {}, {}, settings)
    assert chosen.port in (8700, 8710)
    [start] = lines_of(unit, "ExecStart")
    assert f"--config /etc/hybrid/{settings.name}" in start
    assert f"--data /var/lib/{lines_of(unit, 'StateDirectory')[0]}" in start
    assert lines_of(unit, "Type") == ["notify"]
    assert int(lines_of(unit, "WatchdogSec")[0]) >= 30
    assert int(lines_of(unit, "TimeoutStopSec")[0]) > chosen.drain_s
    assert lines_of(unit, "Restart") == ["always"]
    assert lines_of(unit, "StartLimitIntervalSec") == ["0"]


def test_the_container_copies_what_there_is_and_installs_extras_that_there_are():
    text = (PACKAGING / "container" / "Containerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extras] = re.findall(r'"\.\[([a-z,]+)\]"', text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert re.search(r"^USER 10001", text, re.MULTILINE)
    packages = {"hybrid", "edge_agent", "cloud_gateway", "compression", "devices"}
    assert packages <= set(re.findall(r"^COPY (\w+) ", text, re.MULTILINE))


def test_the_containers_health_check_tells_ready_from_not(tmp_path: Path, start_agent):
    import json

    agent = start_agent()
    agent.hear("READY=1")
    port = json.loads((agent.data / "agent.json").read_text())["url"].rpartition(":")[2]
    code = f"import runpy, sys; sys.argv = ['x']; m = runpy.run_path({str(PACKAGING / 'container' / 'healthy.py')!r}); "
    asked = f"{code}sys.exit(0 if m['is_ready']({port}) else 1)"
    assert run(sys.executable, "-c", asked).returncode == 0
    agent.stop()
    assert run(sys.executable, "-c", asked).returncode == 1


@pytest.mark.root
def test_a_credential_that_was_not_mounted_keeps_no_agent_from_starting():
    """The folder is there and only root may enter: found under systemd 252 in a container, where no agent started."""
    with tempfile.TemporaryDirectory() as folder:  # its parent is open to everybody, pytest's folders are not
        code = (
            "import os, sys; from edge_agent.samples.vault import _credential; os.setgid(65534); os.setuid(65534); "
            f"sys.exit(0 if _credential({{'CREDENTIALS_DIRECTORY': {folder!r}}}) is None else 1)"
        )
        done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
