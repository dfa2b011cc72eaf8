"""Chooses the topological order whose prefixes are the cuts."""

from hybrid.graph.view import GraphView


def cut_order(view: GraphView) -> list[int]:
    """Every node once, each after the producers of what it reads."""
    return list(range(len(view.nodes)))
