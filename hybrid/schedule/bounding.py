"""Lower bounds of what remote prospects cost, all at once.

Design: a cost is nearly linear in a prospect's seconds and bytes, so a few operations on a matrix bound all of them;
what is computed exactly afterwards is only what the bounds do not rule out.
"""

from math import inf

import numpy as np
import numpy.typing as npt

from hybrid.schedule.moment import Moment, Path
from hybrid.schedule.plan import RESERVE_S, SMALL_BYTES, TINY_PRICE_J
from hybrid.schedule.table import Block

Floats = npt.NDArray[np.float64]


def lower_bounds(moment: Moment, block: Block, path: Path, rest_s: float, credit_s: float) -> Floats:
    """What is paid for certain, and for each point the cheaper of waiting for it and computing here from departure.

    No hedge time can do better; failures, the rest of the joules and a deadline only make it dearer.

    Args:
        moment: prices.
        block: prospects.
        path: to their gateway.
        rest_s: seconds of the best local prospect.
        credit_s: the most that is taken off a cost.

    Returns:
        (n,), infinite for what cannot be predicted or is not allowed now.
    """
    inputs, belief = moment.inputs, path.belief
    ends_s: float | Floats = rest_s + inputs.attempt_s
    if block.rest_s is not None:
        ends_s = np.where(np.isinf(block.rest_s), rest_s, block.rest_s * moment.scale) + inputs.attempt_s
    if inputs.prices.is_throughput and inputs.deadline_left_s is None:
        return _barred(_stages_s(moment, block, path), moment, block, path)
    lasting_s = block.features.dot(np.array((0.0, 0.0, path.up_s, path.down_s, belief.speed_ratio, path.fixed_s)))
    _add_waits(lasting_s, block, path, 1.0)
    times_s = np.multiply.outer(belief.points, lasting_s)
    lead_s: float | Floats = 0.0
    if moment.is_beside:
        lead_s = block.encode_s * moment.scale
        times_s += lead_s
    late: float | Floats = 0.0
    work_ratio, left_s = moment.work_price / moment.time_price, inputs.deadline_left_s
    if left_s is not None:
        here_s = (block.head_s if moment.is_beside else block.head_s + block.encode_s) * (moment.scale * moment.slower)
        done_s = ends_s * moment.slower + RESERVE_S
        late = _surely_late(here_s + np.minimum(lasting_s * path.late_point + lead_s, done_s) - left_s)
        if inputs.prices.is_throughput:
            return _barred(_stages_s(moment, block, path) + late, moment, block, path)
        if work_ratio > TINY_PRICE_J:
            # The hedge cannot wait for ever: what comes after its last moment is computed beside.
            beside_s = times_s - np.maximum(left_s - done_s - here_s, 0.0)
            times_s += work_ratio * np.maximum(beside_s, 0.0, out=beside_s)
    most = ends_s * (1 + work_ratio)
    np.minimum(times_s, most, out=times_s)
    n, passing = len(belief.points), 1 - belief.failure_ratio
    costs = _paid(moment, block, path, credit_s)
    costs += np.full(n, passing * moment.time_price / n).dot(times_s)
    costs += late
    if rest_s < inf:
        costs += (1 - passing) * moment.time_price * most
    return _barred(costs, moment, block, path)


def _stages_s(moment: Moment, block: Block, path: Path) -> Floats:
    """(n,) seconds of the slowest stage of a stream of such requests."""
    stages = (block.head_s + block.encode_s) * moment.scale
    np.maximum(stages, block.tail_s * path.belief.speed_ratio + path.belief.queue_s, out=stages)
    np.maximum(stages, block.bytes_up * path.up_s, out=stages)
    np.maximum(stages, block.bytes_down * path.down_s, out=stages)
    return np.asarray(stages)


def _paid(moment: Moment, block: Block, path: Path, credit_s: float) -> Floats:
    """(n,) what is paid beside the time from departure on, less the credit."""
    byte_price = moment.inputs.prices.s_per_byte
    here, encode = (
        moment.scale * moment.here_price,
        moment.scale * (moment.lead_price if moment.is_beside else moment.here_price),
    )
    up, down = path.up_s * moment.up_price + byte_price, path.down_s * moment.down_price + byte_price
    once = moment.attempt_price * moment.inputs.attempt_s - credit_s
    return np.asarray(block.features.dot(np.array((here, encode, up, down, 0.0, once))))


def hopes(moment: Moment, block: Block, path: Path, factor: float) -> Floats:
    """(n,) what each would cost, unhedged, if its bytes moved so many times as fast; infinite where unknown."""
    price, scale, belief = moment.time_price, moment.scale, path.belief
    up_price = path.up_s * (moment.sure_up_price + price / factor) + moment.byte_price
    encode_price = moment.lead_price + price if moment.is_beside else moment.here_price
    down_price = path.down_s * price / factor + moment.byte_price
    costs = block.features.dot(
        np.array(
            (scale * moment.here_price, scale * encode_price, up_price, down_price, price * belief.speed_ratio,
             price * path.fixed_s)
        )
    )  # fmt: skip
    _add_waits(costs, block, path, price)
    return _barred(costs, moment, block, path)


def _add_waits(costs: Floats, block: Block, path: Path, price: float) -> None:
    """What slow start adds as long as a plan is kept, at this price of a second."""
    share = path.belief.cold_ratio * path.belief.lasting_ratio * price
    if path.waits_up is not None:
        costs += share * path.waits_up.of_all(block.bytes_up)
    if path.waits_down is not None:
        costs += share * path.waits_down.of_all(block.bytes_down)


def _surely_late(late_s: Floats) -> float | Floats:
    """The penalty of those that miss the deadline by so much even if the device starts at once."""
    if late_s.max() <= 0.0:
        return 0.0
    return np.asarray((late_s > 0.0) * (1e3 + 1e3 * late_s))


def _barred(bounds: Floats, moment: Moment, block: Block, path: Path) -> Floats:
    """The same without what cannot be predicted, since no goodput is known, or is above the uplink budget now."""
    left_bytes = moment.inputs.constraints.uplink_left_bytes
    if left_bytes is not None:
        bounds[block.bytes_up > left_bytes] = np.inf
    if not path.up_s:
        bounds[block.bytes_up + block.bytes_down >= SMALL_BYTES] = np.inf
    return bounds
