"""Opens the head of a cut, one that quantizes where a codec of its crossing wants levels, and what follows on it."""

from collections.abc import Iterable
from dataclasses import replace

from hybrid.artifact.splits import SplitFiles
from hybrid.errors import PlanError
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.route.levels import wanted_levels
from hybrid.route.way import Head, Rest
from hybrid.scouting.background import BackgroundEngine
from hybrid.wire.split_coding import SplitCoder, read_prior, require_encodable, require_head, step_of


def lacks_levels(head: Head | None, codecs: Iterable[str]) -> bool:
    """Whether a head has yet to be opened, or opened anew for these codecs."""
    return head is None or head.n_levels != wanted_levels(codecs)


def opened_head(device: BackgroundEngine, prepared: Prepared, cut: Cut, codecs: Iterable[str]) -> Head:
    """The open head of a cut, with levels where one of the codecs wants them and the graph can make them."""
    n_levels = wanted_levels(codecs)
    path, levels = None, prepared.level_names(cut.id)
    if n_levels and levels:
        try:
            path = prepared.quantizing_head_path(cut.id, n_levels)
        except PlanError:
            levels = ()  # an old opset: the codec quantizes
    engine = device.open_piece(prepared.head_path(cut.id) if path is None else path)
    inputs = {name for name, _ in prepared.shape_key.shapes}
    crossing = tuple(tensor.name for tensor in cut.tensors)
    computed = (*(name for name in crossing if name not in inputs), *cut.head_outputs)
    return Head(
        run=engine.run,
        inputs=engine.inputs,
        crossing=crossing,
        computed=tuple(dict.fromkeys(computed)),
        n_levels=n_levels,
        levels=() if path is None else levels,
    )


def opened_split(
    device: BackgroundEngine, prepared: Prepared, cut: Cut, split: SplitFiles, own: Head | None = None
) -> Head:
    """The open head of a split, with what encodes what crosses.

    Args:
        device: opens it.
        prepared: the graph.
        cut: the split's.
        split: its files; their bytes are compared with the manifest first.
        own: the cut's own head, where it is open already.

    Raises:
        CorruptContent: a file is not what the manifest says.
        ModelError: a file that no engine here opens, or graphs that are none of this cut's.
    """
    coder = _coder(device, cut, split)
    if "head" not in split.files:
        return replace(own or opened_head(device, prepared, cut, ()), coder=coder)
    engine = device.open_piece(split.graph_path("head"))
    inputs = {name for name, _ in prepared.shape_key.shapes}
    crossing = tuple(tensor.name for tensor in cut.tensors)
    computed = tuple(dict.fromkeys((*(name for name in crossing if name not in inputs), *cut.head_outputs)))
    require_head(engine.session, inputs, computed, split.codec)
    return Head(run=engine.run, inputs=engine.inputs, crossing=crossing, computed=computed, coder=coder)


def _coder(device: BackgroundEngine, cut: Cut, split: SplitFiles) -> SplitCoder:
    plain = SplitCoder(codec=split.codec, digest=split.digest, carrier=split.carrier)
    if not split.is_learned:
        return plain
    require_encodable(cut.tensors, split.codec)
    engine = device.open_piece(split.graph_path("encoder"))
    step = step_of(engine.session, engine.run, f"the encoder of {split.codec}")
    return replace(plain, encoder=step, prior=read_prior(split.prior_bytes()))


def opened_rest(device: BackgroundEngine, prepared: Prepared, cut: Cut) -> Rest:
    """The open tail of a cut, which is not timed yet."""
    engine = device.open_piece(prepared.tail_path(cut.id), has_arena=False)  # it runs seldom
    return Rest(run=engine.run, inputs=engine.inputs)
