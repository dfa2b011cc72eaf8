"""The fixture as users of the lab get it: by naming the plugin, in a project of their own."""

import subprocess
import sys
from pathlib import Path

TESTS = """
def test_link(lab_of):
    lab = lab_of(kind="proxy")
    assert lab.link.kind == "proxy"

def test_what_no_machine_has(lab_of):
    lab_of(kind="tun", congestion_control="nosuch")
"""


def test_it_builds_labs_and_skips_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["devices.lab.pytest_plugin"]\n')
    (tmp_path / "test_mine.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "-p", "no:randomly"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "no network namespaces with TUN devices here" in done.stdout
