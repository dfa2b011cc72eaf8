"""The matrix: which models, devices, links and traces are compared, read from a TOML file, and the cells it spans."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, get_args
from zlib import crc32

import msgspec
import numpy as np

from devices.catalog import load
from devices.device import Device
from devices.link_class import LinkClass
from devices.markov import draw
from devices.trace import Trace
from hybrid.bench.cell import Cell
from hybrid.bench.parts import ModelParts
from hybrid.bench.peers import JSON_BYTES_PER_BYTE, Cascade, dads, neurosurgeon
from hybrid.cost.device_power import power_of
from hybrid.errors import BadMessage
from hybrid.route.departure import COMPRESSED_REPLY_BYTES
from hybrid.schedule.options import Objective
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.simulation.curve import Steps
from hybrid.simulation.device import DeviceModel
from hybrid.simulation.gateway import GatewayModel
from hybrid.simulation.link import Congestion, LinkModel
from hybrid.simulation.scene import Scene
from hybrid.simulation.stream import Stream
from hybrid.simulation.work import Work

MATRIX: Final = Path(__file__).resolve().parent / "matrix.toml"
"""The one that the published tables are made from."""


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared; the file's comments say what each figure means."""

    models: tuple[str, ...]
    devices: tuple[str, ...]
    links: tuple[str, ...]
    traces: tuple[str, ...] = ("steady", "changing")
    objectives: tuple[Objective, ...] = get_args(Objective)
    local_s: tuple[float, float] = (0.0, 1e9)
    max_accuracy_drop: float = 0.01
    host_slowdown_ratio: float = 1.0
    seed: int = 0
    duration_s: float = 300.0
    quick_duration_s: float = 60.0
    period_ratio: float = 1.5
    least_period_s: float = 0.1
    congestion: Congestion = "cubic"
    tenant_ratio: float = 0.0
    tenant_s: float = 0.02
    throttle_ratio: float = 1.0
    throttle_s: float = 20.0
    throttle_every_s: float = 100.0
    noise_ratio: float = 0.02
    attempt_s: float = 0.0
    front_s_per_j: tuple[float, ...] = ()
    unsure_ratio: float = 0.3
    small_ratio: float = 0.25


def read(path: Path = MATRIX) -> Matrix:
    """The matrix of a file.

    Raises:
        BadMessage: not there, no TOML, or fields that are none.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Matrix)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as exc:
        raise BadMessage(f"{path}: no matrix ({exc}); see hybrid/bench/matrix.toml for the fields") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a cell stands in the matrix; `build` makes it."""

    matrix: Matrix
    model: ModelParts
    others: Sequence[ModelParts]
    device: Device
    link: LinkClass
    trace: str

    def build(self) -> Cell:
        """The cell with its scene and peers."""
        return cell(self.matrix, self.model, self.others, self.device, self.link, trace_kind=self.trace)


def cells_of(matrix: Matrix, parts: Sequence[ModelParts]) -> list[Place]:
    """All places of the matrix whose model takes the wanted time on its device.

    Raises:
        BadMessage: a model without parts.
        CatalogUnknown: a device or link that the catalog does not have.
    """
    by_name = {one.name: one for one in parts}
    missing = next((name for name in matrix.models if name not in by_name), None)
    if missing is not None:
        raise BadMessage(f"no measured parts of {missing!r}; there are {', '.join(by_name)}")
    least_s, most_s = matrix.local_s
    return [
        Place(matrix=matrix, model=by_name[name], others=parts, device=device, link=load.link_class(link), trace=trace)
        for name in matrix.models
        for device in map(load.device, matrix.devices)
        if least_s <= by_name[name].whole_s * device.factor_on(matrix.host_slowdown_ratio) <= most_s
        for link in matrix.links
        for trace in matrix.traces
    ]


def cell(
    matrix: Matrix,
    model: ModelParts,
    others: Sequence[ModelParts],
    device: Device,
    link: LinkClass,
    *,
    trace_kind: str,
) -> Cell:
    """One cell; the seed of its chance is its own, so that leaving out others changes nothing in it."""
    factor = device.factor_on(matrix.host_slowdown_ratio)
    seed = crc32(f"{matrix.seed} {model.name} {device.name} {link.name} {trace_kind}".encode())
    is_steady = trace_kind == "steady"
    # One link for all models and devices: the same seconds are good and bad for everyone.
    trace = Trace.steady(link) if is_steady else draw(link, 600.0, seed=crc32(f"{matrix.seed} {link.name}".encode()))
    work = work_of(model, factor, encode_factor=device.slowdown_ratio)
    period_s = max(matrix.least_period_s, matrix.period_ratio * work.local_s)
    scene = Scene(
        work=work,
        # A drawn trace's round trip wanders by itself; what is left is between single messages.
        link=LinkModel(
            trace=trace, jitter_s=link.jitter_s if is_steady else 0.5 * link.jitter_s, congestion=matrix.congestion
        ),
        stream=Stream(period_s=period_s, duration_s=matrix.duration_s),
        device=DeviceModel(
            slowdown=Steps.steady(1.0) if is_steady else _throttle(matrix),
            noise_ratio=matrix.noise_ratio,
            n_cores=device.n_cores,
            attempt_s=matrix.attempt_s * device.slowdown_ratio,
        ),
        gateway=GatewayModel(
            noise_ratio=matrix.noise_ratio,
            tenant_share=0.0 if is_steady else matrix.tenant_ratio,
            tenant_s=matrix.tenant_s,
        ),
        seed=seed,
    )
    cascade = with_cascade(scene, matrix)
    return Cell(
        model=model.name,
        device=device.name,
        link=link.name,
        trace=trace_kind,
        scene=scene,
        power=power_of(device, link.name),
        constraints=Constraints(max_accuracy_drop=matrix.max_accuracy_drop),
        fixed=(
            neurosurgeon(model, others, scene, factor),
            dads(model, scene, factor, link.up_bps),
        ),
        elsewhere=((cascade, Cascade(len(cascade.work.prospects) - 1, matrix.unsure_ratio)),),
    )


