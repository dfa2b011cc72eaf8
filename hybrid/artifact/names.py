"""Which words may name a model, a version, a variant, and a file inside an artifact."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from hybrid.errors import BadMessage

MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.sig"
ATTACHMENTS_NAME: Final = "attachments"
BUNDLE_SUFFIX: Final = ".hybrid"
"""Of an artifact's zip that also holds the trust bundle of its fleet."""

_WORD: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FORBIDDEN: Final = frozenset('\\:*?"<>|')
_PART_BYTES: Final = 255
_NAME_BYTES: Final = 1024


def check_word(word: str, what: str = "model name") -> str:
    """The word itself, when it may name a model, a version or a variant.

    Raises:
        BadMessage: it is not of the form `[a-z0-9][a-z0-9._-]{0,63}`, or holds `..`.
    """
    if _WORD.fullmatch(word) is None or ".." in word:
        raise BadMessage(
            f"{what} {word[:80]!r} is refused: it must begin with a-z or 0-9 and go on with at most 63 of "
            f"a-z 0-9 . _ - (and no two dots in a row); choose another {what}",
            word=word[:80],
        )
    return word


def check_digest(digest: str) -> str:
    """The digest itself, when it is a SHA-256 in 64 lower-case hex digits.

    Raises:
        BadMessage: it is not.
    """
    if _DIGEST.fullmatch(digest) is None:
        raise BadMessage(f"{digest[:80]!r} is no digest: 64 lower-case hex digits of a SHA-256 are wanted")
    return digest


def check_relative(name: str) -> str:
    """The name itself, when it may name a file inside an artifact on every file system.

    Raises:
        BadMessage: absolute, climbing, reserved, too long, or with a character that some file system gives a meaning.
    """
    reason = _relative_fault(name)
    if reason is not None:
        raise BadMessage(f"file name {name[:120]!r} is refused: {reason}; rename the file", word=name[:120])
    return name


def check_distinct(names: Iterable[str]) -> None:
    """Refuse two names that are one on some file system, or of which one would be the other's folder.

    Raises:
        BadMessage: names the second of such a pair.
    """
    files: set[str] = set()
    folders: set[str] = set()
    for name in sorted(names):
        folded = name.casefold()
        above = _folders_above(folded)
        if folded in files or folded in folders or files & above:
            raise BadMessage(f"file name {name[:120]!r} collides with another one in the artifact; rename one of them")
        files.add(folded)
        folders |= above


def _folders_above(name: str) -> set[str]:
    parts = name.split("/")
    return {"/".join(parts[:depth]) for depth in range(1, len(parts))}


def _relative_fault(name: str) -> str | None:
    if not name or len(name.encode("utf-8", "surrogatepass")) > _NAME_BYTES:
        return f"it is empty or longer than {_NAME_BYTES} bytes"
    if any(character in _FORBIDDEN or unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return 'it holds a control character or one of \\ : * ? " < > |'
    if unicodedata.normalize("NFC", name) != name:
        return "it is not in Unicode's normal form C"
    parts = name.split("/")
    if parts[0].casefold() in (MANIFEST_NAME, SIGNATURE_NAME, ATTACHMENTS_NAME):
        return "the name is reserved"
    return next((fault for fault in map(_part_fault, parts) if fault), None)


def _part_fault(part: str) -> str | None:
    plain = unicodedata.normalize("NFKC", part)
    if not part:
        return "it is absolute or has an empty part"
    if "/" in plain or "\\" in plain or plain.strip(".") == "":
        return "it climbs or hides a path separator"
    if part != part.strip() or part.endswith("."):
        return "a part begins or ends with a blank, or ends with a dot"
    if len(part.encode()) > _PART_BYTES:
        return f"a part is longer than {_PART_BYTES} bytes"
    return None
