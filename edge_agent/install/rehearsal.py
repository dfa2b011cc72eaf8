"""A new version is opened in a process of its own first: what crashes there does not take the agent along."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.install.golden import golden_of, tolerance_of
from hybrid.artifact.manifest import CascadeRule, Manifest, Variant
from hybrid.errors import EngineCrashed, ModelInvalid, from_code

_MOST_ANSWER_BYTES: Final = 64 << 10


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to play: paths of a verified slot, and what it may use."""

    name: str
    model: str
    engine: str
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    tolerance: float = 0.0
    memory_bytes: int = 0
    cpu_s: int = 0


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """How it went: an error's code and message, both empty where it went well."""

    code: str = ""
    detail: str = ""


Rehearse = Callable[[Path, Manifest, Variant], Awaitable[None]]
"""Opens a variant of a verified slot where it can do no harm; raises as `Rehearsal.play`."""


class Rehearsal:
    """Plays new versions in processes of their own.

    Args:
        most_s: how long one may take, with its start.
        memory_bytes: what it may allocate beside the model's own size, at most.
    """

    def __init__(self, *, most_s: float = 120.0, memory_bytes: int = 2 << 30) -> None:
        self._most_s, self._memory_bytes = most_s, memory_bytes

    async def play(self, folder: Path, manifest: Manifest, variant: Variant) -> None:
        """Open, run on the golden inputs, compare.

        Raises:
            ModelInvalid, ModelUnsupported: the engine refused the file.
            GoldenDiffers: other outputs than the golden ones.
            EngineFailed: the engine could not run the golden inputs.
            EngineCrashed: the process ended by itself, took too long, or too much memory.
        """
        golden = golden_of(manifest, variant.id)
        sizes = sum(manifest.files[name].size for name in variant.files)
        piece = Piece(
            name=f"{manifest.name}:{manifest.version}",
            model=str(folder / variant.files[0]),
            engine=variant.engine,
            inputs={tensor: str(folder / path) for tensor, path in (golden.inputs if golden else {}).items()},
            outputs={tensor: str(folder / path) for tensor, path in (golden.outputs if golden else {}).items()},
            tolerance=tolerance_of(manifest, variant.engine),
            memory_bytes=self._memory_bytes + 4 * sizes,
            cpu_s=int(self._most_s) + 1,
        )
        said, code = await self._run(msgspec.json.encode(piece), piece.name)
        if code != 0:
            raise EngineCrashed(f"{piece.name} ended the process that opened it: {_how(code)}", model=piece.name)
        try:
            review = msgspec.json.decode(said, type=Review)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise EngineCrashed(f"{piece.name}: the process that opened it gave no answer", model=piece.name) from exc
        if review.code:
            raise from_code(review.code, review.detail)

    async def _run(self, piece: bytes, name: str) -> tuple[bytes, int]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_agent.install.rehearsing",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
            limit=_MOST_ANSWER_BYTES,
        )
        try:
            async with asyncio.timeout(self._most_s):
                said, _ = await process.communicate(piece)
        except TimeoutError as exc:
            raise EngineCrashed(f"{name} was not open and run after {self._most_s:.0f} s", model=name) from exc
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return said[:_MOST_ANSWER_BYTES], process.returncode or 0


def chosen_variant(manifest: Manifest, engines: Callable[[Variant], bool]) -> Variant:
    """The first variant that this machine can run; of a cascade, the small one first: the large one is the gateway's.

    Raises:
        ModelInvalid: none of them.
    """
    rule = manifest.cascade
    small = rule.small if isinstance(rule, CascadeRule) else ""
    for variant in sorted(manifest.variants, key=lambda variant: variant.id != small):
        if engines(variant):
            return variant
    wanted = ", ".join(f"{variant.engine} {variant.requires or ''}".strip() for variant in manifest.variants)
    raise ModelInvalid(f"{manifest.name}:{manifest.version} needs {wanted}, and none of that is on this box")


def runs_here(variant: Variant) -> bool:
    """Whether this machine has the engine, and the provider where one is required."""
    if variant.engine == "onnxruntime":
        import onnxruntime

        return variant.requires.get("provider", "CPUExecutionProvider") in onnxruntime.get_available_providers()
    if variant.engine in ("tflite", "tflite-head"):
        from importlib.util import find_spec

        return any(find_spec(module) is not None for module in ("ai_edge_litert", "tflite_runtime"))
    return False


def _environment() -> dict[str, str]:
    """Ours without what is ours alone: a model that breaks out of its engine finds no token in it."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("HYBRID_", "CREDENTIALS_"))}
    return kept | {"MALLOC_ARENA_MAX": "2", "PYTHONWARNINGS": "ignore"}


def _how(code: int) -> str:
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
