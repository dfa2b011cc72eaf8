"""Which crossings a route has, and one way for each codec of them, with what is known before anything is measured."""

from dataclasses import replace

from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.route.allowance import LOSSLESS, Allowance
from hybrid.route.route import Route
from hybrid.route.way import Crossing, Way
from hybrid.schedule.options import Options
from hybrid.schedule.prospect import Prospect
from hybrid.scouting.exact_codecs import exact_codecs
from hybrid.scouting.knowledge import Knowledge
from hybrid.scouting.outlook import hope_s
from hybrid.scouting.splits import Splits


class WayMaker:
    """Makes the crossings of routes; used on the preparation thread only.

    Args:
        options: the session's.
        allowance: what may leave this machine.
        knowledge: what is known of the model before anything is measured.
        splits: those of the model's artifact.
    """

    def __init__(self, options: Options, allowance: Allowance, knowledge: Knowledge, splits: Splits) -> None:
        self._options = options
        self._allowance = allowance
        self._knowledge = knowledge
        self._splits = splits

    def crossings(self, route: Route, prepared: Prepared | None) -> list[Crossing]:
        """One crossing for each gateway and cut (or split) that both sides have, keeping those that are there.

        Returns:
            The input cut's first, then the most promising.

        Raises:
            UnknownCut: a forced one that this model does not have for these shapes.
        """
        cuts = self._cuts(prepared)
        known = {crossing.place: crossing for crossing in route.crossings}
        made = [
            Crossing(holding, cut)
            for holding in route.holdings
            for cut in cuts
            if (cut is None or cut.id in holding.tails) and self._options.codec in {"auto", *holding.codecs}
        ]
        made += [
            Crossing(holding, cut, split)
            for holding in route.holdings
            for cut, split in self._splits.at(prepared, holding)
        ]
        crossings = [self._with_ways(route, known.get(crossing.place) or crossing) for crossing in made]
        return sorted(crossings, key=lambda crossing: (crossing.cut is not None, self.hope_s(route, crossing)))

    def hope_s(self, route: Route, crossing: Crossing) -> float:
        """What may be expected of a crossing before it is timed here."""
        cut, head_s = crossing.cut, 0.0 if crossing.cut is None else None
        if cut is not None and crossing.has_own_head:
            head_s = self._knowledge.expected_head_s(route.shape_key, cut.id, route.local_s)
        return hope_s(route, crossing, self._allowance.constraints(), head_s)

    def _cuts(self, prepared: Prepared | None) -> list[Cut | None]:
        """The cuts to consider, None standing for the input cut, which needs no head."""
        inputs: list[Cut | None] = [None] if self._options.kind in ("auto", "offload") else []
        if prepared is None:
            return inputs
        if self._options.forced_cut:
            return [prepared.table.get(self._options.forced_cut)]
        pareto = [cut for cut in prepared.table.interior if cut.id in prepared.table.pareto]
        if self._options.kind == "split" and not pareto:
            # No cut is worth it, but one is wanted: those with the fewest bytes.
            pareto = sorted((cut for cut in prepared.table.interior if cut.sized), key=lambda cut: cut.n_bytes)[:3]
        return [*inputs, *pareto]

    def _with_ways(self, route: Route, crossing: Crossing) -> Crossing:
        """The crossing with a way for each codec: lossless ones, and lossy ones that are forced or calibrated."""
        cut_id, shape_key, holding = crossing.cut.id if crossing.cut else "", route.shape_key, crossing.holding
        split, there = crossing.split, {way.prospect.codec: way for way in crossing.ways}
        if split is not None:
            codecs: tuple[str, ...] = (split.codec,)
        elif self._options.codec == "auto":
            fed = (route.sample or {}) if crossing.cut is None else {}
            exact = tuple(codec for codec in there if codec in LOSSLESS) or exact_codecs(fed)
            found = (*exact, *self._knowledge.codecs(shape_key, cut_id))
            codecs = tuple(codec for codec in found if codec in holding.codecs)
        else:
            codecs = (self._options.codec,)
        digest = split.digest if split is not None else ""
        for codec in codecs:
            drop = 0.0 if codec in LOSSLESS else self._knowledge.drop(shape_key, cut_id, codec, digest)
            if codec in there:
                there[codec].prospect = replace(there[codec].prospect, accuracy_drop=drop)
                continue
            ratio = self._knowledge.bytes_ratio(shape_key, cut_id, codec, digest)
            crossing.ways.append(Way(self._prospect(route, crossing, codec, drop, ratio), crossing))
            crossing.is_timed = False
        return crossing

    def _prospect(
        self, route: Route, crossing: Crossing, codec: str, drop: float | None, bytes_ratio: float
    ) -> Prospect:
        """What is known of a way before it is measured."""
        cut, holding, sample = crossing.cut, crossing.holding, route.sample or {}
        raw_bytes = cut.n_bytes if cut else sum(array.nbytes for array in sample.values())
        reply_bytes = cut.reply_bytes if cut else sum(output.nbytes for output in route.reference or ())
        return Prospect(
            placement="split" if cut else "offload",
            cut=cut.id if cut else "",
            codec=codec,
            gateway=holding.client.url,
            head_s=None if cut else 0.0,
            bytes_up=int(raw_bytes * bytes_ratio),
            bytes_down=reply_bytes,
            reply_bytes=reply_bytes,
            tail_s=holding.tails.get(cut.id) if cut else holding.whole_s,
            accuracy_drop=drop,
            raw_input=cut is None or any(tensor.name in sample for tensor in cut.tensors),
        )
