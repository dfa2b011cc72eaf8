"""A secret that only this machine's TPM gives out: sealed by tpm2-tools, the only ones asked, as programs.

Design: no binding to boot measurements: a box whose firmware was updated must still read its own samples. What this
keeps is what a stolen disk shows without the machine.
"""

import subprocess
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Final

from hybrid.errors import StorageError

DEVICE: Final = Path("/dev/tpmrm0")
_TOOLS: Final = ("tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_unseal")
_TOOL_S: Final = 30.0


class Tpm:
    """This machine's TPM.

    Args:
        device: its resource manager.
        tcti: how tpm2-tools reach it, where that is not the device.
    """

    def __init__(self, device: Path = DEVICE, tcti: str = "") -> None:
        self._device = device
        self._tcti = tcti or f"device:{device}"

    @property
    def is_there(self) -> bool:
        """Whether there is a TPM and the tools to ask it."""
        is_reachable = self._device.exists() or not self._tcti.startswith("device:")
        return is_reachable and all(which(tool) for tool in _TOOLS)

    def seal(self, secret: bytes) -> bytes:
        """The secret as only this TPM can open it. Raises `StorageError`."""
        with TemporaryDirectory(prefix="hybrid-tpm-") as name:
            folder = Path(name)
            self._primary(folder)
            self._ask("tpm2_create", folder, "-C", "primary", "-u", "public", "-r", "private", "-i", "-", given=secret)
            public, private = (folder / "public").read_bytes(), (folder / "private").read_bytes()
        return len(public).to_bytes(4, "little") + public + private

    def unseal(self, sealed: bytes) -> bytes:
        """The secret. Raises `StorageError` where this TPM did not seal it."""
        n_public = int.from_bytes(sealed[:4], "little")
        with TemporaryDirectory(prefix="hybrid-tpm-") as name:
            folder = Path(name)
            (folder / "public").write_bytes(sealed[4 : 4 + n_public])
            (folder / "private").write_bytes(sealed[4 + n_public :])
            self._primary(folder)
            self._ask("tpm2_load", folder, "-C", "primary", "-u", "public", "-r", "private", "-c", "loaded")
            return self._ask("tpm2_unseal", folder, "-c", "loaded", quiet=False)

    def _primary(self, folder: Path) -> None:
        self._ask("tpm2_createprimary", folder, "-C", "o", "-g", "sha256", "-G", "ecc", "-c", "primary")

    def _ask(self, tool: str, folder: Path, *words: str, given: bytes = b"", quiet: bool = True) -> bytes:
        command = [tool, *words, *(["-Q"] if quiet else []), "-T", self._tcti]
        try:
            done = subprocess.run(command, cwd=folder, input=given, capture_output=True, timeout=_TOOL_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise StorageError(f"the TPM cannot be asked: {exc}; look at {self._device}") from exc
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise StorageError(f"{tool} failed ({done.returncode}): {said[0][:200] if said else 'it says nothing'}")
        return done.stdout
