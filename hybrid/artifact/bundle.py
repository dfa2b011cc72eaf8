"""One file for boxes without a network: an artifact's zip that also holds the trust bundle of its fleet.

Design: the trust bundle lies among the attachments under its own digest, so a bundle is a good artifact zip for whoever
knows nothing of fleets. Neither is believed for where it lies: each has its own signature.
"""

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Final

from hybrid.artifact.folder import Artifact
from hybrid.artifact.names import ATTACHMENTS_NAME
from hybrid.artifact.stored_zip import pack
from hybrid.errors import ModelInvalid, NotFound

_FOLDER: Final = f"{ATTACHMENTS_NAME}/trust/bundle"
_NAME: Final = re.compile(rf"{_FOLDER}/([0-9a-f]{{64}})\.json")
_MOST_BYTES: Final = 1 << 20
_EXPORT_AGAIN: Final = "Export it again and copy it whole: hybrid models export NAME:VERSION --out FILE.hybrid."


def pack_bundle(artifact: Artifact, trust: bytes | None, destination: Path) -> None:
    """Write an artifact and a trust bundle as one file that appears whole or not at all.

    Raises:
        DiskFull, StorageError: nothing is left behind.
    """
    extra = {} if trust is None else {f"{_FOLDER}/{hashlib.sha256(trust).hexdigest()}.json": trust}
    pack(artifact, destination, extra=extra)


def trust_in(path: Path) -> bytes | None:
    """The trust bundle that a file brings, as it came; None for none.

    Raises:
        ModelInvalid: no zip, or more than one trust bundle.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [info for info in archive.infolist() if _NAME.fullmatch(info.filename)]
            if len(found) > 1 or any(info.file_size > _MOST_BYTES for info in found):
                raise ModelInvalid(f"{path}: more than one trust bundle, or one that is too large", path=str(path))
            return archive.read(found[0]) if found else None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as exc:
        raise ModelInvalid(f"{path}: no sound bundle ({exc})", path=str(path), advice=_EXPORT_AGAIN) from exc
    except FileNotFoundError as exc:
        raise NotFound(f"{path}: no such file; make one with `hybrid models export`", advice="Check the path.") from exc
    except OSError as exc:
        raise ModelInvalid(f"{path}: {exc.strerror or exc}", path=str(path)) from exc
