"""Puts single layers of a quantized model back in float, without calibrating again."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from packager.passes.graph import all_nodes
from packager.passes.layer_inputs import attribute_of
from packager.passes.quantizer import name_nodes
from packager.passes.shield_float import shield_float_layers

if TYPE_CHECKING:
    from collections.abc import Collection

_LAYERS: Final = frozenset(("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul"))
# Operators that an engine computes in eight bits, or passes over, between two quantized layers.
# Any other, as HardSigmoid, computes in float even if its inputs and outputs are quantized.
_FOLLOWERS: Final = frozenset((
    "Add", "ArgMax", "AveragePool", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten",
    "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Pad", "ReduceMean", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Split", "Squeeze", "Sub",
    "Transpose", "Unsqueeze", "Where",
))  # fmt: skip


def revert_layers(
    quantized: Any,
    reference: Any,
    names: Collection[str],
    *,
    shield: bool = True,
    fused: bool = True,
) -> Any:
    """Return the quantized model with the named layers computing in float again.

    A reverted layer has the weight, bias and attributes of `reference`. Its input comes without
    QuantizeLinear/DequantizeLinear where the float value exists: behind a layer that still computes
    in eight bits there is none, as the engine fuses that layer with the pair. Pairs that neither
    their producer nor a consumer needs are removed. Operators without weights follow what they
    read: a Relu or a pooling behind a reverted layer is float, one behind a quantized layer is not.
    All other layers keep their integer weights and ranges.

    Args:
        quantized: `onnx.ModelProto` with QuantizeLinear/DequantizeLinear pairs, from a quantizer
            that kept the activations (`QDQKeepRemovableActivations`): a Relu that was folded into a
            range cannot come back.
        reference: The float model that was quantized; nodes have the same names in both.
        names: Nodes of `reference`. Those that are not quantized have no effect.
        shield: Keep ONNX Runtime from quantizing the reverted layers on loading (see
            `shield_float_layers`); other engines may not read the form that does it.
        fused: A layer gives eight bits: the engine joins it with the pair behind it. Else layers
            give floats, and reverted ones read those.

    Raises:
        ValueError: `reference` has no node of a name.
    """
    model = type(quantized)()
    model.CopyFrom(quantized)
    named = type(reference)()
    named.CopyFrom(reference)
    name_nodes(named)
    originals = {node.name: node for node in named.graph.node}
    for name in names:
        if name not in originals:
            raise ValueError(f"the float model has no node `{name}`")
    graph = _Graph(model)
    before, after = _eight_bit_nodes(graph, ()), _eight_bit_nodes(graph, names)
    changed = before - after
    if not changed:
        return model
    _restore(model, graph, {name: originals[name] for name in changed if name in originals}, named)
    _remove_pairs(model, graph, after, changed, fused=fused)
    _drop_unread(model)
    if shield:
        shield_float_layers(model)
    return model


def quantized_layers(quantized: Any, reference: Any) -> dict[str, int]:
    """Return the layers that compute in eight bits: name → elements of their quantized constants.

    Names are those of `reference`, in its order; a product of two computed matrices has 0.
    """
    named = type(reference)()
    named.CopyFrom(reference)
    name_nodes(named)
    graph = _Graph(quantized)
    quantized_nodes = _eight_bit_nodes(graph, ())
    sizes = {}
    for node in named.graph.node:
        if node.name in quantized_nodes and node.op_type in _LAYERS:
            kept = [graph.constant_behind(name) for name in graph.nodes[node.name].input]
            sizes[node.name] = sum(graph.sizes[name] for name in kept[:2] if name is not None)
    return sizes


def depthwise_convolutions(model: Any) -> tuple[str, ...]:
    """Return the names of the convolutions in which each channel is its own group.

    Engines run few of them faster in int8: they move more data than they multiply.

    Args:
        model: Every node named.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and attribute_of(node, "group", 1) > 1
        and shapes.get(node.input[1], (0, 0))[1] == 1
    )


