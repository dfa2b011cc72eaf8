"""What is wrong with a model on this box, for people, and what to do about it."""

from edge_agent.install.model import Model
from edge_agent.install.rules import TrustKeys, is_believed
from edge_agent.part import Problem


def problems_of(model: Model, trust: TrustKeys | None) -> list[Problem]:
    """For the health of the agent; from memory."""
    slots = model.slots
    found = []
    had_one = slots.sequence >= 0 or bool(slots.last_good)
    if model.assigned is not None and not slots.answers and had_one:
        found.append(
            Problem(
                code="model_unavailable",
                what=f"{model.name} was in use on this box and no version of it answers now",
                do="Nothing, if the box has its gateway: it is fetched anew. Else bring it: hybrid agent import FILE.",
                blocks=True,
            )
        )
    answering = slots.answering
    if answering is not None and not is_believed(answering.signed_by, trust):
        found.append(
            Problem(
                code="forbidden",
                what=f"{model.name}:{answering.version} answers, and the key that signed it is not trusted any more",
                do="It goes on until another version is assigned: hybrid fleet assign, on the gateway.",
            )
        )
    if slots.failure is not None:
        version = slots.wanted.version if slots.wanted is not None else ""
        found.append(
            Problem(
                code=slots.failure.code,
                what=f"{model.name}:{version} {slots.phase.replace('_', ' ')}: {slots.failure.detail}",
                do=f"What answered before does. What to do about the version: hybrid explain {slots.failure.code}.",
            )
        )
    elif model.trouble is not None:
        found.append(Problem(code=model.trouble.code, what=f"{model.name}: {model.trouble}", do="It is tried again."))
    return found
