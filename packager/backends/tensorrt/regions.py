"""Decides which nodes go to the CPU in front of the engine, which behind it, which stay."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.errors import ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HEAD, CORE, TAIL = 0, 1, 2
# What computes most of what a network computes.
_LAYERS: Final = frozenset({
    "Attention", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm",
    "LSTM", "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN",
})  # fmt: skip
# Inputs that an engine must know before it runs: what the CPU has made cannot be one.
_SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "ConstantOfShape": (0,), "Expand": (1,), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,),
    "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
# Of nodes that only say sizes.
_ASKS_SHAPE: Final = frozenset({"Shape", "Size"})
# The core must keep this share of the layers, or of the weights.
_LEAST_SHARE: Final = 2 / 3
# A tail that computes no layer and less than this share of everything is worth having.
_SMALL_SHARE: Final = 0.1
_UNKNOWN_SIZE: Final = 16
_ITEM_BYTES: Final = {"float64": 8, "int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2,
                      "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1}  # fmt: skip


@dataclass(kw_only=True)
class Wiring:
    """Which nodes of a graph's top level read which, and what they weigh.

    Nodes that depend on constants alone are left out of it: each part has its own.

    Attributes:
        nodes: In graph order.
        static: Places of the nodes that depend on constants alone.
        reads: Per place the values read, by branches and loops inside as well; constants left out.
        makers: Value → place.
        readers: Value → places.
        before: Per place all that must run before it, as a bit set of places.
        behind: Per place all that reads it in the end, as a bit set of places.
        weight: Per place 1 and the constants' elements that it reads.
    """

    nodes: list[Any]
    static: frozenset[int]
    reads: list[tuple[str, ...]]
    makers: dict[str, int]
    readers: dict[str, list[int]]
    before: list[int]
    behind: list[int]
    weight: list[int]
    outputs: frozenset[str] = frozenset()
    bytes_of: dict[str, float] = field(default_factory=dict)


def wire(model: Any) -> Wiring:
    """Return how the nodes of a model's top level hang together."""
    nodes = list(model.graph.node)
    elements = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    all_reads = [tuple(dict.fromkeys(outer_reads(node))) for node in nodes]
    inputs = {value.name for value in model.graph.input} - set(elements)
    live = set(inputs)
    static = []
    for place, node in enumerate(nodes):
        random = node.op_type.startswith("Random")
        if random or any(name in live for name in all_reads[place]):
            live.update(node.output)
        else:
            static.append(place)
    makers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    weigh: dict[int, int] = {}

    def constants(place: int) -> int:
        if place not in weigh:
            weigh[place] = sum(
                elements.get(name, 0)
                + (constants(makers[name]) if makers.get(name, -1) in still else 0)
                for name in all_reads[place]
            )
        return weigh[place]

    still = frozenset(static)
    weight = [1 + constants(place) for place in range(len(nodes))]
    reads = [
        () if place in still else tuple(name for name in all_reads[place] if name in live)
        for place in range(len(nodes))
    ]
    readers: dict[str, list[int]] = {}
    before = [0] * len(nodes)
    for place, names in enumerate(reads):
        for name in names:
            readers.setdefault(name, []).append(place)
            if name in makers:
                before[place] |= before[makers[name]] | 1 << makers[name]
    behind = [0] * len(nodes)
    for place in reversed(range(len(nodes))):
        for name in nodes[place].output:
            for reader in readers.get(name, ()):
                behind[place] |= behind[reader] | 1 << reader
    return Wiring(
        nodes=nodes,
        static=still,
        reads=reads,
        makers=makers,
        readers=readers,
        before=before,
        behind=behind,
        weight=weight,
        outputs=frozenset(value.name for value in model.graph.output),
    )


