"""The flags that make a campaign's order: one table, from which `create` and `simulate` have their parameters.

Design: an order has some forty fields with types, defaults and checks of their own; the table adds what a person reads.
A command takes one `order: Campaign` and is given flags in its place.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_origin, get_type_hints

import msgspec
import typer

from cloud_gateway.fleet.assignments import parse_tags
from cloud_gateway.fleet.rollouts.rollout import check_stages
from hybrid.errors import BadMessage, NotFound
from hybrid.federated.campaign import Campaign


class _Flag(NamedTuple):
    field: str
    flag: str
    text: str


_AUTO_WEIGHTS: Final = "auto"
_SUITS: Final = {"plain": 1.0, "momentum": 0.3, "adam": 0.03, "yogi": 0.03}
"""Rates of the gateway's optimizers, as measured on the digits (docs/benchmarks.md, rounds to 95 %)."""
_FLAGS: Final = (
    _Flag("variant", "--variant", "The variant whose head learns; empty: the one that has trainable files."),
    _Flag("rounds", "--rounds", "Steps at most."),
    _Flag("target", "--target", "Accuracy on the evaluation set at which it is done, 0 to 1; 0 for none."),
    _Flag("goal", "--goal", "Updates that close a round."),
    _Flag("least", "--least", "With which a round may close at its deadline; 0: half of the goal, at least 2."),
    _Flag("over_selection", "--over-selection", "Tasks at once for each update of the goal."),
    _Flag("deadline_s", "--deadline-s", "Seconds of a round."),
    _Flag("lease_s", "--lease-s", "Seconds that a box has for a task."),
    _Flag("most_abandoned", "--most-abandoned", "Rounds begun anew in a row before the campaign is stalled."),
    _Flag("seed", "--seed", "Of all that is drawn, but for secrets and noise."),
    _Flag("training.epochs", "--epochs", "Over a box's samples, in each task."),
    _Flag("training.batch", "--batch", "Samples a step."),
    _Flag("training.learning_rate", "--learning-rate", "Of a box's SGD."),
    _Flag("training.momentum", "--momentum", "Of a box's SGD."),
    _Flag("training.weight_decay", "--weight-decay", "Of a box's SGD."),
    _Flag("training.proximal", "--proximal", "FedProx's mu: the pull back to the step."),
    _Flag("training.max_steps", "--max-steps", "Of a task; 0 for no bound."),
    _Flag(
        "training.label_smoothing", "--label-smoothing", "Share of each label spread over all classes, 0 to below 1."
    ),
    _Flag("training.personal", "--personal", "Pattern of tensors that never leave a box (FedRep); may be repeated."),
    _Flag("aggregation.rule", "--rule", "Over the updates of a round."),
    _Flag("aggregation.share", "--bad-share", "Of updates, 0 to 0.5, that trimmed-mean and multi-krum are to bear."),
    _Flag("aggregation.optimizer", "--optimizer", "Of the gateway; plain is FedAvg."),
    _Flag("aggregation.learning_rate", "--server-rate", "Of the gateway's optimizer; 0: what suits it."),
    _Flag("aggregation.momentum", "--server-momentum", "Of the gateway's optimizer; adam's and yogi's first decay."),
    _Flag("aggregation.scaffold", "--scaffold", "Control variates: fewer rounds, two vectors each way."),
    _Flag(
        "aggregation.weights", "--weights", "Of updates: samples; uniform: for privacy and SCAFFOLD; auto: which fits."
    ),
    _Flag("aggregation.max_staleness", "--max-staleness", "Steps that an update may be late; 0 is synchronous."),
    _Flag("coding.up", "--up", "Form of updates."),
    _Flag("coding.down", "--down", "Form of differences between steps."),
    _Flag("coding.share", "--top-share", "Of the elements, 0 to 1, where a form is top-k."),
    _Flag("privacy.secure", "--secure", "Secure aggregation: the gateway sees sums only."),
    _Flag("privacy.noise", "--noise", "Differential privacy: noise over the clip norm; 0 for none."),
    _Flag("privacy.clip", "--clip", "Norm to which boxes clip; 0 for none."),
    _Flag("privacy.is_adaptive", "--adaptive-clip", "The clip norm follows the median norm."),
    _Flag("privacy.delta", "--delta", "Of epsilon: well below one over the boxes."),
    _Flag("privacy.max_epsilon", "--max-epsilon", "What a box may spend on the model, in all campaigns; 0: no budget."),
    _Flag("cohort.tags", "--tags", "Which boxes: KEY=VALUE, several with commas; `all`."),
    _Flag("cohort.least_samples", "--least-samples", "That a box must have."),
    _Flag("cohort.power", "--power", "What a box must run on."),
    _Flag("cohort.is_metered_allowed", "--metered", "Also boxes on metered links."),
    _Flag("cohort.roster", "--roster", "File of a roster that the root signed (for --secure)."),
    _Flag("promotion.policy", "--promote", "What becomes of the result."),
    _Flag("promotion.tolerance", "--tolerance", "Per cent of accuracy that a result may lie below the base."),
    _Flag("promotion.stages", "--stages", "Of the rollout: per cent of the boxes, rising."),
    _Flag("promotion.cohort_evaluation", "--cohort-evaluation/--no-cohort-evaluation", "Boxes judge it too."),
)
_PLAIN: Final[Mapping[str, object]] = {"variant": "", "cohort.tags": "all", "aggregation.learning_rate": 0.0}
"""Defaults of flags that are no defaults of the order."""
_PER_CENT: Final = frozenset({"promotion.tolerance"})


