"""A split of the artifact as a session and a gateway run it, both halves here: what it costs on one sample."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.artifact.splits import SplitFiles
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.crossing import Engine, crossed, head_names
from hybrid.partition.cut import Cut
from hybrid.wire.split_coding import (
    SplitCoder,
    Step,
    latent_of,
    latent_shape,
    read_prior,
    require_encodable,
    require_head,
    step_of,
)
from hybrid.wire.tensor import Tensor

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What came through a split.

    Attributes:
        arrived: what crosses, as the tail gets it.
        kept: outputs that the head answers with.
        n_bytes: of the payloads.
        encode_s, decode_s: encoder or decoder with its entropy coder, or the carrier.
    """

    arrived: Feeds
    kept: Feeds
    n_bytes: int
    encode_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRun:
    """An open split.

    Attributes:
        split: its files.
        cut: where the model is cut.
        head: its own head; None for the cut's.
        coder: encodes.
        decoder: undoes the encoder; None where there is none.
        shape: of the latent.
    """

    split: SplitFiles
    cut: Cut
    head: Engine | None
    coder: SplitCoder
    decoder: Step | None = None
    shape: tuple[int, ...] = ()

    def passed(self, feeds: Feeds, crossing: Feeds, kept: Feeds) -> Passed:
        """What comes through.

        Args:
            feeds: a sample.
            crossing: what the cut's own head makes of it.
            kept: outputs that the cut's own head answers with.
        """
        if self.head is not None:
            crossing, kept = crossed(self.head, self.cut, feeds)
        started_s = time.perf_counter()
        tensors = self.coder.encoded(crossing)
        encoded_s = time.perf_counter()
        arrived = {tensor.spec.name: self._decoded(tensor) for tensor in tensors}
        decoded_s = time.perf_counter()
        n_bytes = sum(len(tensor.payload) for tensor in tensors)
        return Passed(
            arrived=arrived,
            kept=kept,
            n_bytes=n_bytes,
            encode_s=encoded_s - started_s,
            decode_s=decoded_s - encoded_s,
        )

    def _decoded(self, tensor: Tensor) -> np.ndarray:
        if self.decoder is None or self.coder.prior is None or tensor.codec != self.split.codec:
            return tensor.to_array()
        return self.decoder.of(latent_of(tensor, self.coder.prior, self.shape))


def opened_split(split: SplitFiles, cut: Cut, open_graph: Callable[[Path], Any]) -> SplitRun:
    """Open a split of a cut.

    Args:
        split: its files; their bytes are compared with the manifest.
        cut: where it divides the model.
        open_graph: opens a graph, with onnxruntime's face.

    Raises:
        CorruptContent: a file is not what the manifest says.
        ModelInvalid: graphs that are none of this cut's.
        DeviceError: the engine refuses one.
    """
    coder = SplitCoder(codec=split.codec, digest=split.digest, carrier=split.carrier)
    head = open_graph(split.graph_path("head")) if "head" in split.files else None
    if head is not None:
        fed = {name for name, _ in ShapeKey.parse(split.shape_key).shapes}
        require_head(head, fed, head_names(cut, fed), split.codec)
    if not split.is_learned:
        return SplitRun(split=split, cut=cut, head=head, coder=coder)
    require_encodable(cut.tensors, split.codec)
    encoder, decoder = open_graph(split.graph_path("encoder")), open_graph(split.graph_path("decoder"))
    return SplitRun(
        split=split,
        cut=cut,
        head=head,
        coder=replace(
            coder,
            encoder=step_of(encoder, encoder.run, f"the encoder of {split.codec}"),
            prior=read_prior(split.prior_bytes()),
        ),
        decoder=step_of(decoder, decoder.run, f"the decoder of {split.codec}"),
        shape=latent_shape(decoder.get_inputs()[0].shape, cut.tensors[0], f"the decoder of {split.codec}"),
    )
