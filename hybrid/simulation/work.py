"""What is to be done for a request: every way to answer it, with measured parts."""

from dataclasses import dataclass

from hybrid.schedule.prospect import Prospect


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One model's requests on one device with one gateway.

    Attributes:
        name: of the model, for people.
        prospects: all ways, the first one local; their seconds and bytes are the truth as it was measured (the device's
            already scaled by its factor), and what a scheduler is told as its profile.
        decode_s: for each prospect, seconds on the gateway and the device to decode what came.
        size_ratios: for each prospect, encoded bytes of single inputs over the prospect's `bytes_up`; real photos
            differ. Empty where every request has the same size.
    """

    name: str
    prospects: tuple[Prospect, ...]
    decode_s: tuple[float, ...] = ()
    size_ratios: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        n_prospects = len(self.prospects)
        if not n_prospects or self.prospects[0].placement != "local":
            raise ValueError(f"{self.name}: the first prospect is the local one, which is always possible")
        for prospect in self.prospects:
            if prospect.head_s is None or prospect.tail_s is None:
                raise ValueError(f"{self.name}: {prospect.key} has no measured seconds; a simulation needs them all")
        for name, given in (("decode_s", self.decode_s), ("size_ratios", self.size_ratios)):
            if given and len(given) != n_prospects:
                raise ValueError(f"{self.name}: {len(given)} {name} for {n_prospects} prospects; give one for each")

    @property
    def local_s(self) -> float:
        """Seconds of the whole model on the device."""
        return self.prospects[0].head_s or 0.0

    def truth(self) -> "Truth":
        """The same as lists of plain numbers, for the simulator's inner loop."""
        n_prospects = len(self.prospects)
        return Truth(
            head_s=[prospect.head_s or 0.0 for prospect in self.prospects],
            encode_s=[prospect.encode_s for prospect in self.prospects],
            bytes_up=[float(prospect.bytes_up) for prospect in self.prospects],
            bytes_down=[float(prospect.bytes_down) for prospect in self.prospects],
            tail_s=[prospect.tail_s or 0.0 for prospect in self.prospects],
            decode_s=list(self.decode_s) or [0.0] * n_prospects,
            size_ratios=[ratios or (1.0,) for ratios in self.size_ratios] or [(1.0,)] * n_prospects,
        )


@dataclass(slots=True)
class Truth:
    """Measured parts by number of the prospect; `bytes_of` is what one request really sends."""

    head_s: list[float]
    encode_s: list[float]
    bytes_up: list[float]
    bytes_down: list[float]
    tail_s: list[float]
    decode_s: list[float]
    size_ratios: list[tuple[float, ...]]

    def bytes_of(self, index: int, sample: float) -> float:
        """Encoded bytes of the input that `sample` (0 to 1) picks."""
        ratios = self.size_ratios[index]
        return self.bytes_up[index] * ratios[int(sample * len(ratios))]