def with_order(
    command: Callable[..., None], *, leave_out: tuple[str, ...] = (), defaults: Mapping[str, object] | None = None
) -> Callable[..., None]:
    """The command with flags in place of its parameter `order`.

    Args:
        command: takes `model: str` or nothing of the kind, and `order: Campaign`.
        leave_out: fields, or groups of them (`promotion`), without a flag; they keep their defaults.
        defaults: by field, where they differ from the order's own.
    """
    given = dict(defaults or {})
    flags = [flag for flag in _FLAGS if not _is_in(flag.field, leave_out)]
    words = {flag.field: flag.field.replace(".", "_") for flag in flags}

    @functools.wraps(command)
    def filled(**values: object) -> None:
        told = {flag.field: values.pop(words[flag.field]) for flag in flags}
        model = str(values.get("model", "")) if "model" in values else ""
        command(order=_order(model, {**{k: v for k, v in given.items() if k not in told}, **told}), **values)

    own = [each for each in inspect.signature(command).parameters.values() if each.name != "order"]
    hints = get_type_hints(command, include_extras=True)
    made = [
        inspect.Parameter(
            words[flag.field],
            inspect.Parameter.KEYWORD_ONLY,
            default=given.get(flag.field, _default(flag.field)),
            annotation=_annotation(flag),
        )
        for flag in flags
    ]
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name]) for each in own]
    parameters = [each for each in own if each.default is inspect.Parameter.empty]
    parameters += [*made, *(each for each in own if each.default is not inspect.Parameter.empty)]
    filled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    filled.__annotations__ = {each.name: each.annotation for each in parameters}
    return filled


def _is_in(field: str, groups: tuple[str, ...]) -> bool:
    return any(field == group or field.startswith(f"{group}.") for group in groups)


def _hint(field: str) -> Any:
    kind: Any = Campaign
    for word in field.split("."):
        kind = get_type_hints(kind)[word]
    return kind


def _default(field: str) -> object:
    """What a person sees and leaves as it is."""
    if field == "aggregation.weights":
        return _AUTO_WEIGHTS
    if field in _PLAIN:
        return _PLAIN[field]
    kind: Any = Campaign
    value: Any = None
    for word in field.split("."):
        value = next(each.default for each in msgspec.structs.fields(kind) if each.name == word)
        kind = type(value)
    if field in _PER_CENT:
        return 100.0 * float(value)
    if field == "promotion.stages":
        return ",".join(str(stage) for stage in value)
    return None if value == () else value


def _annotation(flag: _Flag) -> Any:
    kind = _hint(flag.field)
    if flag.field in {"cohort.tags", "promotion.stages", "aggregation.weights"}:
        kind = str
    elif flag.field == "cohort.roster":
        kind = Path | None
    elif get_origin(kind) is tuple:
        kind = list[str] | None
    return Annotated[kind, typer.Option(flag.flag, help=flag.text)]


def _order(model: str, told: Mapping[str, object]) -> Campaign:
    """The order that flags make; checked. Raises `CampaignImpossible`."""
    name, _, version = model.partition(":")
    groups: dict[str, dict[str, object]] = {}
    for field, value in told.items():
        group, _, word = field.rpartition(".")
        groups.setdefault(group, {})[word] = _meant(field, value, told)
    top = groups.pop("", {})
    fields = {each.name: each for each in msgspec.structs.fields(Campaign)}
    made = {group: type(fields[group].default)(**values) for group, values in groups.items()}
    order = Campaign(**{"variant": "", **top, **made, "model": name, "version": version})
    order.check()
    return order


def _meant(field: str, value: Any, told: Mapping[str, object]) -> object:
    """What a flag's value stands for."""
    if field == "aggregation.weights":
        if value not in {_AUTO_WEIGHTS, "samples", "uniform"}:
            raise typer.BadParameter(f"{value!r}: samples, uniform or auto is wanted", param_hint="--weights")
        is_uniform = any(told.get(each) for each in ("privacy.secure", "privacy.noise", "aggregation.scaffold"))
        return ("uniform" if is_uniform else "samples") if value == _AUTO_WEIGHTS else value
    if field == "aggregation.learning_rate":
        return value or _SUITS[str(told.get("aggregation.optimizer", "plain"))]
    if field == "cohort.tags":
        try:
            return parse_tags(value)
        except BadMessage as exc:
            raise typer.BadParameter(str(exc), param_hint="--tags") from exc
    if field == "promotion.stages":
        try:
            percents = [float(word) for word in value.split(",")]
        except ValueError as exc:
            wanted = "numbers with commas between them are wanted, per cent of the boxes, such as 5,30,100"
            raise typer.BadParameter(f"{value[:80]!r}: {wanted}", param_hint="--stages") from exc
        try:
            return tuple(round(100.0 * share) for share in check_stages([percent / 100.0 for percent in percents]))
        except ValueError as exc:
            raise typer.BadParameter(f"{value[:80]!r}: {exc}; write per cent", param_hint="--stages") from exc
    if field == "cohort.roster":
        return _content(value)
    if field in _PER_CENT:
        return value / 100.0
    return tuple(value or ()) if field == "training.personal" else value


def _content(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as exc:
        raise NotFound(f"{path}: {exc.strerror or exc}", advice="Check the path of --roster.") from exc
