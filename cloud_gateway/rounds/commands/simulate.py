"""`hybrid rounds simulate`: a campaign on virtual boxes, with the gateway's and the boxes' own code."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_gateway.rounds.commands.order_flags import with_order
from cloud_gateway.rounds.simulation.attack import Attack
from cloud_gateway.rounds.simulation.samples import Split
from cloud_gateway.rounds.simulation.settings import MOST_BOXES, Fleet
from hybrid.cli.output import progress, result
from hybrid.cli.registry_asking import Json
from hybrid.errors import DataUnfit
from hybrid.federated.campaign import Campaign

if TYPE_CHECKING:
    import numpy as np

    from cloud_gateway.rounds.messages import CampaignView
    from cloud_gateway.rounds.simulation.run import Material, Outcome

_LABELS_ADVICE = "Check --labels, or `labels` in the .npz."
_LEFT_OUT = ("cohort", "promotion")
Model = Annotated[
    Path | None,
    typer.Argument(metavar="[MODEL]", help="An artifact's folder with a head that learns; without it a network."),
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Samples of all boxes together: .npz or .npy; without it made up.")
]
Labels = Annotated[Path | None, typer.Option("--labels", help="Their classes: .npy, .csv or one a line.")]
Count = Annotated[int, typer.Option("--samples", help="Made-up samples a box.", min=1)]
Hidden = Annotated[int, typer.Option("--hidden", help="Of the network without MODEL; 0: linear.", min=0)]
Boxes = Annotated[int, typer.Option("--boxes", help="Virtual boxes.", min=1, max=MOST_BOXES)]
Machine = Annotated[
    list[str] | None, typer.Option("--machine", help="Of `hybrid devices`, dealt in turn; may be repeated.")
]
Link = Annotated[list[str] | None, typer.Option("--link", help="A class of links for all; may be repeated.")]
SplitWay = Annotated[Split, typer.Option("--split", help="How samples are divided among boxes.")]
Alpha = Annotated[float, typer.Option("--alpha", help="Of dirichlet: smaller is more unlike.")]
Shards = Annotated[int, typer.Option("--shards", help="Of shards: pieces of one class a box.", min=1)]
Drops = Annotated[float, typer.Option("--drops", help="Per cent of tasks in which a box falls over.", min=0, max=100)]
Away = Annotated[float, typer.Option("--away", help="Per cent of the time that boxes are away.", min=0, max=99)]
Slow = Annotated[float, typer.Option("--slow", help="Per cent of boxes that are stragglers.", min=0, max=100)]
SlowFactor = Annotated[float, typer.Option("--slow-factor", help="How much slower stragglers are.", min=1)]
Attackers = Annotated[float, typer.Option("--attackers", help="Per cent of boxes that attack.", min=0, max=100)]
AttackKind = Annotated[
    Attack, typer.Option("--attack", help="flip: -5 times; scale: 1000 times; noise: as long; garbage: no update.")
]
MostHours = Annotated[float, typer.Option("--most-hours", help="Virtual hours at most.")]


def add_simulate_command(app: typer.Typer) -> None:
    """Join it to `hybrid rounds`."""
    app.command("simulate")(with_order(simulate, leave_out=_LEFT_OUT))


def simulate(
    order: Campaign,
    model: Model = None,
    data: Data = None,
    labels: Labels = None,
    samples: Count = 50,
    hidden: Hidden = 32,
    boxes: Boxes = 100,
    machine: Machine = None,
    link: Link = None,
    split: SplitWay = "dirichlet",
    alpha: Alpha = 0.5,
    shards: Shards = 2,
    drops: Drops = 0.0,
    away: Away = 0.0,
    slow: Slow = 0.0,
    slow_factor: SlowFactor = 10.0,
    attackers: Attackers = 0.0,
    attack: AttackKind = "flip",
    most_hours: MostHours = 24.0,
    json: Json = False,
) -> None:
    """Try a campaign on virtual boxes: rounds, accuracy, bytes, time and rejections, without a gateway or a fleet."""
    fleet = Fleet(
        boxes=boxes,
        machines=tuple(machine or ()),
        links=tuple(link or ()),
        split=split,
        alpha=alpha,
        shards=shards,
        drops_ratio=drops / 100.0,
        away_ratio=away / 100.0,
        slow_ratio=slow / 100.0,
        slow_factor=slow_factor,
        attackers_ratio=attackers / 100.0,
        attack=attack,
        seed=order.seed,
        most_s=3600.0 * most_hours,
    )
    fleet.check()
    if order.goal > boxes:
        raise typer.BadParameter(
            f"{order.goal} updates a round of {boxes} boxes: give more --boxes", param_hint="--goal"
        )
    if data is None and (labels is not None or model is not None):
        raise typer.BadParameter("a model or labels of your own want samples of your own", param_hint="--data")
    with tempfile.TemporaryDirectory(prefix="hybrid-model-") as folder:
        if data is None:
            material = _made_up(Path(folder), fleet, samples, hidden)
        else:
            material = _given(Path(folder), model, (data, labels), fleet, hidden)
        found = _run(order, fleet, material)
    from cloud_gateway.rounds.commands.simulated import lines
    from cloud_gateway.rounds.commands.telling import text_of

    result(found, text_of(lines(found)), json=json)


def _run(order: Campaign, fleet: Fleet, material: "Material") -> "Outcome":
    from msgspec.structs import replace

    from cloud_gateway.rounds.simulation.run import simulate as run

    named = replace(order, model=material.artifact.manifest.name, version="")
    step = 0
    with _quiet_gateway(), progress("simulating", order.rounds, "rounds") as shown:

        def told(view: "CampaignView") -> None:
            nonlocal step
            shown.advance(view.step - step)
            step = view.step

        return run(named, fleet, material, told)


@contextmanager
def _quiet_gateway() -> Iterator[None]:
    """Rounds that are begun anew are what is looked at, no warning: -v shows them."""
    gateway_log = logging.getLogger("hybrid.gateway")
    before = gateway_log.level
    if gateway_log.getEffectiveLevel() == logging.WARNING:
        gateway_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        gateway_log.setLevel(before)


def _made_up(folder: Path, fleet: Fleet, n_samples: int, hidden: int) -> "Material":
    """Samples and network out of nothing."""
    from cloud_gateway.rounds.simulation.model import perceptron
    from cloud_gateway.rounds.simulation.run import Material
    from cloud_gateway.rounds.simulation.samples import N_CLASSES, N_FEATURES, N_TEST, apart, made_up

    learned, test = apart(made_up(fleet.boxes * n_samples + N_TEST, fleet.seed), fleet.seed, N_TEST)
    return Material(
        artifact=perceptron(folder / "model", N_FEATURES, hidden, N_CLASSES, fleet.seed),
        inputs={"x": learned.inputs},
        labels=learned.labels,
        test_inputs={"x": test.inputs},
        test_labels=test.labels,
    )


def _given(folder: Path, model: Path | None, files: tuple[Path, Path | None], fleet: Fleet, hidden: int) -> "Material":
    """Samples of the user's; a fifth measures."""
    import numpy as np

    from cloud_gateway.rounds.commands.evaluation_file import read_set
    from cloud_gateway.rounds.evaluation import LABELS
    from cloud_gateway.rounds.simulation.model import input_of, opened, perceptron
    from cloud_gateway.rounds.simulation.run import Material
    from cloud_gateway.rounds.simulation.samples import held_out

    artifact = opened(model) if model is not None else None
    arrays = read_set(*files, lambda: "x" if artifact is None else input_of(artifact))
    labels = _classes(arrays.pop(LABELS))
    if artifact is None:
        rows = [array.reshape(len(labels), -1).astype(np.float32) for array in arrays.values()]
        arrays = {"x": np.concatenate(rows, axis=1)}
        n_features, n_classes = arrays["x"].shape[1], int(labels.max()) + 1
        artifact = perceptron(folder / "model", n_features, hidden, n_classes, fleet.seed)
    learned, test = held_out(len(labels), fleet.seed)
    return Material(
        artifact=artifact,
        inputs={name: array[learned] for name, array in arrays.items()},
        labels=labels[learned],
        test_inputs={name: array[test] for name, array in arrays.items()},
        test_labels=labels[test],
    )


def _classes(labels: "np.ndarray") -> "np.ndarray":
    """Class numbers of samples. Raises `DataUnfit` where they are none, or more than a set of this size can teach."""
    import numpy as np

    whole = labels.astype(np.int64) if labels.dtype.kind in "iuf" and np.isfinite(labels).all() else None
    if whole is None or labels.ndim != 1 or not len(labels) or (whole != labels).any() or whole.min() < 0:
        raise DataUnfit(
            f"labels are {labels.dtype} {labels.shape}: a class number from 0 on is wanted for each sample",
            advice=_LABELS_ADVICE,
        )
    if whole.max() >= len(whole):
        raise DataUnfit(
            f"a label is {whole.max()}, there are {len(whole)} samples: number the classes from 0, without gaps",
            advice=_LABELS_ADVICE,
        )
    return whole
