"""Quantizes weights of matrix products and embeddings to int8, activations at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.embeddings import quantize_tables
from packager.passes.graph import is_quantized, op_types
from packager.passes.patterns import Graph
from packager.passes.quantizer import constant_weights, name_nodes, quantize_dynamically

# Never Conv: ConvInteger ran at 0.13 to 0.28 of the float speed.
_OPERATORS: Final = ("MatMul", "Gemm")


@dataclass(frozen=True, kw_only=True)
class Int8Dynamic:
    """Dynamic int8 for MatMul, Gemm and embedding tables; needs no calibration data."""

    name: ClassVar[str] = "int8-dynamic"
    summary: ClassVar[str] = "quantize weights to int8, activations at run time"
    precision: ClassVar[str | None] = "int8-dynamic"
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need matrix products that hold most of the weights of a float model."""
        if is_quantized(model):
            return "the model is quantized already"
        products = sum(constant_weights(model, ("MatMul", "Gemm")).values())
        convolutions = sum(constant_weights(model, ("Conv", "ConvTranspose")).values())
        if products == 0:
            return "no matrix product has constant weights"
        if convolutions > products:
            return "most weights are in convolutions, which run slower this way"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the quantized model."""
        import onnx

        draft = onnx.ModelProto()
        draft.CopyFrom(model)
        graph = Graph(draft)
        tables = quantize_tables(graph)
        graph.sweep()
        name_nodes(draft)
        after = quantize_dynamically(draft, context, op_types=_OPERATORS, keep_float=())
        notes = (f"{tables} embedding tables row by row",) if tables else ()
        return PassResult(model=after, modified=True, notes=notes)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that weights were quantized and convolutions were not.

        Raises:
            PassBroken: one of the two.
        """
        found = {node.op_type for node in after.graph.node}
        if not found & {"MatMulInteger", "DynamicQuantizeMatMul", "DequantizeLinear"}:
            raise PassBroken("no weight could be quantized")
        if "ConvInteger" in op_types(after):
            raise PassBroken("a convolution was quantized")
