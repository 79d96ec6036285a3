"""What a target's TensorRT does not parse, whatever the TensorRT-RTX parser on the host says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.operators import (
    DTYPE_SINCE,
    NO_DTYPES,
    RTX_CANNOT_BUILD,
    RTX_LACKS_PLUGIN,
    SINCE,
    SINCE_8_5,
    numbers,
)
from packager.passes.contract import opset_of
from packager.passes.patterns import attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from packager.passes.patterns import Graph
    from packager.target import TensorRT

    Test = Callable[[Graph, Any], bool]

RTX: Final = "tensorrt_rtx"
_ALL: Final = ()
_REDUCTIONS: Final = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
"""
_MOST_TOP_K: Final = 3840
# What may read eight unsigned bits: [10.15] "only supported as network input or output".
_READS_UINT8: Final = ("Cast", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A restriction of an operator.

    Attributes:
        below: Versions of TensorRT before this one have it; empty for all.
        test: Tells whether a node meets it.
        reason: As part of a sentence behind the operator's name.
    """

    operators: tuple[str, ...]
    test: Test
    reason: str
    below: tuple[int, ...] = _ALL


def _made_at_run_time(place: int) -> Test:
    def test(graph: Graph, node: Any) -> bool:
        given = len(node.input) > place and bool(node.input[place])
        return given and graph.constant(node.input[place]) is None

    return test


def _not_attribute(name: str, *accepted: Any) -> Test:
    """Tell whether an attribute is there with another value; bytes are compared as text."""

    def test(graph: Graph, node: Any) -> bool:
        value = attribute(node, name)
        if isinstance(value, bytes):
            value = value.decode()
        return value is not None and value not in accepted

    return test


def _dilated(graph: Graph, node: Any) -> bool:
    return any(step != 1 for step in attribute(node, "dilations", ()))


def _gives_more_than_one(graph: Graph, node: Any) -> bool:
    return any(
        name and (graph.consumers(name) or graph.is_kept(name)) for name in list(node.output)[1:]
    )


def _of_kind(kinds: str, place: int) -> Test:
    """Tell whether an input's dtype is of one of numpy's kinds: `i` integers, `f` floats."""

    def test(graph: Graph, node: Any) -> bool:
        if len(node.input) <= place or not node.input[place]:
            return False
        name = graph.dtype(node.input[place]) or _dtype_of_constant(graph, node.input[place])
        kind = "i" if name.lstrip("u").startswith("int") else "f" if "float" in name else "?"
        return kind in kinds

    return test


def _not_of_rank(place: int, *ranks: int) -> Test:
    def test(graph: Graph, node: Any) -> bool:
        rank = graph.rank(node.input[place])
        return rank is not None and rank not in ranks

    return test


def _per_channel_scale(graph: Graph, node: Any) -> bool:
    return opset_of(graph.model) >= 21


def _scale_at_run_time(graph: Graph, node: Any) -> bool:
    return any(graph.constant(name) is None for name in list(node.input)[1:3])


def _ellipsis(graph: Graph, node: Any) -> bool:
    return b"..." in attribute(node, "equation", b"")


def _too_many(graph: Graph, node: Any) -> bool:
    most = graph.scalar(node.input[1])
    return most is not None and most > _MOST_TOP_K


def _trains(place: int) -> Test:
    def test(graph: Graph, node: Any) -> bool:
        if len(node.input) <= place or not node.input[place]:
            return False
        return graph.scalar(node.input[place]) != 0

    return test


def _rule(operators: str, test: Test, reason: str, below: tuple[int, ...] = _ALL) -> Rule:
    return Rule(operators=tuple(operators.split()), test=test, reason=reason, below=below)


_CROPS: Final = _not_attribute(
    "coordinate_transformation_mode",
    "half_pixel",
    "pytorch_half_pixel",
    "tf_half_pixel_for_nn",
    "asymmetric",
    "align_corners",
)
_WRAPS: Final = _not_attribute("mode", "constant", "reflect", "edge")
# The sources are those of operators.py.
RULES: Final = (
    # [8.5] and, for the version, [log]
    _rule("Slice", _made_at_run_time(3), "its axes must be a constant", (10, 3)),
    _rule("Squeeze Unsqueeze", _made_at_run_time(1), "its axes must be a constant", (10, 7)),
    _rule("Pad", _made_at_run_time(3), "its axes must be a constant", (10, 4)),
    _rule("Pad", _WRAPS, "it does not wrap around", (10, 0)),
    _rule("CumSum", _made_at_run_time(1), "its axis must be a constant", (10, 8)),
    _rule("TopK", _made_at_run_time(1), "its K must be a constant", (8, 6)),
    _rule("TopK ArgMax ArgMin", _of_kind("i", 0), "it takes floats alone", (8, 6)),
    _rule("InstanceNormalization", _scale_at_run_time, "its scale must be a constant", (10, 0)),
    _rule("InstanceNormalization", _not_of_rank(0, 3, 4, 5), "it takes 3 to 5 axes", (10, 0)),
    _rule("Einsum", _ellipsis, "its equation must not hold `...`", (10, 12)),
    _rule("Pow", _of_kind("i", 0), "its base must be a float", (10, 12)),
    _rule("Pow", _of_kind("i", 1), "its exponent must be a float", (10, 8)),
    _rule("ScatterElements", _not_attribute("reduction", "none"), "it does not reduce", (10, 0)),
    _rule("GroupNormalization", _per_channel_scale, "it is that of opset 18", (10, 9)),
    # [10.15], and so of all before
    _rule(_REDUCTIONS, _made_at_run_time(1), "its axes must be a constant"),
    _rule("OneHot", _made_at_run_time(1), "its depth must be a constant"),
    _rule("ScatterND", _not_attribute("reduction", "none"), "it does not reduce"),
    _rule("TopK", _not_attribute("sorted", 1), "it sorts always"),
    _rule("TopK", _too_many, f"its K must be below {_MOST_TOP_K}"),
    _rule("MaxPool LayerNormalization", _gives_more_than_one, "it gives its first output alone"),
    _rule("AveragePool MaxPool LpPool", _dilated, "it has no dilations"),
    _rule("LpPool", _not_attribute("p", 1, 2), "its p must be 1 or 2"),
    _rule("Resize", _not_attribute("antialias", 0), "it does not antialias"),
    _rule("Resize", _not_attribute("mode", "nearest", "linear"), "it has no cubic mode"),
    _rule("Resize", _not_attribute("keep_aspect_ratio_policy", "stretch"), "it always stretches"),
    _rule("Resize", _CROPS, "it does not crop"),
    _rule("GridSample", _not_of_rank(0, 4), "its input must have 4 axes"),
    _rule("LSTM GRU RNN", _not_attribute("layout", 0), "its layout must be 0"),
    _rule("LSTM", _not_attribute("input_forget", 0), "it has no input_forget"),
    _rule("BatchNormalization", _not_attribute("training_mode", 0), "it does not train"),
    _rule("Dropout", _trains(2), "it does not train"),
)


def known_differences(graph: Graph, node: Any, tensorrt: TensorRT) -> str | None:
    """Return why a target's TensorRT does not take a node, or None where nothing is known.

    Args:
        graph: The node's; types and constants come from it.
        node: Of its top level.
        tensorrt: The target's.
    """
    if node.domain not in ("", "ai.onnx"):
        return f"TensorRT has no operators of `{node.domain}`"
    if tensorrt.module == RTX:
        if node.op_type in RTX_CANNOT_BUILD:
            return "TensorRT-RTX parses it and has nothing that runs it"
        return _dtype_reason(graph, node, (10, 15))
    version = numbers(tensorrt.version)[:2]
    label = f"TensorRT {'.'.join(map(str, version))}"
    operator = node.op_type
    if operator not in SINCE_8_5 and operator not in SINCE:
        return f"no TensorRT has `{operator}`"
    if version < SINCE.get(operator, (0, 0)):
        since = ".".join(map(str, SINCE[operator]))
        return f"{label} has no `{operator}`, which came with {since}"
    for rule in RULES:
        holds = operator in rule.operators and (not rule.below or version < rule.below)
        if holds and rule.test(graph, node):
            return f"in {label} {rule.reason}"
    return _dtype_reason(graph, node, version, label)


def rtx_alone(operator: str, tensorrt: TensorRT) -> bool:
    """Tell whether what the RTX parser says against an operator holds for TensorRT-RTX alone."""
    return tensorrt.module != RTX and operator in RTX_LACKS_PLUGIN


def _dtype_reason(
    graph: Graph, node: Any, version: tuple[int, ...], label: str = "TensorRT"
) -> str | None:
    for name in (*node.input, *node.output):
        dtype = (graph.dtype(name) or _dtype_of_constant(graph, name)) if name else ""
        if dtype in NO_DTYPES:
            return f"{label} has no {'string' if dtype == 'object' else dtype}"
        if version < DTYPE_SINCE.get(dtype, (0, 0)):
            return f"{label} has no {dtype}"
        if dtype == "uint8" and name in node.input and node.op_type not in _READS_UINT8:
            return f"{label} takes uint8 as an input of the network, for a Cast alone"
    return None


def _dtype_of_constant(graph: Graph, name: str) -> str:
    value = graph.constant(name)
    return "" if value is None else str(value.dtype)
