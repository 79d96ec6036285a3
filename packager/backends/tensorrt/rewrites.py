"""Writes operators that a TensorRT lacks in operators that every one of them has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from packager.backends.tensorrt.attention import attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from packager.backends.tensorrt.draft import Draft

# Of the approximation of GELU by tanh (Hendrycks and Gimpel, 2016).
_TANH_GELU: Final = (math.sqrt(2.0 / math.pi), 0.044715)


def layer_normalization(draft: Draft) -> bool:
    """Write (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axes."""
    rank, axis = draft.graph.rank(draft.value(0)), draft.attribute("axis", -1)
    if axis >= 0 and rank is None:
        return False
    axes = list(range(axis if axis < 0 else axis - (rank or 0), 0))
    x, back = _wide(draft, draft.value(0))
    mean = draft.reduce("ReduceMean", x, axes, keepdims=True)
    centred = draft.add("Sub", x, mean)
    deviation = _deviation(draft, centred, axes)
    y = draft.add("Div", centred, deviation)
    y = draft.cast(y, back) if back else y
    y = draft.add("Mul", y, draft.value(1))
    if draft.value(2):
        y = draft.add("Add", y, draft.value(2))
    draft.give(y)
    draft.give(mean, 1)
    if len(draft.node.output) > 2:
        draft.give(draft.add("Reciprocal", deviation), 2)
    return True


def rms_normalization(draft: Draft) -> bool:
    """Write x / sqrt(mean of squares + epsilon) * scale over the last axes."""
    rank, axis = draft.graph.rank(draft.value(0)), draft.attribute("axis", -1)
    if axis >= 0 and rank is None:
        return False
    axes = list(range(axis if axis < 0 else axis - (rank or 0), 0))
    x, back = _wide(draft, draft.value(0))
    y = draft.add("Div", x, _deviation(draft, x, axes))
    y = draft.cast(y, back) if back else y
    draft.give(draft.add("Mul", y, draft.value(1)))
    return True


def group_normalization(draft: Draft) -> bool:
    """Normalize groups of channels; scale and bias are per group before opset 21, then per channel.

    Everything is done on three axes, so that the number of spatial axes does not matter.
    """
    groups = draft.attribute("num_groups")
    x, back = _wide(draft, draft.value(0))
    split = draft.add("Reshape", x, draft.ints(0, groups, -1))
    mean = draft.reduce("ReduceMean", split, [2], keepdims=True)
    centred = draft.add("Sub", split, mean)
    y = draft.add("Div", centred, _deviation(draft, centred, [2]))
    return _scaled(draft, y, back, per_channel=draft.opset >= 21)


def instance_normalization(draft: Draft) -> bool:
    """Normalize each channel on its own."""
    x, back = _wide(draft, draft.value(0))
    shape = draft.add("Shape", x)
    lead = draft.add("Slice", shape, draft.ints(0), draft.ints(2))
    flat = draft.add("Concat", lead, draft.ints(-1), axis=0)
    split = draft.add("Reshape", x, flat)
    mean = draft.reduce("ReduceMean", split, [2], keepdims=True)
    centred = draft.add("Sub", split, mean)
    y = draft.add("Div", centred, _deviation(draft, centred, [2]))
    return _scaled(draft, y, back, per_channel=False)


def gelu(draft: Draft) -> bool:
    """Write x · Φ(x) by the error function, or by tanh where that is asked for."""
    x = draft.value(0)
    draft.give(gelu_of(draft, x, by_tanh=draft.attribute("approximate", "none") == "tanh"))
    return True


def gelu_of(draft: Draft, x: str, *, by_tanh: bool) -> str:
    """Append the nodes of a GELU and return its value."""
    like = draft.value(0)
    if by_tanh:
        slope, cubic = _TANH_GELU
        square = draft.add("Mul", x, x)
        inner = draft.add("Mul", draft.add("Mul", square, x), draft.number(cubic, like))
        inner = draft.add("Mul", draft.add("Add", x, inner), draft.number(slope, like))
        gate = draft.add("Tanh", inner)
    else:
        gate = draft.add("Erf", draft.add("Mul", x, draft.number(math.sqrt(0.5), like)))
    gate = draft.add("Add", gate, draft.number(1.0, like))
    return draft.add("Mul", draft.add("Mul", x, draft.number(0.5, like)), gate)


def mish(draft: Draft) -> bool:
    """Write x · tanh(softplus(x))."""
    x = draft.value(0)
    draft.give(draft.add("Mul", x, draft.add("Tanh", draft.add("Softplus", x))))
    return True


def hard_swish(draft: Draft) -> bool:
    """Write x · hard sigmoid(x)."""
    x = draft.value(0)
    gate = draft.add("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5)
    draft.give(draft.add("Mul", x, gate))
    return True


def swish(draft: Draft) -> bool:
    """Write x · sigmoid(alpha x)."""
    x, alpha = draft.value(0), draft.attribute("alpha", 1.0)
    scaled = x if alpha == 1.0 else draft.add("Mul", x, draft.number(alpha, x))
    draft.give(draft.add("Mul", x, draft.add("Sigmoid", scaled)))
    return True


def cast_like(draft: Draft) -> bool:
    """Write a conversion to the dtype that another value has."""
    dtype = draft.graph.dtype(draft.value(1))
    constant = draft.graph.constant(draft.value(1))
    dtype = dtype or (None if constant is None else str(constant.dtype))
    if dtype is None:
        return False
    draft.cast(draft.value(0), dtype, draft.node.output[0])
    return True


def is_inf(draft: Draft) -> bool:
    """Compare with the infinities that are asked for."""
    x = draft.value(0)
    found = [
        draft.add("Equal", x, draft.number(sign * math.inf, x))
        for name, sign in (("detect_positive", 1), ("detect_negative", -1))
        if draft.attribute(name, 1)
    ]
    if not found:
        return False
    draft.give(found[0] if len(found) == 1 else draft.add("Or", *found))
    return True


def _wide(draft: Draft, x: str) -> tuple[str, str]:
    """Return a value in float32 and the dtype to go back to, empty for the same.

    Sums of squares overflow in 16 bits; ONNX takes them in float32 (`stash_type`).
    """
    dtype = draft.dtype(x)
    if dtype in ("float16", "bfloat16") and draft.attribute("stash_type", 1) == 1:
        return draft.cast(x, "float32"), dtype
    return x, ""


def _deviation(draft: Draft, centred: str, axes: list[int]) -> str:
    square = draft.add("Mul", centred, centred)
    variance = draft.reduce("ReduceMean", square, axes, keepdims=True)
    dtype = draft.dtype(draft.value(0))
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    if draft.attribute("stash_type", 1) != 1:
        wide = dtype
    epsilon = draft.constant(draft.attribute("epsilon", 1e-5), wide)
    return draft.add("Sqrt", draft.add("Add", variance, epsilon))


def _scaled(draft: Draft, y: str, back: str, *, per_channel: bool) -> bool:
    """Append scale and bias on three axes, and give the result its shape back."""
    if per_channel:
        channels = draft.graph.length(draft.value(1))
        constant = draft.graph.constant(draft.value(1))
        channels = len(constant) if constant is not None else channels
        if channels is None:
            return False
        y = draft.add("Reshape", y, draft.ints(0, channels, -1))
    y = draft.cast(y, back) if back else y
    y = draft.add("Mul", y, draft.unsqueeze(draft.value(1), 1))
    y = draft.add("Add", y, draft.unsqueeze(draft.value(2), 1))
    shape = draft.add("Shape", draft.value(0))
    draft.give(draft.add("Reshape", y, shape))
    return True


# Each tells whether it could write the node; where not, the draft is dropped.
REWRITES: Final[dict[str, Callable[[Draft], bool]]] = {
    "Attention": attention,
    "CastLike": cast_like,
    "Gelu": gelu,
    "GroupNormalization": group_normalization,
    "HardSwish": hard_swish,
    "InstanceNormalization": instance_normalization,
    "IsInf": is_inf,
    "LayerNormalization": layer_normalization,
    "Mish": mish,
    "RMSNormalization": rms_normalization,
    "Swish": swish,
}