def work_of(model: ModelParts, factor: float, *, encode_factor: float | None = None) -> Work:
    """The ways to answer one request of a model on a device that is `factor` times as slow as what measured it.

    `encode_factor` is another one for encoding, where only the engine is slowed down.
    """
    encode_factor = factor if encode_factor is None else encode_factor
    prospects = [Prospect(placement="local", head_s=model.whole_s * factor)]
    decode_s: list[float] = [0.0]
    ratios: list[tuple[float, ...]] = [()]
    for cut in model.cuts:
        for part in cut.codecs:
            mean = float(np.mean(part.n_bytes))
            is_input = cut.kind == "input"
            # A session asks for large replies to be coded, but where nothing at all is to be coded.
            is_coded = part.codec != "none" and COMPRESSED_REPLY_BYTES <= cut.reply_bytes > cut.reply_coded_bytes
            reply_s = cut.reply_encode_s + cut.reply_decode_s * encode_factor if is_coded else 0.0
            decode_s.append(part.decode_s + reply_s)
            prospects.append(
                Prospect(
                    placement="offload" if is_input else "split",
                    cut=cut.cut,
                    codec=part.codec,
                    head_s=cut.head_s * factor,
                    encode_s=part.encode_s * encode_factor,
                    bytes_up=round(mean),
                    bytes_down=cut.reply_coded_bytes if is_coded else cut.reply_bytes,
                    reply_bytes=cut.reply_bytes,
                    tail_s=cut.tail_s,
                    decode_s=decode_s[-1],
                    accuracy_drop=part.drop,
                    raw_input=is_input,
                )
            )
            ratios.append(tuple(n_bytes / mean for n_bytes in part.n_bytes))
    return Work(name=model.name, prospects=tuple(prospects), decode_s=tuple(decode_s), size_ratios=tuple(ratios))


def with_cascade(scene: Scene, matrix: Matrix) -> Scene:
    """The same scene with one more way: a small model on the device, then the raw input as JSON to the whole one."""
    raw = next(prospect for prospect in scene.work.prospects if prospect.placement == "offload")
    n_bytes = next(p.bytes_up for p in scene.work.prospects if p.placement == "offload" and p.codec == "none")
    way = replace(
        raw,
        codec="json",
        head_s=scene.work.local_s * matrix.small_ratio,
        encode_s=0.0,
        bytes_up=round(n_bytes * JSON_BYTES_PER_BYTE),
    )
    work = scene.work
    return replace(
        scene,
        work=Work(
            name=work.name,
            prospects=(*work.prospects, way),
            decode_s=(*work.decode_s, 0.0),
            size_ratios=(*work.size_ratios, ()),
        ),
    )


def _throttle(matrix: Matrix) -> Steps:
    """The device is slower for a while, again and again."""
    every_s = matrix.throttle_every_s
    return Steps(np.array([0.0, every_s - matrix.throttle_s]), np.array([1.0, matrix.throttle_ratio]), every_s)


def narrowed(
    matrix: Matrix, wishes: Mapping[str, Sequence[str]], *, quick: bool = False, seed: int | None = None
) -> Matrix:
    """The matrix with only the wished models, devices, links, traces and objectives.

    Raises:
        BadMessage: a wish for what is not in it.
    """
    changes: dict[str, object] = {}
    for field, wanted in wishes.items():
        known: Sequence[str] = getattr(matrix, field)
        strange = next((word for word in wanted if word not in known), None)
        if strange is not None and field not in ("devices", "links"):  # those may be any of the catalog's
            raise BadMessage(f"{strange!r} is none of the matrix's {field}: {', '.join(known)}")
        if wanted:
            changes[field] = tuple(wanted)
    if seed is not None:
        changes["seed"] = seed
    if quick:
        changes["duration_s"] = matrix.quick_duration_s
    return msgspec.structs.replace(matrix, **changes)