def outer_reads(node: Any) -> list[str]:
    """Return the values that a node reads, with those that its branches read from outside."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
        for graph in graphs:
            own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
            own |= {name for inner in graph.node for name in inner.output}
            inside = [name for inner in graph.node for name in outer_reads(inner)]
            inside += [value.name for value in graph.output]
            found += [name for name in inside if name not in own]
    return found


def sized_by_values(wiring: Wiring) -> list[int]:
    """Return the places of nodes whose sizes are computed from values instead of from shapes.

    An engine knows the shapes of its inputs before it runs and no value: neither an input that
    holds sizes, which a profile would have to bound, nor the result of a layer.
    """
    from_shapes: set[str] = set()
    found = []
    for place, node in enumerate(wiring.nodes):
        if place in wiring.static:
            continue
        if node.op_type in _ASKS_SHAPE or all(n in from_shapes for n in wiring.reads[place]):
            from_shapes.update(node.output)
        for at in _SHAPES.get(node.op_type, ()):
            name = node.input[at] if len(node.input) > at else ""
            if name in wiring.reads[place] and name not in from_shapes:
                found.append(place)
                break
    return found


def assign(
    wiring: Wiring, lacking: Mapping[int, str], better_on_cpu: Iterable[int] = ()
) -> list[int]:
    """Return for every place HEAD, CORE or TAIL, the core as large as can be.

    A node that the engine lacks takes all before it to the head, or all behind it to the tail,
    whichever is less. As what is before only grows along the graph and what is behind only
    shrinks, no two of these decisions can contradict each other.

    Args:
        wiring: Of the graph.
        lacking: Place → reason, for the nodes that the engine cannot have.
        better_on_cpu: Places that the engine can have, and that go to the tail if that is cheap.

    Raises:
        ModelUnsupported: the core would be empty, or most of the model would be on the CPU.
    """
    total = sum(wiring.weight)
    parts = [CORE] * len(wiring.nodes)
    if not wiring.static and not wiring.nodes:
        raise ModelUnsupported("the model has no operator, so there is nothing for an engine")
    cost: dict[int, int] = {}
    for place in lacking:
        if place in wiring.static:
            continue
        front = wiring.before[place] | 1 << place
        back = wiring.behind[place] | 1 << place
        fore, rear = _weight_of(wiring, front), _weight_of(wiring, back)
        cost[place] = min(fore, rear)
        if fore <= rear:
            _mark(parts, front, HEAD)
        else:
            _mark(parts, back, TAIL)
    for place in better_on_cpu:
        back = wiring.behind[place] | 1 << place
        cheap = _weight_of(wiring, back) <= _SMALL_SHARE * total and not _has_layer(wiring, back)
        if cheap and all(parts[other] != HEAD for other in _places(back)):
            _mark(parts, back, TAIL)
    _settle(wiring, parts)
    _check_share(wiring, parts, lacking, cost)
    return parts


def _settle(wiring: Wiring, parts: list[int]) -> None:
    """Move the ends of the core where that makes the cut smaller, or possible at all."""
    has_head, has_tail = HEAD in parts, TAIL in parts
    moved = True
    while moved:
        moved = False
        for place, node in enumerate(wiring.nodes):
            if parts[place] != CORE or place in wiring.static or node.op_type in _LAYERS:
                continue
            if has_head and _is_front(wiring, parts, place):
                needs_shape = _takes_shape_from(wiring, parts, place, HEAD)
                if needs_shape or _head_gains(wiring, parts, place):
                    parts[place], moved = HEAD, True
                    continue
            back = has_tail and _is_back(wiring, parts, place)
            if back and (node.op_type in _ASKS_SHAPE or _tail_gains(wiring, parts, place)):
                parts[place], moved = TAIL, True


def _is_front(wiring: Wiring, parts: list[int], place: int) -> bool:
    makers = [wiring.makers[name] for name in wiring.reads[place] if name in wiring.makers]
    return all(parts[maker] == HEAD for maker in makers)


def _is_back(wiring: Wiring, parts: list[int], place: int) -> bool:
    names = [name for name in wiring.nodes[place].output if name]
    readers = [reader for name in names for reader in wiring.readers.get(name, ())]
    return bool(readers) and all(parts[reader] == TAIL for reader in readers)


def _takes_shape_from(wiring: Wiring, parts: list[int], place: int, part: int) -> bool:
    """Tell whether a node's sizes are made in another part, where an engine would need them."""
    node = wiring.nodes[place]
    for at in _SHAPES.get(node.op_type, ()):
        name = node.input[at] if len(node.input) > at else ""
        maker = wiring.makers.get(name, -1)
        if maker >= 0 and maker not in wiring.static and parts[maker] == part:
            return True
    return False


