"""A recorded decision made once more, with all that was to be chosen from, what each would have cost, and why not."""

from dataclasses import dataclass

from hybrid.errors import CorruptContent
from hybrid.schedule.deciding import agrees, replay
from hybrid.schedule.explaining import Alternative, alternatives
from hybrid.schedule.table import Table
from hybrid.schedule.weighing import Weighing
from hybrid.session.decision_log import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One request of a log, replayed.

    Attributes:
        record: as it was logged.
        alternatives: the device's, the chosen one, then the cheapest first; empty where the placement was forced.
        is_same: whether the replay chose what the session had chosen, at the same cost; None where it was forced.
    """

    record: RequestRecord
    alternatives: tuple[Alternative, ...]
    is_same: bool | None


def replayed(record: RequestRecord, tables: dict[str, Table]) -> Replayed:
    """The decision of a request once more, with its alternatives.

    Raises:
        CorruptContent: the log does not hold the prospects that it refers to.
    """
    inputs = record.decision.inputs
    if inputs is None:
        return Replayed(record=record, alternatives=(), is_same=None)
    table = tables.get(inputs.table)
    if table is None:
        raise CorruptContent(
            f"request {record.n} refers to the prospects {inputs.table}, which are not in this log; it may have begun"
            " in the file that was put aside (PATH.1)",
            path=inputs.table,
        )
    again = replay(inputs, table)
    rows = alternatives(Weighing(inputs, table), record.decision.index)
    return Replayed(record=record, alternatives=rows, is_same=agrees(again, record.decision))
