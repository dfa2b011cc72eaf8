"""The steps of a campaign on the disk, and how a box comes from the view that it holds to another step's.

Design: one file a step, whole before any row names it, and the same bytes whenever it is made again. A view is what
boxes hold; with a lossy form it is not the step's weights, and what it lacks is in the next link.
"""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from hybrid.artifact.durable import write_atomically
from hybrid.errors import CorruptContent, NotFound
from hybrid.federated.campaign import Coding
from hybrid.federated.coding.catalog import form
from hybrid.federated.coding.versions import link, links_pay, view_digest
from hybrid.federated.layout import Layout
from hybrid.federated.messages import EXACT, INLINE_BYTES, Difference, Weights

MOST_BYTES: Final = 1 << 30
"""Of all steps of a campaign; beyond it the oldest leave, but for the base."""
_LINKS: Final = 256
"""Longest way in differences."""


class StepFile(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One step as it is kept.

    Attributes:
        weights: float32, little-endian.
        view: likewise; empty where it is the weights.
        form, link: of the difference from the view before; empty where boxes take the view whole.
        optimizer: state of the server's optimiser or of SCAFFOLD.
        control: SCAFFOLD's server variate; empty without.
        clip: norm to which boxes clip in the round that begins here.
        check: first bytes of SHA-256 over the others.
    """

    step: int
    weights: bytes
    view: bytes = b""
    form: str = ""
    link: bytes = b""
    optimizer: bytes = b""
    control: bytes = b""
    clip: float = 0.0
    check: bytes = b""

    @property
    def digest(self) -> bytes:
        """What `check` should be."""
        return hashlib.sha256(msgspec.msgpack.encode(msgspec.structs.replace(self, check=b""))).digest()[:16]


def as_bytes(vector: np.ndarray) -> bytes:
    """Float32, little-endian."""
    return vector.astype("<f4").tobytes()


def as_vector(data: bytes) -> np.ndarray:
    """The float32 vector that these bytes are; read-only."""
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


class Steps:
    """The steps of one campaign. Every method that names a file blocks."""

    def __init__(self, folder: Path, layout: Layout, coding: Coding) -> None:
        """Touches no disk.

        Args:
            folder: of the steps.
            layout: of what learns.
            coding: says in which form steps travel down.
        """
        self._folder = folder
        self._layout = layout
        self._down = form(coding.down, coding.share)
        self._links: OrderedDict[int, Difference] = OrderedDict()
        self.newest = StepFile(step=-1, weights=b"")
        self.sha256 = ""

    def path(self, step: int) -> Path:
        """Where a step lies."""
        return self._folder / f"{step:08d}.step"

    def read(self, step: int) -> StepFile:
        """One step.

        Raises:
            NotFound: it is not kept any more.
            CorruptContent: it is not what was written.
        """
        path = self.path(step)
        try:
            data = path.read_bytes()
        except FileNotFoundError as exc:
            raise NotFound(f"step {step} is not kept any more; the newest ones and the base are") from exc
        try:
            found = msgspec.msgpack.decode(data, type=StepFile)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise CorruptContent(f"{path} is damaged ({exc}); the campaign cannot go on from it") from exc
        if found.step != step or found.check != found.digest:
            raise CorruptContent(f"{path} is not what was written; the campaign cannot go on from it")
        return found

    def write(self, made: StepFile) -> StepFile:
        """Keep a step; on the disk when this returns. Raises `DiskFull`, `StorageError`."""
        made = msgspec.structs.replace(made, check=made.digest)
        write_atomically(self.path(made.step), msgspec.msgpack.encode(made))
        return made

    def following(self, before: StepFile, weights: np.ndarray, seed: int) -> StepFile:
        """The step after another one; the same bytes for the same arguments. Touches no disk."""
        step = before.step + 1
        if self._down.name == "float32":
            return StepFile(step=step, weights=as_bytes(weights))
        made = link(
            self._down,
            as_vector(before.view or before.weights),
            weights,
            self._layout,
            np.random.default_rng([abs(seed), step, 1]),
        )
        return StepFile(
            step=step, weights=as_bytes(weights), view=as_bytes(made.view), form=self._down.name, link=made.content
        )

    def load(self, step: int) -> None:
        """Begin at a step: read it, and the links before it as far as they are of use."""
        self.adopt(self.read(step))
        held: list[Difference] = []
        for number in range(step - 1, max(0, step - _LINKS), -1):
            if not self.path(number).exists():
                break
            file = self.read(number)
            if not file.form or not self._pays([*held, Difference(step=number, form=file.form, content=file.link)]):
                break
            held.append(Difference(step=number, form=file.form, content=file.link))
        for difference in held[::-1]:
            self._links[difference.step] = difference
        self._links = OrderedDict(sorted(self._links.items()))

    def adopt(self, file: StepFile) -> None:
        """From now on this step is the newest. Touches no disk."""
        self.newest = file
        self.sha256 = view_digest(as_vector(file.view or file.weights))
        if not file.form:
            self._links.clear()
            return
        self._links[file.step] = Difference(step=file.step, form=file.form, content=file.link)
        while len(self._links) > _LINKS or not (len(self._links) == 1 or self._pays(list(self._links.values()))):
            self._links.popitem(last=False)

    def _pays(self, links: list[Difference]) -> bool:
        return links_pay([len(each.content) for each in links], self._layout)

    @property
    def n_bytes(self) -> int:
        """Of one view."""
        return 4 * self._layout.n_elements

    def way(self, held: int) -> Weights:
        """How a box comes from what it holds (-1: nothing) to the newest view, whatever the size. Touches no disk."""
        newest = self.newest
        whole = Weights(
            step=newest.step, sha256=self.sha256, whole=newest.view or newest.weights, control=newest.control
        )
        if held == newest.step:
            return msgspec.structs.replace(whole, whole=b"")
        wanted = range(held + 1, newest.step + 1)
        if held < 0 or held > newest.step or any(step not in self._links for step in wanted):
            return whole
        links = tuple(self._links[step] for step in wanted)
        if not self._pays(list(links)):
            return whole
        return msgspec.structs.replace(whole, whole=b"", differences=links)

    def inline(self, held: int) -> Weights:
        """The same as it goes into a task: what is too long for that is left to be fetched. Touches no disk."""
        way = self.way(held)
        n_bytes = payload(way)
        if n_bytes <= INLINE_BYTES:
            return way
        return Weights(step=way.step, sha256=way.sha256, n_bytes=n_bytes)

    def exact(self, step: int, *, is_inline: bool = False) -> Weights:
        """A step's own weights, as a candidate has them."""
        file = self.newest if step == self.newest.step else self.read(step)
        sha256 = view_digest(as_vector(file.weights))
        if is_inline and len(file.weights) > INLINE_BYTES:
            return Weights(step=step, sha256=sha256, n_bytes=len(file.weights))
        return Weights(step=step, sha256=sha256, whole=file.weights)

    def fetched(self, step: int, have: int) -> Weights:
        """The answer to `RoundCalls.weights`.

        Raises:
            NotFound: a step that is not kept.
        """
        if have == EXACT:
            return self.exact(step)
        if step == self.newest.step:
            return self.way(have)
        file = self.read(step)
        view = file.view or file.weights
        return Weights(step=step, sha256=view_digest(as_vector(view)), whole=view, control=file.control)

    def prune(self, keep: frozenset[int]) -> None:
        """Remove the oldest steps beyond the bound, but for the base and those to keep."""
        files = sorted(self._folder.glob("*.step"))
        sizes = {path: path.stat().st_size for path in files}
        left = sum(sizes.values())
        for path in files[1:-1]:
            if left <= MOST_BYTES:
                return
            if int(path.stem) not in keep:
                path.unlink(missing_ok=True)
                left -= sizes[path]


def payload(weights: Weights) -> int:
    """Bytes of weights in an answer."""
    return len(weights.whole) + sum(len(each.content) for each in weights.differences) + len(weights.control)
