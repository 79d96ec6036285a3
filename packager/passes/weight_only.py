"""Keeps the weights of matrix products and embeddings in 4 or 8 bits, in blocks: for size."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from packager.console import human_size
from packager.passes.blocks import quantize_blocks
from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import is_quantized, strip_texts
from packager.passes.half_graph import captured_by, constants_as_initializers
from packager.passes.layer_inputs import attribute_of
from packager.passes.quantizer import constant_weights, name_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# 8-bit activations, 32-bit sums: what the CPU kernels are fastest at.
_ACCURACY_LEVEL: Final = 4
_LEAST_ELEMENTS: Final = 1024
_DOMAIN: Final = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """Weights in blocks that share a scale; activations and all other operators stay float.

    It is for size: on a CPU at sequence 128 it ran no faster than float32 (int8-dynamic does).

    Attributes:
        bits: 4 or 8.
        table_bits: Of embedding tables; None for the same as `bits`. Tables bear 4 bits well: on
            MiniLM cosine .9987, where the products in 4 bits had .968.
        products: Without, only tables are kept in blocks, so that `Int8Dynamic` may follow.
        block: Inputs that share a scale: a power of two, at least 16.
        symmetric: Zero lies in the middle of the range, and no zero points are kept.
    """

    bits: int = 8
    table_bits: int | None = None
    products: bool = True
    block: int = 32
    symmetric: bool = True
    name: ClassVar[str] = "weight-only"
    summary: ClassVar[str] = "keep weights in blocks of few bits"
    precision: ClassVar[str | None] = "weight-only"
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need ONNX Runtime, and matrix products that hold most of a float model's weights."""
        if context.target.engine.name != "onnxruntime":
            return f"{context.target.engine.name} does not know MatMulNBits"
        if is_quantized(model):
            return "the model is quantized already"
        products = sum(constant_weights(model, ("MatMul", "Gemm", "Gather")).values())
        convolutions = sum(constant_weights(model, ("Conv", "ConvTranspose")).values())
        if products == 0:
            return "no matrix product has constant weights"
        if convolutions > products:
            return "most weights are in convolutions"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the model with its large weights in blocks."""
        import onnx

        after = onnx.ModelProto()
        after.CopyFrom(model)
        constants_as_initializers(after)
        name_nodes(after)
        tensors = {tensor.name: tensor for tensor in after.graph.initializer}
        layers = self.find(after)
        if not layers:
            return PassResult(model=model, modified=False, notes=("no weight is large enough",))
        parts: dict[str, list[Any]] = {}
        before = 0
        for weight, layer in layers.items():
            array = onnx.numpy_helper.to_array(tensors[weight])
            before += array.nbytes
            parts[weight] = [
                onnx.numpy_helper.from_array(values, name)
                for name, values in self.parts(weight, array, layer).items()
            ]
        self.rewrite(after, layers)
        kept = [
            part for tensor in after.graph.initializer for part in parts.get(tensor.name, [tensor])
        ]
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del after.graph.initializer[:]
        after.graph.initializer.extend(copies)
        strip_texts(after)
        size = sum(len(t.raw_data) for group in parts.values() for t in group)
        note = f"{self.in_words(layers)}: {human_size(before)} → {human_size(size)}"
        return PassResult(model=after, modified=True, notes=(note,))

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that weights are in blocks, and the model is smaller.

        Raises:
            PassBroken: one of the two.
        """
        found = {node.op_type for node in after.graph.node if node.domain == _DOMAIN}
        if not found & {"MatMulNBits", "GatherBlockQuantized"}:
            raise PassBroken("no weight is in blocks")
        if after.ByteSize() >= before.ByteSize():
            raise PassBroken("the model did not become smaller")

    def find(self, model: Any) -> dict[str, BlockLayer]:
        """Return the weights of a model that this pass keeps in blocks, by name.

        Args:
            model: Every node named; no tensor's data is looked at.
        """
        found = find_block_layers(model, block=self.block)
        return {w: layer for w, layer in found.items() if self.products or layer.layout == "table"}

    def bits_of(self, layer: BlockLayer) -> int:
        """Return how many bits a layer's weights get."""
        if layer.layout == "table" and self.table_bits is not None:
            return self.table_bits
        return self.bits

    def in_words(self, layers: Mapping[str, BlockLayer]) -> str:
        """Return how many weights have how many bits."""
        counts = Counter(
            (layer.layout == "table", self.bits_of(layer)) for layer in layers.values()
        )
        parts = []
        for (table, bits), count in sorted(counts.items()):
            kind = "table" if table else "weight"
            parts.append(f"{count} {kind}{'s' if count > 1 else ''} in {bits} bits")
        return f"{' and '.join(parts)}, blocks of {self.block}"

    def parts(
        self, weight: str, values: NDArray[Any], layer: BlockLayer
    ) -> dict[str, NDArray[Any]]:
        """Return a layer's weight in blocks, by the names that the rewritten graph reads.

        Args:
            weight: Its name.
            values: float32, as the graph holds it; may be a view on a file.
            layer: What reads it.
        """
        rows = values.T if layer.layout == "columns" else values
        bits = self.bits_of(layer)
        blocks = quantize_blocks(rows, bits=bits, block=self.block, symmetric=self.symmetric)
        packed = blocks.packed
        if layer.layout == "table":
            used = layer.inputs * bits // 8
            packed = packed.reshape(layer.outputs, -1)[:, :used]
        names = part_names(weight)
        arrays = {names["packed"]: packed, names["scales"]: blocks.scales}
        if blocks.zeros is not None:
            arrays[names["zeros"]] = blocks.zeros
        return arrays

    def part_kinds(self, weight: str, layer: BlockLayer) -> dict[str, tuple[tuple[int, ...], int]]:
        """Return shape and element type of what `parts` makes, by name, without making it."""
        import onnx

        names, count = part_names(weight), -(-layer.inputs // self.block)
        bits = self.bits_of(layer)
        width = self.block * bits // 8
        packed: tuple[int, ...] = (layer.outputs, count, width)
        if layer.layout == "table":
            packed = (layer.outputs, layer.inputs * bits // 8)
        kinds = {
            names["packed"]: (packed, int(onnx.TensorProto.UINT8)),
            names["scales"]: ((layer.outputs, count), int(onnx.TensorProto.FLOAT)),
        }
        if not self.symmetric:
            zeros = count if bits == 8 else -(-count // 2)
            kinds[names["zeros"]] = ((layer.outputs, zeros), int(onnx.TensorProto.UINT8))
        return kinds

    def rewrite(self, model: Any, layers: Mapping[str, BlockLayer]) -> None:
        """Replace the nodes that read the given weights, in place; the initializers stay."""
        import onnx

        users = {name: (w, k) for w, k in layers.items() for name in k.nodes}
        nodes = []
        for node in model.graph.node:
            if node.name in users:
                nodes += self._replacement(node, *users[node.name])
            else:
                nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        if all(entry.domain != _DOMAIN for entry in model.opset_import):
            model.opset_import.add(domain=_DOMAIN, version=1)

    def _replacement(self, node: Any, weight: str, layer: BlockLayer) -> list[Any]:
        from onnx import helper

        names = part_names(weight)
        parts = [names["packed"], names["scales"]]
        parts += [] if self.symmetric else [names["zeros"]]
        if node.op_type == "Gather":
            table = [names["packed"], node.input[1], *parts[1:]]
            return [
                helper.make_node(
                    "GatherBlockQuantized", table, list(node.output), name=node.name,
                    domain=_DOMAIN, bits=self.bits_of(layer), block_size=self.block, gather_axis=0,
                    quantize_axis=1,
                )
            ]  # fmt: skip
        biased = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
        product = f"{node.output[0]}_unbiased" if biased else node.output[0]
        made = helper.make_node(
            "MatMulNBits", [node.input[0], *parts], [product], name=node.name, domain=_DOMAIN,
            K=layer.inputs, N=layer.outputs, bits=self.bits_of(layer), block_size=self.block,
            accuracy_level=_ACCURACY_LEVEL,
        )  # fmt: skip
        if not biased:
            return [made]
        bias = [product, node.input[2]]
        return [made, helper.make_node("Add", bias, list(node.output), name=f"{node.name}_bias")]


@dataclass(frozen=True, kw_only=True)
class BlockLayer:
    """A weight that can be kept in blocks.

    Attributes:
        nodes: Names of all nodes that read it.
        layout: `columns` is [inputs, outputs]; `rows`, and a `table` of embeddings, the reverse.
        inputs, outputs: Its sizes as a matrix product has them.
    """

    nodes: tuple[str, ...]
    layout: str
    inputs: int
    outputs: int


def find_block_layers(model: Any, *, block: int) -> dict[str, BlockLayer]:
    """Return the float32 weights that can be kept in blocks, by name.

    A weight that anything else reads too stays as it is, since it would be kept twice.

    Args:
        model: Every node named; no tensor's data is looked at.
        block: Inputs that share a scale; a weight with fewer stays as it is.
    """
    import onnx

    floats = {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    readers: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for node in model.graph.node:
        for name in captured_by(node) & floats.keys():
            readers[name].append((node.name, None))
        for position, name in enumerate(node.input):
            if name in floats:
                readers[name].append((node.name, _layout(node, position)))
    for output in model.graph.output:
        readers[output.name].append(("", None))
    found = {}
    for name, shape in floats.items():
        layouts = {layout for _, layout in readers.get(name, [])}
        if len(layouts) != 1 or len(shape) != 2 or math.prod(shape) < _LEAST_ELEMENTS:
            continue
        (layout,) = layouts
        outputs, inputs = reversed(shape) if layout == "columns" else shape
        if layout is not None and inputs >= block and (layout != "table" or inputs % 2 == 0):
            nodes = tuple(node for node, _ in readers[name])
            found[name] = BlockLayer(nodes=nodes, layout=layout, inputs=inputs, outputs=outputs)
    return found


def part_names(weight: str) -> dict[str, str]:
    """Return the names of a weight's parts: `packed`, `scales` and `zeros`."""
    return {part: f"{weight}_{part}" for part in ("packed", "scales", "zeros")}


def _layout(node: Any, position: int) -> str | None:
    """Return how a node reads a weight, or None where it cannot be in blocks."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "MatMul" and position == 1:
        return "columns"
    if node.op_type == "Gather" and position == 0 and attribute_of(node, "axis", 0) == 0:
        return "table"
    if node.op_type == "Gemm" and position == 1 and not attribute_of(node, "transA", 0):
        plain = attribute_of(node, "alpha", 1.0) == 1.0 and attribute_of(node, "beta", 1.0) == 1.0
        if plain:
            return "rows" if attribute_of(node, "transB", 0) else "columns"
    return None
