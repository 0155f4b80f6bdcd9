"""A recurrent student as two ONNX graphs, built from the arrays of its bundle without torch.

`fold_graph` follows one event of each user of a batch; `scores_graph` scores all items. Both have
the equations of docs/bundle-format.md; docs/onnx.md has their inputs and outputs. Needs onnx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import CONTEXT
from distilrec.engine.runtimes.neighbours import NeighbourArrays, neighbours_in
from distilrec.engine.runtimes.recurrent import NORM_EPSILON
from distilrec.engine.runtimes.runtime import signs_of
from distilrec.engine.time_inputs import DAY, DAYS, HOUR, KNOTS, PER_KNOT

OPSET, IR_VERSION = 17, 8
"""ONNX 1.12 of 2022: what ONNX Runtime reads from 1.12 on."""
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64
Array = NDArray[Any]


class _Graph:
    """Nodes and constants of a graph that is being written. Values are named by texts."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Array] = {}

    def constant(self, name: str, array: Array) -> str:
        """Add an array; floats become float32, whole numbers int64."""
        dtype = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
        self._constants[name] = np.ascontiguousarray(array, dtype)
        return name

    def number(self, value: float) -> str:
        """Add a number: int64 for an int, float32 for a float."""
        name = f"{type(value).__name__}_{value}"
        return self.constant(name, np.array(value))

    def numbers(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the name of that."""
        name = name or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def cut(self, value: str, start: int, stop: int) -> str:
        """Add the columns of a matrix from `start` up to `stop`."""
        return self.add(
            "Slice", value, self.numbers(start), self.numbers(stop), self.numbers(1)
        )  # fmt: skip

    def row(self, table: str, place: str, rows: int) -> str:
        """Add the rows of a table at these places. Places outside, which ONNX would count from the
        end where they are negative, are an error of the runtime.
        """
        negative = self.add("Less", place, self.number(0))
        sure = self.add("Where", negative, self.number(rows), place)
        return self.add("Gather", table, sure, axis=0)

    def model(
        self,
        name: str,
        inputs: Sequence[ValueInfoProto],
        output: ValueInfoProto,
        metadata: Mapping[str, str],
    ) -> ModelProto:
        """Return the whole, checked."""
        constants = [numpy_helper.from_array(array, key) for key, array in self._constants.items()]
        graph = helper.make_graph(self._nodes, name, list(inputs), [output], constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="distilrec",
        )
        helper.set_model_props(model, dict(metadata))
        checker.check_model(model, full_check=True)
        return model


def state_width(bundle: Bundle) -> int:
    """Return how many float32 the state of a user has."""
    scales, dim = bundle.weights.of_kind["decay"].shape
    return int((scales + 1) * dim + 2 * _neighbours(bundle).events)


def _neighbours(bundle: Bundle) -> NeighbourArrays:
    return neighbours_in(bundle.weights.of_kind, len(bundle.manifest.event_types))


def _input(name: str, kind: int, *more: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", *more])


def fold_graph(bundle: Bundle, metadata: Mapping[str, str]) -> ModelProto:
    """Return the graph that follows one event of each user: h = a h + sqrt(1 - a^2) g_e v_i.

    Inputs: state (batch, width) float32; item, event_type (batch,) int64. Output: new_state.
    """
    graph, w, m = _Graph(), bundle.weights.of_kind, bundle.manifest
    scales, dim = w["decay"].shape
    neighbours = _neighbours(bundle)
    vectors = graph.constant("vectors", bundle.weights.vectors)
    vector = graph.row(vectors, "item", m.items)
    gain = graph.row(graph.constant("gain", w["gain"]), "event_type", len(m.event_types))
    # An event adds the same vector to every time scale, each with its factor.
    moved = graph.add("Tile", graph.add("Mul", gain, vector), graph.numbers(1, scales))
    factor = graph.constant("scale", np.sqrt(1 - w["decay"] ** 2).reshape(1, -1))
    decay = graph.constant("decay", w["decay"].reshape(1, -1))
    kept = graph.add("Mul", graph.cut("state", 0, scales * dim), decay)
    h = graph.add("Add", kept, graph.add("Mul", moved, factor))
    signs = signs_of(m)
    if signs is not None:
        column = graph.constant("signs", np.asarray(signs, np.float32).reshape(-1, 1))
        vector = graph.add("Mul", vector, graph.row(column, "event_type", len(m.event_types)))
    parts, start = [h, vector], (scales + 1) * dim
    if number := neighbours.events:
        next_item = graph.add("Add", "item", graph.number(1))
        for place, value in enumerate((next_item, "event_type")):
            first = start + place * number
            newest = graph.add("Unsqueeze", value, graph.numbers(1))
            parts += [
                graph.add("Cast", newest, to=_FLOAT),
                graph.cut("state", first, first + number - 1),
            ]
    graph.add("Concat", *parts, name="new_state", axis=1)
    width = state_width(bundle)
    return graph.model(
        "fold",
        [_input("state", _FLOAT, width), _input("item", _INT), _input("event_type", _INT)],
        _input("new_state", _FLOAT, width),
        metadata,
    )


def scores_graph(bundle: Bundle, metadata: Mapping[str, str]) -> ModelProto:
    """Return the graph that scores all items for each user of a batch.

    Inputs: state (batch, width) float32; of a student that reads features of users user_columns
    int64 and user_weights float32, both (batch, pairs), and the same with context_ of one that is
    told a context; of one that is told the time gap and local_time, (batch,) int64; of one that
    knows visits visit, (batch,) int64, how many of the latest events are of the visit in which is
    asked. Output: scores (batch, items) float32.
    """
    graph, w, m = _Graph(), bundle.weights.of_kind, bundle.manifest
    scales, dim = w["decay"].shape
    inputs = [_input("state", _FLOAT, state_width(bundle))]
    h = graph.cut("state", 0, scales * dim)
    x = graph.cut("state", scales * dim, (scales + 1) * dim)
    bags = {"user": bundle.weights.user_table, "context": w.get(CONTEXT, np.zeros((0, dim)))}
    for name, table in bags.items():
        if len(table):
            inputs += [
                _input(f"{name}_columns", _INT, f"{name}_pairs"),
                _input(f"{name}_weights", _FLOAT, f"{name}_pairs"),
            ]
            x = graph.add("Add", x, _bag(graph, name, table))
    if m.timezone is not UNSET:
        inputs += [_input("gap", _INT), _input("local_time", _INT)]
        x = graph.add("Add", x, _time(graph, w))
    visits = m.visit_gap is not UNSET
    if visits:
        inputs.append(_input("visit", _INT))
        rows = graph.constant("visit_inputs", w["visit_inputs"])
        begins = graph.add("Cast", graph.add("Less", "visit", graph.number(1)), to=_INT)
        x = graph.add("Add", x, graph.add("Gather", rows, begins, axis=0))
    query = _query(graph, w, h, x)
    dot = graph.add("MatMul", query, graph.constant("columns", bundle.weights.vectors.T))
    neighbours = _neighbours(bundle)
    shift = graph.constant("biases", bundle.weights.biases)
    if neighbours.events and len(neighbours.items):
        scored = graph.add("Add", dot, shift)
        _add_neighbours(graph, neighbours, (scales + 1) * dim, scored, visits=visits)
    else:
        graph.add("Add", dot, shift, name="scores")
    return graph.model("scores", inputs, _input("scores", _FLOAT, m.items), metadata)


def _bag(graph: _Graph, name: str, table: Array) -> str:
    """Add the weighted sum of the rows of the table of encoded features, (batch, dim)."""
    rows = graph.row(graph.constant(f"{name}_table", table), f"{name}_columns", len(table))
    weights = graph.add("Unsqueeze", f"{name}_weights", graph.numbers(2))
    return graph.add("ReduceSum", graph.add("Mul", rows, weights), graph.numbers(1), keepdims=0)


def _norm(graph: _Graph, value: str, gains: str) -> str:
    """Add g z / sqrt(mean(z^2) + epsilon)."""
    mean = graph.add("ReduceMean", graph.add("Mul", value, value), axes=[1], keepdims=1)
    length = graph.add("Sqrt", graph.add("Add", mean, graph.number(float(NORM_EPSILON))))
    return graph.add("Div", graph.add("Mul", value, gains), length)


def _query(graph: _Graph, w: Mapping[str, Array], h: str, x: str) -> str:
    """Add q = norm(W h + x + MLP(norm([h, x]))), (batch, dim)."""
    inner = graph.constant("inner_norm", w["inner_norm"])
    normed = _norm(graph, graph.add("Concat", h, x, axis=1), inner)
    wide = graph.add("MatMul", normed, graph.constant("widen", w["widen"].T))
    wide = graph.add("Add", wide, graph.constant("widen_bias", w["widen_bias"]))
    active = graph.add("Mul", wide, graph.add("Sigmoid", wide))
    narrow = graph.add("MatMul", active, graph.constant("narrow", w["narrow"].T))
    narrow = graph.add("Add", narrow, graph.constant("narrow_bias", w["narrow_bias"]))
    mixed = graph.add("MatMul", h, graph.constant("mix", w["mix"].T))
    raw = graph.add("Add", graph.add("Add", mixed, x), narrow)
    return _norm(graph, raw, graph.constant("outer_norm", w["outer_norm"]))


def _time(graph: _Graph, w: Mapping[str, Array]) -> str:
    """Add T, what the time adds to u, (batch, dim): see docs/bundle-format.md."""
    gap = graph.add("Cast", graph.add("Max", "gap", graph.number(0)), to=_FLOAT)
    octaves = graph.add("Log", graph.add("Add", gap, graph.number(1.0)))
    knot = graph.add("Mul", octaves, graph.number(float(1 / np.log(2.0) / PER_KNOT)))
    knot = graph.add("Min", knot, graph.number(float(KNOTS - 1)))
    since = _between(graph, "time_gaps", w["time_gaps"], knot)
    nothing = graph.constant("time_nothing", w["time_nothing"].reshape(1, -1))
    never = graph.add(
        "Unsqueeze", graph.add("Less", "gap", graph.number(0)), graph.numbers(1)
    )  # fmt: skip
    since = graph.add("Where", never, nothing, since)
    second = graph.add("Mod", "local_time", graph.number(DAY))  # as in Python, never negative
    hour = graph.add("Div", graph.add("Cast", second, to=_FLOAT), graph.number(float(HOUR)))
    hours = _between(graph, "time_hours", w["time_hours"], hour)
    midnight = graph.add("Sub", "local_time", second)
    days = graph.add("Div", midnight, graph.number(DAY))
    day = graph.add("Mod", days, graph.number(DAYS))
    of_day = graph.add("Gather", graph.constant("time_days", w["time_days"]), day, axis=0)
    return graph.add("Add", graph.add("Add", since, hours), of_day)


def _between(graph: _Graph, name: str, table: Array, place: str) -> str:
    """Add what is between two rows of a table; behind the last one comes the first."""
    rows = graph.constant(name, table)
    below = graph.add("Floor", place)
    first = graph.add("Cast", below, to=_INT)
    second = graph.add("Mod", graph.add("Add", first, graph.number(1)), graph.number(len(table)))
    share = graph.add("Unsqueeze", graph.add("Sub", place, below), graph.numbers(1))
    one, next_one = (graph.add("Gather", rows, row, axis=0) for row in (first, second))
    return graph.add("Add", one, graph.add("Mul", share, graph.add("Sub", next_one, one)))


def _add_neighbours(
    graph: _Graph, neighbours: NeighbourArrays, start: int, scored: str, *, visits: bool
) -> None:
    """Add `scores`: what was scored, and the sum over the latest events of w[e, age] S[j, i] and
    r[e, age] (i = j).
    """
    number, rows = neighbours.events, len(neighbours.items)
    kept, types = (
        graph.add("Cast", graph.cut("state", first, first + number), to=_INT)
        for first in (start, start + number)
    )
    item = graph.add("Sub", kept, graph.number(1))  # (batch, n); -1 where there is no event
    known = graph.add(
        "And",
        graph.add("GreaterOrEqual", item, graph.number(0)),
        graph.add("Less", item, graph.number(rows)),
    )
    row = graph.add("Where", known, item, graph.number(0))
    if visits:  # the weights of events of earlier visits stand behind the others
        ages = graph.constant("ages", np.arange(number))
        newest = graph.add("Unsqueeze", "visit", graph.numbers(1))
        earlier = graph.add("Cast", graph.add("GreaterOrEqual", ages, newest), to=_INT)
        behind = graph.number(len(neighbours.ages) // 2)
        types = graph.add("Add", types, graph.add("Mul", earlier, behind))
    at = graph.add("Mul", types, graph.number(number))
    at = graph.add("Add", at, graph.constant("ages", np.arange(number)))
    flat = graph.constant("neighbour_ages", neighbours.ages.reshape(-1))
    weight = graph.add("Mul", graph.row(flat, at, neighbours.ages.size), graph.add(
        "Gather", graph.constant("neighbour_units", neighbours.units), row, axis=0
    ))  # fmt: skip
    weight = graph.add("Where", known, weight, graph.number(0.0))
    flat = graph.constant("repeat_weights", neighbours.repeats.reshape(-1))
    again = graph.row(flat, at, neighbours.repeats.size)
    again = graph.add("Where", known, again, graph.number(0.0))
    values = graph.constant("neighbour_values", neighbours.values.astype(np.float32))
    parts = graph.add(
        "Mul",
        graph.add("Gather", values, row, axis=0),
        graph.add("Unsqueeze", weight, graph.numbers(2)),
    )
    places = graph.add(
        "Gather", graph.constant("neighbours", neighbours.items), row, axis=0
    )  # (batch, n, M)
    places = graph.add("Concat", places, graph.add("Unsqueeze", row, graph.numbers(2)), axis=2)
    parts = graph.add("Concat", parts, graph.add("Unsqueeze", again, graph.numbers(2)), axis=2)
    whole = graph.numbers(0, number * (neighbours.items.shape[1] + 1))
    graph.add(
        "ScatterElements",
        scored,
        graph.add("Reshape", places, whole),
        graph.add("Reshape", parts, whole),
        name="scores",
        axis=1,
        reduction="add",
    )
