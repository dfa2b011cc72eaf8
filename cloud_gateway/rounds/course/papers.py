"""What proves a lease: a MAC that names the task, so that none has to be kept and none can be invented."""

import base64
import hashlib
import hmac
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Final

from hybrid.errors import StorageError
from hybrid.federated.messages import TaskKind
from hybrid.hosting.private_file import write_once

KEY_FILE: Final = "tasks.key"
_KEY_BYTES: Final = 32
_REMEMBERED: Final = 4096
"""Names: each is asked for when the task is given, when its update comes, and when it is given up."""


class TaskNames:
    """Names of tasks: each is that of one box, one step and one kind of one campaign, and of no other gateway."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._name)

    @classmethod
    def opened(cls, folder: Path) -> "TaskNames":
        """By the key in a folder, made at the first start; blocks.

        Raises:
            StorageError: it can neither be made nor read.
        """
        key = write_once(folder / KEY_FILE, secrets.token_bytes(_KEY_BYTES))
        if len(key) != _KEY_BYTES:
            raise StorageError(f"{folder / KEY_FILE} holds {len(key)} bytes, {_KEY_BYTES} are wanted; remove it")
        return cls(key)

    def name(self, campaign: str, step: int, box_id: str, kind: TaskKind) -> str:
        """20 characters."""
        return self._remembered(campaign, step, box_id, kind)

    def _name(self, campaign: str, step: int, box_id: str, kind: TaskKind) -> str:
        return base64.b32encode(self._mac("task", campaign, step, box_id, kind)[:12]).decode().lower().rstrip("=")

    def is_right(self, name: str, campaign: str, step: int, box_id: str, kind: TaskKind) -> bool:
        """Whether this gateway gave this task to this box."""
        return hmac.compare_digest(name.encode(), self.name(campaign, step, box_id, kind).encode())

    def _mac(self, *words: object) -> bytes:
        return hmac.digest(self._key, "\0".join(map(str, words)).encode(), hashlib.sha256)


def task_seed(seed: int, step: int, box_id: str) -> int:
    """Of a box's training; the same whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}\0{step}\0{box_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
