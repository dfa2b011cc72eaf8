"""The digits learnt together in many ways: rounds and bytes until 95 %, medians over seeds, beside their bars."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from benchmarks.federated_parts.loop import Outcome, Setting, learn
from benchmarks.report import Bar
from tests.federated import digits_task as task

SEEDS: Final = range(15)
SHARDS: Final = None
DIRICHLET: Final = 0.5
NEVER: Final = 10_000
"""Rounds of a seed that never came to the target."""

_PLAIN: Final = Setting(max_rounds=300)
_ADAM: Final = Setting(algorithm="adam", rate=0.03)
_SCAFFOLD: Final = Setting(algorithm="scaffold")


class Way(NamedTuple):
    """One way of learning them.

    Attributes:
        alpha: of the Dirichlet split, `SHARDS` for two label shards a device.
        most_rounds: the bar of its median; None: it has none.
        is_head: the last layer alone.
        must_finish: whether every seed has to come to 95 %.
    """

    name: str
    alpha: float | None
    setting: Setting
    most_rounds: int | None = None
    is_head: bool = False
    must_finish: bool = False


def _int8(setting: Setting) -> Setting:
    return msgspec.structs.replace(setting, uplink="int8", downlink="int8")


def _sparse(setting: Setting) -> Setting:
    return msgspec.structs.replace(setting, uplink="top-k", downlink="top-k")


def _losing(setting: Setting) -> Setting:
    return msgspec.structs.replace(setting, dropout_ratio=0.3)


WAYS: Final[Sequence[Way]] = (
    Way("FedAvg", DIRICHLET, _PLAIN, 10),
    Way("FedAvg, int8 both ways", DIRICHLET, _int8(_PLAIN), 10),
    Way("FedAvg, top 1 % both ways", DIRICHLET, _sparse(_PLAIN)),
    Way("FedAvg, 30 % drop out", DIRICHLET, _losing(_PLAIN), must_finish=True),
    Way("FedAvg, int8, 30 % drop out", DIRICHLET, _losing(_int8(_PLAIN)), must_finish=True),
    Way("FedAvg", SHARDS, _PLAIN),
    Way("FedAvg, top 1 % both ways", SHARDS, _sparse(_PLAIN)),
    Way("FedAvg, top 1 %, 30 % drop out", SHARDS, _losing(_sparse(_PLAIN)), must_finish=True),
    Way("FedProx 0.1", SHARDS, Setting(proximal=0.1, max_rounds=300)),
    Way("FedAvgM 0.3", SHARDS, Setting(algorithm="momentum", rate=0.3)),
    Way("FedAdam 0.03", SHARDS, _ADAM, 27),
    Way("FedAdam, int8 both ways", SHARDS, _int8(_ADAM), 27),
    Way("FedAdam, int8, 30 % drop out", SHARDS, _losing(_int8(_ADAM)), must_finish=True),
    Way("FedYogi 0.03", SHARDS, Setting(algorithm="yogi", rate=0.03)),
    Way("SCAFFOLD", SHARDS, _SCAFFOLD, 14),
    Way("SCAFFOLD, int8 both ways", SHARDS, _int8(_SCAFFOLD), 14),
    Way("SCAFFOLD, 5 of 10", SHARDS, Setting(algorithm="scaffold", n_chosen=5)),
    Way("SCAFFOLD, 30 % drop out", SHARDS, _losing(_SCAFFOLD), must_finish=True),
    Way("head alone, FedAvg", DIRICHLET, _PLAIN, is_head=True),
    Way("head alone, FedAdam 0.03", DIRICHLET, _ADAM, 8, is_head=True),
    Way("head alone, FedAvg", SHARDS, _PLAIN, is_head=True),
    Way("head alone, FedAdam 0.03", SHARDS, _ADAM, 8, is_head=True),
    Way("head alone, FedAdam, int8 both ways", SHARDS, _int8(_ADAM), 8, is_head=True),
)

COLUMNS: Final = ("way", "split", "rounds to 95 %", "of seeds", "never", "KB up", "KB down")


class Measured(NamedTuple):
    """A way with its outcomes, one a seed."""

    way: Way
    outcomes: list[Outcome]

    @property
    def rounds(self) -> list[int]:
        """Until 95 %, in order; `NEVER` where it was not."""
        return sorted(each.rounds or NEVER for each in self.outcomes)

    @property
    def bytes_up(self) -> float:
        """Of all updates, median of the seeds."""
        return statistics.median(each.bytes_up for each in self.outcomes)

    @property
    def bytes_down(self) -> float:
        """Of all that was fetched, first versions included, median of the seeds."""
        return statistics.median(each.bytes_down for each in self.outcomes)

    def row(self) -> list[str | float]:
        """For the table."""
        rounds = self.rounds
        split = "two label shards" if self.way.alpha is SHARDS else f"Dirichlet {self.way.alpha:g}"
        span = f"{rounds[0]}–{max((each for each in rounds if each < NEVER), default=NEVER)}"
        n_never = rounds.count(NEVER)
        cells: list[str | float] = [self.way.name, split, statistics.median(rounds), span, n_never]
        return [*cells, self.bytes_up / 1e3, self.bytes_down / 1e3]


def measured(ways: Iterable[Way] = WAYS, seeds: Iterable[int] = SEEDS) -> list[Measured]:
    """Each way with each seed."""
    problem = {True: task.digits_head, False: task.digits}
    return [
        Measured(way, [learn(way.setting, problem[way.is_head](way.alpha, seed), seed) for seed in seeds])
        for way in ways
    ]


def bars(results: Sequence[Measured]) -> list[Bar]:
    """What is promised of rounds and bytes; those of ways that were not measured are left out."""
    by_name = {(each.way.name, each.way.alpha): each for each in results}
    made = []
    for each in results:
        name = f"{each.way.name} ({each.row()[1]})"
        if each.way.most_rounds is not None:
            made.append(
                Bar(name=f"{name}: median rounds", measured=statistics.median(each.rounds), limit=each.way.most_rounds)
            )
        if each.way.must_finish:
            made.append(Bar(name=f"{name}: seeds that never reached 95 %", measured=each.rounds.count(NEVER), limit=0))
        if each.way.is_head and each.way.most_rounds is not None:
            made.append(Bar(name=f"{name}: up in all", measured=each.bytes_up / 1e3, limit=210, unit=" KB"))
    whole = by_name.get(("FedAvg", SHARDS))
    sparse = by_name.get(("FedAvg, top 1 % both ways", SHARDS))
    if whole and sparse:
        up = sparse.bytes_up / whole.bytes_up
        total = (sparse.bytes_up + sparse.bytes_down) / (whole.bytes_up + whole.bytes_down)
        made.append(Bar(name="top 1 % on shards: bytes up, of float32's", measured=up, limit=1 / 40))
        made.append(Bar(name="top 1 % on shards: bytes both ways, of float32's", measured=total, limit=1 / 20))
    small = by_name.get(("FedAvg, int8 both ways", DIRICHLET))
    if small:
        a_round = max(each.bytes_up / len(each.accuracies) for each in small.outcomes) / 1e3
        made.append(Bar(name="int8: up in a round, all ten", measured=a_round, limit=51, unit=" KB"))
    return made
