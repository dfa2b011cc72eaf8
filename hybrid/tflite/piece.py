"""Head and tail files of a cut: the part of a graph between some tensors and others, with its own weights."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from hybrid.errors import ModelUnsupported
from hybrid.tflite.model_file import Model, schema, write
from hybrid.tflite.operators import graphs_run_by, inner_graphs
from hybrid.tflite.view import stateful_operators


def head_file(model: Model, crossing: Iterable[str], outputs: Iterable[str]) -> bytes:
    """The file from the model's inputs to these tensors, with all that remembers.

    Args:
        model: bound, as `prepare` left it.
        crossing: names of the tensors that cross; inputs of the model among them are not computed.
        outputs: names of the outputs that the head answers with.
    """
    graph = model.subgraphs[0]
    given = {graph.tensors[int(index)].name for index in graph.inputs}
    wanted = dict.fromkeys([name for name in crossing if name not in given] + list(outputs))
    return _file(model, stop_at=given, inputs=None, outputs=list(wanted), keeps_state=True)


def tail_file(model: Model, crossing: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The file from these tensors to the rest of the outputs.

    Raises:
        ModelUnsupported: the tensors do not determine the rest.
    """
    return _file(model, stop_at=set(crossing), inputs=list(crossing), outputs=list(outputs), keeps_state=False)


def _file(model: Model, *, stop_at: set[str], inputs: list[str] | None, outputs: list[str], keeps_state: bool) -> bytes:
    graph = model.subgraphs[0]
    numbers = {tensor.name: index for index, tensor in enumerate(graph.tensors)}
    border = {numbers[name] for name in stop_at}
    always = stateful_operators(model) if keeps_state else []
    wanted = {numbers[name] for name in outputs} - border
    kept = []
    for operator in reversed(graph.operators):
        makes = [int(index) for index in operator.outputs if int(index) not in border]
        if not wanted.isdisjoint(makes) or any(operator is one for one in always):
            kept.append(operator)
            wanted.update(int(index) for index in operator.inputs if index >= 0 and int(index) not in border)
    made = {int(index) for operator in kept for index in operator.outputs}
    missing = wanted.intersection(map(int, graph.inputs)) - border - made
    if missing:
        named = sorted(graph.tensors[index].name for index in missing)[:3]
        raise ModelUnsupported(f"the cut's tensors do not determine the rest of the graph: {named} would be needed too")
    if inputs is None:
        read = {int(index) for operator in kept for index in operator.inputs}
        fed = [int(index) for index in graph.inputs]
        inputs = [graph.tensors[i].name for i in fed if i in read or graph.tensors[i].name in outputs]
    places = [numbers[name] for name in inputs], [numbers[name] for name in outputs]
    return write(_Piece(model).built(kept[::-1], *places))


@dataclass
class _Piece:
    """A new model that takes graphs, tensors and weights over from another, under new numbers."""

    source: Model
    graphs: dict[int, int] = field(default_factory=dict)
    buffers: dict[int, int] = field(default_factory=dict)

    def built(self, operators: list[Any], inputs: list[int], outputs: list[int]) -> Model:
        """The model of these operators of the source's first graph."""
        generated = schema()
        self.graphs = {0: 0}
        self.buffers = {0: 0}
        waiting = list(operators)
        while waiting:
            for number in graphs_run_by(waiting.pop()):
                if number not in self.graphs:
                    self.graphs[number] = len(self.graphs)
                    waiting += self.source.subgraphs[number].operators or ()
        graphs = [self._main(operators, inputs, outputs)]
        graphs += [self._inner(self.source.subgraphs[number]) for number in self.graphs if number]
        model = generated.ModelT()
        model.version = self.source.version
        model.description = "a part of a model, written by hybrid"
        model.operatorCodes = self.source.operatorCodes
        model.subgraphs = graphs
        model.buffers = [self.source.buffers[number] for number in self.buffers]
        return model

    def _main(self, operators: list[Any], inputs: list[int], outputs: list[int]) -> Any:
        source = self.source.subgraphs[0]
        used = [*inputs, *outputs]
        for operator in operators:
            used += [int(index) for index in _tensors_of(operator) if index >= 0]
        numbers = {index: at for at, index in enumerate(dict.fromkeys(used))}
        graph = schema().SubGraphT()
        graph.name = source.name
        graph.tensors = [self._tensor(source.tensors[index]) for index in numbers]
        graph.inputs = [numbers[index] for index in inputs]
        graph.outputs = [numbers[index] for index in outputs]
        graph.operators = [self._operator(operator, numbers) for operator in operators]
        return graph

    def _inner(self, source: Any) -> Any:
        graph = copy(source)
        graph.tensors = [self._tensor(tensor) for tensor in source.tensors or ()]
        graph.operators = [self._operator(operator, None) for operator in source.operators or ()]
        return graph

    def _tensor(self, source: Any) -> Any:
        tensor = copy(source)
        tensor.buffer = self.buffers.setdefault(int(source.buffer), len(self.buffers))
        return tensor

    def _operator(self, source: Any, numbers: dict[int, int] | None) -> Any:
        operator = copy(source)
        if numbers is not None:
            operator.inputs = [numbers[int(index)] if index >= 0 else -1 for index in source.inputs]
            operator.outputs = [numbers[int(index)] for index in source.outputs]
            if source.intermediates is not None:
                operator.intermediates = [numbers[int(index)] for index in source.intermediates]
        operator.builtinOptions = copy(source.builtinOptions)
        operator.builtinOptions2 = copy(source.builtinOptions2)
        for options, name, at in inner_graphs(operator):
            if at is None:
                setattr(options, name, self.graphs[int(getattr(options, name))])
            else:
                moved = [self.graphs[int(number)] for number in getattr(options, name)]
                setattr(options, name, moved)
                break  # a list is moved whole
        return operator


def _tensors_of(operator: Any) -> list[int]:
    inner = operator.intermediates if operator.intermediates is not None else ()
    return [*map(int, operator.inputs), *map(int, operator.outputs), *map(int, inner)]
