"""Whether NVIDIA's deep learning accelerator (DLA) could run a node, by the documented limits.

The limits are those of "DLA Supported Layers and Restrictions" in NVIDIA's TensorRT documentation;
earlier versions have fewer layers than its table. No one here could run a DLA: what passes is a
candidate, and the builder on the device has the last word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.values import attributes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from packager.backends.tensorrt.values import Values

MAX_BATCH: Final = 4096
MAX_SIZE: Final = 8192
# What the accelerator does for the engine beside it, and what the builder folds away.
_NOTHING_TO_RUN: Final = frozenset(("Constant", "DequantizeLinear", "Identity", "QuantizeLinear"))
_XAVIER: Final = "7.2"
_SPATIAL: Final = 2


def why_not_dla(node: Any, values: Values, *, precision: str, compute_capability: str) -> str:
    """Return why a node does not suit the DLA, empty where it is a candidate.

    Args:
        node: Of the top level.
        values: Of the same graph.
        precision: What the graph has the node in: `fp16`, `int8`, `fp32`.
        compute_capability: Of the module's GPU: it tells Xavier (7.2) from Orin (8.7).
    """
    if node.op_type in _NOTHING_TO_RUN:
        return ""
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain not in ("", "ai.onnx"):
        return "the DLA has no such layer"
    if precision not in ("fp16", "int8"):
        return f"the DLA computes in fp16 and int8, not in {precision}"
    wrong = _wrong_shape(node, values)
    if wrong:
        return wrong
    if node.op_type in _FP16_ONLY and precision != "fp16":
        return "in fp16 only"
    if node.op_type == "Softmax" and compute_capability == _XAVIER:
        return "on Orin, not on Xavier"
    return rule(node, attributes_of(node), values)


def _wrong_shape(node: Any, values: Values) -> str:
    names = [name for name in node.input if name and not values.is_constant(name)]
    for name in (*names, *node.output):
        shape = values.shape(name)
        if shape is None:
            return f"the sizes of `{name}` are not known"
        if len(shape) != _SPATIAL + 2:
            return f"`{name}` has {len(shape)} axes, and the DLA takes images: 4"
        if None in shape:
            return f"the sizes of `{name}` are not fixed"
        sizes = [size for size in shape if size is not None]
        if sizes[0] > MAX_BATCH or max(sizes[1:]) > MAX_SIZE:
            return f"`{name}` is larger than {MAX_BATCH} × {MAX_SIZE} × {MAX_SIZE} × {MAX_SIZE}"
    return ""


def _any(_node: Any, _attributes: Mapping[str, Any], _values: Values) -> str:
    return ""


def _clip(node: Any, attributes: Mapping[str, Any], values: Values) -> str:
    bounds = []
    for index, key in ((1, "min"), (2, "max")):
        name = node.input[index] if len(node.input) > index else ""
        array = values.constant(name) if name else None
        found = attributes.get(key) if array is None else float(array.reshape(-1)[0])
        bounds.append(found)
    low, high = bounds
    if low != 0 or high is None or not 1 <= high <= 127:
        return "it clips from 0 to a bound of 1 to 127"
    return ""


def _leaky(_node: Any, attributes: Mapping[str, Any], _values: Values) -> str:
    return "its slope may not be negative" if attributes.get("alpha", 0.01) < 0 else ""


def _prelu(node: Any, _attributes: Mapping[str, Any], values: Values) -> str:
    return "" if values.is_constant(node.input[1]) else "its slope has to be a constant"


def _concat(node: Any, attributes: Mapping[str, Any], _values: Values) -> str:
    if len(node.input) < 2:
        return "it joins two inputs or more"
    return "" if attributes.get("axis") in (1, -3) else "it joins channels only"


def _conv(node: Any, attributes: Mapping[str, Any], values: Values) -> str:
    weight = values.shape(node.input[1])
    if not values.is_constant(node.input[1]) or weight is None:
        return "its weight has to be a constant"
    kernel = [size or 0 for size in weight[2:]]
    pads = attributes.get("pads", [0])
    if not _within(kernel, 1, 32):
        return "kernels of 1 to 32"
    if not _within(attributes.get("strides", [1]), 1, 8):
        return "strides of 1 to 8"
    if not _within(pads, 0, min(31, max(kernel) - 1)):
        return "padding of 0 to 31 that is smaller than the kernel"
    if not _within(attributes.get("dilations", [1]), 1, 32):
        return "dilations of 1 to 32"
    return "" if _within(weight[:1], 1, MAX_SIZE) else f"channels of 1 to {MAX_SIZE}"


def _deconv(node: Any, attributes: Mapping[str, Any], values: Values) -> str:
    weight = values.shape(node.input[1])
    if not values.is_constant(node.input[1]) or weight is None:
        return "its weight has to be a constant"
    if attributes.get("group", 1) != 1 or not _within(attributes.get("dilations", [1]), 1, 1):
        return "without groups and dilations"
    if not _within(attributes.get("pads", [0]), 0, 0):
        return "without padding"
    # NVIDIA's builder leaves square kernels of 23 to 32 to the GPU: they take too long to compile
    return "" if _within([size or 0 for size in weight[2:]], 1, 22) else "kernels of 1 to 22"


def _pool(_node: Any, attributes: Mapping[str, Any], _values: Values) -> str:
    if not _within(attributes.get("kernel_shape", [1]), 1, 8):
        return "windows of 1 to 8"
    if not _within(attributes.get("pads", [0]), 0, 7):
        return "padding of 0 to 7"
    if not _within(attributes.get("dilations", [1]), 1, 1):
        return "without dilations"
    return "" if _within(attributes.get("strides", [1]), 1, 16) else "strides of 1 to 16"


def _global_pool(node: Any, _attributes: Mapping[str, Any], values: Values) -> str:
    shape = values.shape(node.input[0]) or ()
    return "" if _within(shape[2:], 1, 8) else "windows of 1 to 8"


def _lrn(_node: Any, attributes: Mapping[str, Any], _values: Values) -> str:
    return "" if attributes.get("size") in (3, 5, 7, 9) else "windows of 3, 5, 7 or 9"


def _resize(node: Any, attributes: Mapping[str, Any], values: Values) -> str:
    mode = attributes.get("mode", b"nearest").decode("ascii", "replace")
    limit = {"nearest": 32, "linear": 4}.get(mode)
    if limit is None or attributes.get("antialias", 0):
        return "nearest or linear, without antialiasing"
    before, after = values.shape(node.input[0]) or (), values.shape(node.output[0]) or ()
    pairs = list(zip(before, after, strict=True))
    scales = [(out or 0) / (size or 1) for size, out in pairs]
    if scales[:2] != [1, 1] or any(not scale.is_integer() for scale in scales):
        return "whole factors of height and width"
    return "" if _within(scales[2:], 1, limit) else f"factors of 1 to {limit}"


def _slice(node: Any, _attributes: Mapping[str, Any], values: Values) -> str:
    if not all(values.is_constant(name) for name in node.input[1:] if name):
        return "its bounds have to be constants"
    before, after = values.shape(node.input[0]) or (), values.shape(node.output[0]) or ()
    return "" if before[:1] == after[:1] else "it may not cut the batch"


def _softmax(node: Any, attributes: Mapping[str, Any], values: Values) -> str:
    shape = values.shape(node.input[0]) or ()
    axis = int(attributes.get("axis", -1)) % len(shape)
    rest = [size for index, size in enumerate(shape) if index not in (0, axis)]
    if all(size == 1 for size in rest):
        return ""
    return "" if _within(shape[axis : axis + 1], 1, 1024) else "over 1024 elements at most"


def _reordered(node: Any, attributes: Mapping[str, Any], values: Values) -> str:
    before, after = values.shape(node.input[0]) or (), values.shape(node.output[0]) or ()
    kept = attributes.get("perm", [0])[0] == 0 and before[:1] == after[:1]
    return "" if kept else "it may not move the batch"


def _within(numbers: Any, least: float, most: float) -> bool:
    return all(number is not None and least <= number <= most for number in numbers)


_FP16_ONLY: Final = frozenset(("Slice", "Softmax"))
_RULES: Final[dict[str, Callable[[Any, Mapping[str, Any], Values], str]]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh"), _any),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum"), _any),
    **dict.fromkeys(("Abs", "BatchNormalization", "ReduceMax"), _any),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(
        ("Reshape", "Transpose", "Flatten", "DepthToSpace", "SpaceToDepth"), _reordered
    ),
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _deconv,
    "LRN": _lrn,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
}