def _head_gains(wiring: Wiring, parts: list[int], place: int) -> bool:
    """Tell whether less goes from the head to the core once a node is in the head."""
    gone = sum(
        _bytes(wiring, name)
        for name in wiring.reads[place]
        if all(r == place or parts[r] != CORE for r in wiring.readers[name])
    )
    new = sum(
        _bytes(wiring, name)
        for name in wiring.nodes[place].output
        if any(parts[r] == CORE for r in wiring.readers.get(name, ()))
    )
    return new < gone


def _tail_gains(wiring: Wiring, parts: list[int], place: int) -> bool:
    """Tell whether less goes from the core to the tail once a node is in the tail."""
    node = wiring.nodes[place]
    gone = sum(_bytes(wiring, name) for name in node.output if name)
    new = 0.0
    for name in wiring.reads[place]:
        maker = wiring.makers.get(name, -1)
        crosses = name in wiring.outputs or any(
            parts[r] == TAIL for r in wiring.readers[name] if r != place
        )
        if maker >= 0 and parts[maker] == CORE and not crosses:
            new += _bytes(wiring, name)
    return new < gone


def _check_share(
    wiring: Wiring, parts: list[int], lacking: Mapping[int, str], cost: Mapping[int, int]
) -> None:
    live = [place for place in range(len(parts)) if place not in wiring.static]
    core = [place for place in live if parts[place] == CORE]
    layers = [place for place in live if wiring.nodes[place].op_type in _LAYERS]
    kept = sum(parts[place] == CORE for place in layers)
    weight = sum(wiring.weight[place] for place in live) - len(live)
    left = sum(wiring.weight[place] for place in core) - len(core)
    share = max(
        kept / len(layers) if layers else 0.0,
        left / weight if weight else 0.0,
        0.0 if layers or weight else len(core) / max(len(live), 1),
    )
    if core and share >= _LEAST_SHARE:
        return
    named = sorted(lacking, key=lambda place: (-cost.get(place, 0), place))
    named = [place for place in named if place not in wiring.static]
    if not named:
        raise ModelUnsupported("no operator of the model is left for TensorRT to run")
    node = wiring.nodes[named[0]]
    others = f", and {len(named) - 1} more" if len(named) > 1 else ""
    left_over = (
        f"{kept} of {len(layers)} layers" if layers else f"{len(core)} of {len(live)} operators"
    )
    raise ModelUnsupported(
        f"`{node.name}` ({node.op_type}){others} cannot run in TensorRT: {lacking[named[0]]}; on "
        f"the CPU, with all before or behind, it would leave TensorRT {left_over}",
        accepted="such operators at the ends of a model, where the CPU can run them",
        hint="write the model without it, or build for a `cpu-…` target",
    )


def _mark(parts: list[int], places: int, part: int) -> None:
    for place in _places(places):
        parts[place] = part


def _places(bits: int) -> list[int]:
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    return found


def _weight_of(wiring: Wiring, bits: int) -> int:
    return sum(wiring.weight[place] for place in _places(bits))


def _has_layer(wiring: Wiring, bits: int) -> bool:
    return any(wiring.nodes[place].op_type in _LAYERS for place in _places(bits))


def _bytes(wiring: Wiring, name: str) -> float:
    return wiring.bytes_of.get(name, float(_UNKNOWN_SIZE**4))


def bytes_of(dtype: str, shape: Iterable[int | None]) -> float:
    """Return about how many bytes a value takes; an unknown size counts as 16."""
    sizes = [_UNKNOWN_SIZE if size is None else size for size in shape]
    return float(math.prod(sizes) * _ITEM_BYTES.get(dtype, 4))