class _Graph:
    """Who makes and who reads each tensor of a model with QuantizeLinear/DequantizeLinear pairs."""

    def __init__(self, model: Any) -> None:
        self.nodes = {node.name: node for node in model.graph.node}
        self.order = [node.name for node in model.graph.node]
        self.outputs = {value.name for value in model.graph.output}
        self.producer = {name: n for n in model.graph.node for name in n.output if name}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in all_nodes(model):
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
        self.sizes = {t.name: _elements(t.dims) for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                value = attribute_of(node, "value", None)
                self.sizes[node.output[0]] = 1 if value is None else _elements(value.dims)

    def dequantizer(self, name: str) -> Any:
        """Return the DequantizeLinear that makes a tensor, or None."""
        node = self.producer.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def constant_behind(self, name: str) -> str | None:
        """Return the integer constant that a tensor is dequantized from, or None."""
        node = self.dequantizer(name)
        return node.input[0] if node is not None and node.input[0] in self.sizes else None

    def float_behind(self, name: str) -> str:
        """Return the tensor before a pair whose DequantizeLinear makes `name`; else `name`."""
        node = self.dequantizer(name)
        source = self.producer.get(node.input[0]) if node is not None else None
        if source is None or source.op_type != "QuantizeLinear":
            return name
        return str(source.input[0])

    def pairs(self, name: str) -> list[tuple[Any, list[Any]]]:
        """Return the QuantizeLinear nodes that read a tensor, each with its DequantizeLinear."""
        return [
            (q, [r for r in self.readers[q.output[0]] if r.op_type == "DequantizeLinear"])
            for q in self.readers[name]
            if q.op_type == "QuantizeLinear"
        ]

    def consumers(self, name: str) -> list[Any]:
        """Return the nodes that read a tensor behind its pairs, or directly."""
        direct = [node for node in self.readers[name] if node.op_type != "QuantizeLinear"]
        behind = [
            node
            for _, dequantizers in self.pairs(name)
            for dequantizer in dequantizers
            for node in self.readers[dequantizer.output[0]]
        ]
        return [*direct, *behind]

    def sources(self, node: Any) -> list[str]:
        """Return the tensors that a node reads, those behind pairs by their float names."""
        return [self.float_behind(n) for n in node.input if n and n not in self.sizes]

    def is_between_pairs(self, node: Any) -> bool:
        """Tell whether an engine can compute a node in eight bits.

        What it reads is dequantized. Its outputs are quantized, but for a layer with a weight:
        engines have products of integers with a float result.
        """
        dequantized = [self.dequantizer(name) is not None for name in node.input]
        if node.op_type in _LAYERS:
            if not all(dequantized[:1] if node.op_type == "Gather" else dequantized[:2]):
                return False
            weighted = any(self.constant_behind(name) is not None for name in node.input[:2])
        elif node.op_type in _FOLLOWERS:
            weighted = False
        else:
            return False
        quantized = all(self.pairs(name) for name in node.output if name)
        return any(dequantized) and (weighted or quantized)


def _elements(dims: Any) -> int:
    total = 1
    for size in dims:
        total *= size
    return total


def _eight_bit_nodes(graph: _Graph, reverted: Collection[str]) -> set[str]:
    """Return the nodes that an engine computes in eight bits.

    Layers do unless reverted. An operator without weights does if something that it reads was
    computed in eight bits; one that reads nothing of that kind even if no layer is reverted, as a
    padding of the graph's input, does if what reads it does.
    """
    between = [name for name in graph.order if graph.is_between_pairs(graph.nodes[name])]
    layers = {name for name in between if graph.nodes[name].op_type in _LAYERS}
    behind, found, first = set(layers), layers - set(reverted), []
    for name in between:
        if name in layers:
            continue
        makers = [graph.producer.get(source) for source in graph.sources(graph.nodes[name])]
        made_by = {node.name for node in makers if node is not None}
        if not made_by & behind:
            first.append(name)
            continue
        behind.add(name)
        if made_by & found and name not in reverted:
            found.add(name)
    for name in reversed(first):
        read_by = {n.name for out in graph.nodes[name].output for n in graph.consumers(out)}
        if read_by & found and name not in reverted:
            found.add(name)
    return found


def _restore(model: Any, graph: _Graph, originals: dict[str, Any], reference: Any) -> None:
    """Give nodes the attributes and constants of the float model, in place."""
    import onnx

    floats = {tensor.name: tensor for tensor in reference.graph.initializer}
    for node in reference.graph.node:
        value = attribute_of(node, "value", None) if node.op_type == "Constant" else None
        if value is not None:
            floats[node.output[0]] = value
    have = {tensor.name: tensor for tensor in model.graph.initializer}
    placed: dict[str, str] = {}
    taken = {*graph.producer, *graph.sizes, *(value.name for value in model.graph.input)}
    for original in originals.values():
        node = graph.nodes[original.name]
        # The quantizer multiplies the bias of a Gemm by its beta, and sets that to 1.
        del node.attribute[:]
        node.attribute.extend(original.attribute)
        for index, wanted in enumerate(original.input):
            inner = node.input[index]
            if wanted not in floats or not (inner in have or graph.constant_behind(inner)):
                continue
            if wanted not in placed:
                same = wanted in have and _same(have[wanted], floats[wanted])
                name = wanted
                while name in taken and not same:
                    name += "_float"
                placed[wanted] = name
                taken.add(name)
                if not same:
                    tensor = onnx.TensorProto()
                    tensor.CopyFrom(floats[wanted])
                    tensor.name = placed[wanted]
                    model.graph.initializer.append(tensor)
            node.input[index] = placed[wanted]


def _same(a: Any, b: Any) -> bool:
    import numpy as np
    import onnx

    to_array = onnx.numpy_helper.to_array
    return bool(np.array_equal(to_array(a), to_array(b), equal_nan=True))


def _remove_pairs(
    model: Any, graph: _Graph, eight_bit: set[str], changed: set[str], *, fused: bool
) -> None:
    """Remove, or go around, the pairs that the changed nodes made needless, in place."""
    touched: dict[str, None] = {}
    for name in graph.order:
        if name in changed:
            node = graph.nodes[name]
            touched |= dict.fromkeys([*graph.sources(node), *(n for n in node.output if n)])
    gone = []
    for tensor in touched:
        pairs = graph.pairs(tensor)
        maker = graph.producer.get(tensor)
        if not pairs or (
            maker is not None
            and maker.name in eight_bit
            and (fused or maker.op_type not in _LAYERS)
        ):
            continue
        needed = any(node.name in eight_bit for node in graph.consumers(tensor))
        for quantizer, dequantizers in pairs:
            for dequantizer in dequantizers:
                inner = dequantizer.output[0]
                for node in graph.readers[inner]:
                    if node.name not in eight_bit:
                        _replace(node.input, inner, tensor)
                if not needed and inner not in graph.outputs:
                    gone.append(dequantizer.name)
                elif not needed and maker is not None:
                    # The graph's output keeps its name: the producer writes it.
                    gone.append(dequantizer.name)
                    _replace(maker.output, tensor, inner)
                    for node in all_nodes(model):
                        _replace(node.input, tensor, inner)
            if not needed and all(d.name in gone for d in dequantizers):
                gone.append(quantizer.name)
    removed = set(gone)
    kept = [node for node in model.graph.node if node.name not in removed]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _replace(names: Any, old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


def _drop_unread(model: Any) -> None:
    """Remove DequantizeLinear nodes and initializers that nobody reads any more, in place."""
    outputs = {value.name for value in model.graph.output}
    while True:
        read = {name for node in all_nodes(model) for name in node.input} | outputs
        kept = [
            node
            for node in model.graph.node
            if node.op_type not in ("DequantizeLinear", "QuantizeLinear") or read & set(node.output)
        ]
        if len(kept) == len(model.graph.node):
            break
        del model.graph.node[:]
        model.graph.node.extend(kept)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
