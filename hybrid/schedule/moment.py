"""A decision's inputs as plain numbers: what a second, a byte and a gateway are worth at this moment."""

from math import sqrt

from hybrid.cost.slow_start import Rounds, slow_start_rounds
from hybrid.schedule.beliefs import GatewayBelief, Inputs
from hybrid.schedule.plan import BUSY_PRICE, K_SIGMA, SMALL_BYTES, TINY_PRICE, TINY_PRICE_J
from hybrid.schedule.table import Block, Row, Table


class Path:
    """One gateway and the link to it, as the seconds that a request of any size takes.

    Attributes:
        belief: what it is made from.
        up_s, down_s: seconds a byte.
        fixed_s: of every request: round trip, overhead, backlog, queue.
        late_point: mean + k * sigma of the ratios of measured to predicted seconds.
        waits_up, waits_down: what slow start adds, None where nothing waits.
    """

    __slots__ = ("belief", "down_s", "fixed_s", "late_point", "up_s", "waits_down", "waits_up")

    def __init__(self, belief: GatewayBelief, rtt_s: float, most: Block) -> None:
        up_s, down_s = belief.s_per_byte
        self.belief = belief
        self.up_s, self.down_s = up_s, down_s
        self.fixed_s = rtt_s + belief.overhead_s + belief.backlog_s + belief.queue_s
        self.late_point = _late_point(belief.points)
        self.waits_up: Rounds | None = None
        self.waits_down: Rounds | None = None
        if belief.cold_ratio:
            if up_s and belief.up_window_bytes < most.most_bytes_up:
                self.waits_up = slow_start_rounds(most.most_bytes_up, up_s, belief.up_window_bytes, rtt_s)
            if down_s and belief.down_window_bytes < most.most_bytes_down:
                self.waits_down = slow_start_rounds(most.most_bytes_down, down_s, belief.down_window_bytes, rtt_s)

    def carries(self, row: Row) -> bool:
        """Whether the seconds of so many bytes can be told: small messages always, others once a goodput is known."""
        return bool(self.up_s) or row.bytes_up + row.bytes_down < SMALL_BYTES


def _late_point(points: tuple[float, ...]) -> float:
    mean = sum(points) / len(points)
    return mean + K_SIGMA * sqrt(sum([(point - mean) ** 2 for point in points]) / len(points))


class Moment:
    """Prices and paths at the time of one request.

    Attributes:
        inputs: what it is made from.
        scale: seconds of this device over the profiled ones.
        slower: how many times as long its seconds may be (1 + k * sigma).
        here_price: cost of a second of computing before departure.
        lead_price: cost of a second of encoding on another core, beside its time.
        time_price: cost of a second of waiting.
        work_price: cost of a second of computing beside a remote attempt.
        byte_price: cost of a byte, 0 where it only breaks ties.
        up_price, down_price: cost of a second of sending and receiving beside its time.
        sure_up_price: the same of sending as bounds count it, 0 where it only breaks ties.
        attempt_price: cost of a second that an attempt takes from this device.
        is_beside: whether another core encodes while this one computes.
        paths: of the table's gateways, None where nothing can be sent now.
    """

    __slots__ = (
        "attempt_price", "byte_price", "down_price", "here_price", "inputs", "is_beside", "lead_price", "paths",
        "scale", "slower", "sure_up_price", "time_price", "up_price", "work_price",
    )  # fmt: skip

    def __init__(self, inputs: Inputs, table: Table) -> None:
        prices, power, n_device_runs = inputs.prices, inputs.power, inputs.n_device_runs
        s_per_j = prices.s_per_j
        self.inputs = inputs
        self.scale = inputs.device_speed_ratio * (1 + n_device_runs)
        self.slower = 1 + 1.25 * K_SIGMA * inputs.device_spread_ratio
        # A second on this device delays those who compute here already by as much.
        self.here_price = 1 + s_per_j * power.compute_w + n_device_runs
        self.time_price = 1 + s_per_j * power.idle_w
        self.attempt_price = s_per_j * (power.compute_w - power.idle_w)
        self.lead_price = self.attempt_price + n_device_runs
        if inputs.rule < 2:  # it counted the idle watts of that time twice
            self.lead_price = self.here_price - 1
        self.work_price = self.attempt_price + max(n_device_runs, min(1, inputs.n_in_flight))
        if prices.is_throughput:
            self.work_price += BUSY_PRICE
        self.byte_price = prices.s_per_byte if prices.s_per_byte > TINY_PRICE else 0.0
        self.up_price = s_per_j * (power.transmit_w - power.idle_w)
        self.down_price = s_per_j * (power.receive_w - power.idle_w)
        self.sure_up_price = max(0.0, self.up_price) if s_per_j > TINY_PRICE_J else 0.0
        self.is_beside = inputs.n_cores > 1 and not prices.is_throughput
        self.paths: list[Path | None] = [None] * len(table.urls)
        blocks = table.live(inputs.constraints).blocks
        for belief in inputs.gateways:
            if belief.is_usable and belief.rtt_s is not None and belief.url in table.urls:
                place = table.urls.index(belief.url)
                self.paths[place] = Path(belief, belief.rtt_s, blocks[place])
