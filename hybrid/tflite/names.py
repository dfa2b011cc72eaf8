"""Names of tensors: TensorFlow Lite knows them by number, and names may be empty or shared."""

from typing import Any

from devices.tflite_details import public_names


def names_of(graph: Any) -> list[str]:
    """A name for each tensor of a subgraph, no two alike.

    Inputs and outputs have the names that an open session shows. Every other tensor keeps its own name where no other
    has it, else its number is added, so that both sides of a split say the same for the same file.
    """
    own = [text(tensor.name) for tensor in graph.tensors]
    ports = public_names([(int(index), own[int(index)]) for index in (*graph.inputs, *graph.outputs)])
    counts: dict[str, int] = {}
    for name in own:
        counts[name] = counts.get(name, 0) + 1
    taken = set(ports.values())
    found = []
    for index, name in enumerate(own):
        if index in ports:
            found.append(ports[index])
            continue
        is_own = bool(name) and counts[name] == 1 and name not in taken
        found.append(name if is_own else f"{name or 'tensor'}#{index}")
    return found


def text(name: bytes | str | None) -> str:
    """A name of the file as text."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""
