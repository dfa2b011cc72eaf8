"""Orders that cannot be: numbers that are none, and wishes that would silently come to nothing together."""

import math

import msgspec
import pytest

from hybrid.errors import CampaignImpossible
from hybrid.federated.campaign import Aggregation, Campaign, Coding, Privacy, Training

NOISE = Privacy(noise=1.0, clip=1.0)


def order(**more) -> Campaign:
    return Campaign(**({"model": "m", "version": "1", "variant": "v"} | more))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"seed": -1}, "the seed is -1"),
        ({"most_abandoned": 0}, "1 or more"),
        ({"training": Training(max_steps=-3)}, "-3 steps"),
        ({"goal": 2, "aggregation": Aggregation(rule="multi-krum")}, "compares 3 updates, the goal is 2"),
        ({"aggregation": Aggregation(scaffold=True)}, "uniform weights"),
        ({"aggregation": Aggregation(scaffold=True, weights="uniform", rule="median")}, "not median with plain"),
        ({"aggregation": Aggregation(scaffold=True, weights="uniform", optimizer="adam")}, "not mean with adam"),
        (
            {"aggregation": Aggregation(scaffold=True, weights="uniform"), "privacy": Privacy(clip=1.0)},
            "would shorten SCAFFOLD's variates",
        ),
        ({"aggregation": Aggregation(weights="uniform", rule="norm-clip"), "privacy": NOISE}, "not norm-clip"),
        ({"privacy": Privacy(clip=1.0, is_adaptive=True)}, "it needs noise"),
        ({"aggregation": Aggregation(rule="median"), "coding": Coding(up="top-k")}, "median keeps those at zero"),
        ({"aggregation": Aggregation(rule="trimmed-mean"), "coding": Coding(up="top-k")}, "take int8"),
    ],
)
def test_what_would_come_to_nothing_is_refused_with_the_reason(more, why):
    with pytest.raises(CampaignImpossible, match=why):
        order(**more).check()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"aggregation": Aggregation(scaffold=True, weights="uniform")},
        {"aggregation": Aggregation(rule="multi-krum"), "coding": Coding(up="top-k")},
        {"aggregation": Aggregation(weights="uniform"), "privacy": Privacy(noise=1.0, clip=1.0, is_adaptive=True)},
        {"aggregation": Aggregation(rule="norm-clip"), "privacy": Privacy(clip=1.0)},
    ],
)
def test_what_can_be_is_taken(more):
    order(**more).check()


def fractions(kind=Campaign, before=()):
    for each in msgspec.structs.fields(kind):
        if isinstance(each.default, msgspec.Struct):
            yield from fractions(type(each.default), (each.name,))
        elif isinstance(each.default, float):
            yield (*before, each.name)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("path", list(fractions()), ids=".".join)
def test_no_number_of_an_order_is_none(path, value):
    """JSON has none of them; a command line does, and nan is neither above nor below any bound."""
    made = order(aggregation=Aggregation(weights="uniform"))
    if len(path) == 1:
        made = msgspec.structs.replace(made, **{path[0]: value})
    else:
        group = msgspec.structs.replace(getattr(made, path[0]), **{path[1]: value})
        made = msgspec.structs.replace(made, **{path[0]: group})
    with pytest.raises(CampaignImpossible):
        made.check()
