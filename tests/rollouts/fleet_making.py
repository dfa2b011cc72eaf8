"""Boxes, plans and words of boxes for tests of rollouts."""

import random
from types import SimpleNamespace

from cloud_gateway.fleet.assignments import Assignment, Terms
from cloud_gateway.fleet.rollouts.rollout import Plan
from cloud_gateway.fleet.steering.ledger import Ledger
from cloud_gateway.fleet.steering.store import Kept
from hybrid.fleet.messages import Installed

OLD, NEW = "1" * 64, "2" * 64


def box(number, admission="admitted", **tags):
    return SimpleNamespace(id=f"{number:032x}", name=f"box-{number}", tags=tags, admission=admission)


class Boxes:
    """A registry whose boxes a test may change."""

    def __init__(self, *boxes):
        self.by_id = {one.id: one for one in boxes}

    def all(self):
        return tuple(self.by_id.values())

    def find(self, box_id):
        return self.by_id.get(box_id)

    def add(self, one):
        self.by_id[one.id] = one
        return one


def plan(**fields):
    made = {"id": "r", "model": "detector", "version": "2", "artifact_digest": NEW, "soak_s": 600.0}
    return Plan(**(made | {"terms": Terms(report_within_s=1200.0)} | fields))


def told(digest=OLD, phase="committed", **fields):
    version = "2" if digest == NEW else "1"
    return Installed(name="detector", version=version, artifact_digest=digest, phase=phase, **fields)


def ledger_of(boxes, **fields):
    made = Ledger(
        Kept(assignments=(), rollouts=(), boxes={}, **fields), boxes, now_s=lambda: 1000.0, rng=random.Random(7)
    )
    made.assign(Assignment(id=0, model="detector", version="1", artifact_digest=OLD))
    return made


def say(ledger, box_id, *words):
    """A box is heard of, and tells something."""
    ledger.note_seen(box_id)
    return ledger.note_told(box_id, words)


def wanted(ledger, one, model="detector"):
    """The version that a box should have; None for none."""
    return next((found.version for found in ledger.desired(one) if found.name == model), None)
