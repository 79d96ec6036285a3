"""Quantizes weights and activations to eight bits, with ranges found on calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from packager.errors import UsageError
from packager.passes.contract import PassBroken, PassContext, PassResult, opset_of
from packager.passes.graph import is_quantized, op_types
from packager.passes.quantizer import constant_weights, name_nodes, quantize_statically
from packager.passes.ranges import METHODS
from packager.passes.revert_layers import depthwise_convolutions

WEIGHTED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Between two quantized layers these keep the tensor in eight bits. Softmax, Sigmoid and the
# normalizations are left out: their results need more steps than eight bits have.
_BETWEEN: Final = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool",
    "Mul", "Pad", "Relu", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip
# Layers that stay float may hold this share of the weights: more costs size and speed.
_FLOAT_SHARE: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Int8Static:
    """Static int8 as QuantizeLinear/DequantizeLinear pairs in the target's scheme.

    Attributes:
        operators: Operators to quantize; empty for the pass's own choice. One of them at least
            must occur.
        keep_float: Names of nodes that stay float. Nodes without a name are called `OPERATOR_N`
            by their position in the graph.
        calibration: How the range of an activation is chosen, one of `ranges.METHODS`.
        float_layers: So many first layers with weights stay float: the first layers of a CNN see
            the widest ranges and have the fewest weights.
        outputs: Quantize what operators give as well as what they read; see `quantize_statically`.
        depthwise: Quantize convolutions in which each channel is its own group as well.
    """

    operators: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    calibration: str = "minmax"
    float_layers: int = 0
    outputs: bool = True
    depthwise: bool = True
    name: ClassVar[str] = "int8-static"
    summary: ClassVar[str] = "quantize weights and activations to int8"
    precision: ClassVar[str | None] = "int8-static"
    exact: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = True

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need a layer with constant weights, opset 13, and a float model."""
        if is_quantized(model):
            return "the model is quantized already"
        if opset_of(model) < 13:
            return f"opset {opset_of(model)} has no per-channel quantization; 13 is needed"
        layers = constant_weights(model, WEIGHTED)
        if not layers:
            return "no convolution or matrix product has constant weights"
        first = sum(list(layers.values())[: self.float_layers])
        if first > _FLOAT_SHARE * sum(layers.values()):
            return f"the first {self.float_layers} layers hold {first} weights, too many for float"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the quantized model.

        Raises:
            UsageError: no operator asked for is in the graph, or a name or method is unknown.
        """
        import onnx

        if context.samples is None:
            raise UsageError(
                "static int8 needs calibration data", hint="give a folder with `-c FOLDER`"
            )
        if self.operators and not set(self.operators) & op_types(model):
            raise UsageError(
                "the model has none of the operators that `compress.op_types` names",
                accepted=", ".join(sorted(op_types(model) & {*WEIGHTED, *_BETWEEN})),
            )
        if self.calibration not in METHODS:
            raise UsageError(
                f"there is no calibration method `{self.calibration}`", accepted=", ".join(METHODS)
            )
        draft = onnx.ModelProto()
        draft.CopyFrom(model)
        name_nodes(draft)
        names = {node.name for node in draft.graph.node}
        unknown = [name for name in self.keep_float if name not in names]
        if unknown:
            raise UsageError(f"the model has no node `{unknown[0]}` that could stay float")
        first = list(constant_weights(draft, WEIGHTED))[: self.float_layers]
        left_out = () if self.depthwise else depthwise_convolutions(draft)
        float_nodes = list(dict.fromkeys((*first, *self.keep_float)))
        after = quantize_statically(
            draft,
            context,
            op_types=self.operators or (*WEIGHTED, *_BETWEEN),
            keep_float=list(dict.fromkeys((*float_nodes, *left_out))),
            calibration=self.calibration,
            calibrated=(*WEIGHTED, *_BETWEEN),
            outputs=self.outputs,
        )
        notes = [f"`{name}` stays float" for name in float_nodes]
        if left_out:
            stay = "s stay" if len(left_out) > 1 else " stays"
            notes.append(f"{len(left_out)} depthwise convolution{stay} float")
        return PassResult(model=after, modified=True, notes=tuple(notes))

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that layers were quantized, in the opset of before.

        Raises:
            PassBroken: nothing was, or the target does not read the opset.
        """
        if "DequantizeLinear" not in op_types(after):
            raise PassBroken("no layer could be quantized")
        if opset_of(after) > context.target.engine.max_opset:
            raise PassBroken(f"the model came out with opset {opset_of(after)}")
