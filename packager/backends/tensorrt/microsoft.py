"""Writes ONNX Runtime's own operators in those of ONNX, where they say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.attention import heads_of
from packager.backends.tensorrt.rewrites import gelu_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from packager.backends.tensorrt.draft import Draft

DOMAIN: Final = "com.microsoft"


def _gelu(draft: Draft) -> bool:
    draft.give(gelu_of(draft, draft.value(0), by_tanh=False))
    return True


def _bias_gelu(draft: Draft) -> bool:
    biased = draft.add("Add", draft.value(0), draft.value(1))
    draft.give(gelu_of(draft, biased, by_tanh=False))
    return True


def _fast_gelu(draft: Draft) -> bool:
    x = draft.value(0)
    biased = draft.add("Add", x, draft.value(1)) if draft.value(1) else x
    draft.give(gelu_of(draft, biased, by_tanh=True))
    return True


def _quick_gelu(draft: Draft) -> bool:
    x = draft.value(0)
    gate = draft.add("Sigmoid", draft.add("Mul", x, draft.number(draft.attribute("alpha"), x)))
    draft.give(draft.add("Mul", x, gate))
    return True


def _skip_layer_normalization(draft: Draft) -> bool:
    """Add, then normalize; the sum is the last output."""
    node = draft.node
    if any(node.output[place] for place in range(1, min(3, len(node.output)))):
        return False
    total = draft.add("Add", draft.value(0), draft.value(1))
    if draft.value(4):
        total = draft.add("Add", total, draft.value(4))
    inputs = [total, draft.value(2)] + ([draft.value(3)] if draft.value(3) else [])
    epsilon = draft.attribute("epsilon", 1e-12)
    draft.give(draft.add("LayerNormalization", *inputs, axis=-1, epsilon=epsilon))
    draft.give(total, 3)
    return True


def _fused_mat_mul(draft: Draft) -> bool:
    sides = []
    for place, side in ((0, "A"), (1, "B")):
        value = draft.value(place)
        if draft.attribute(f"transBatch{side}", 0):
            return False
        if draft.attribute(f"trans{side}", 0):
            rank = draft.graph.rank(value)
            constant = draft.graph.constant(value)
            rank = rank if constant is None else constant.ndim
            if rank is None:
                return False
            perm = [*range(rank - 2), rank - 1, rank - 2]
            value = draft.add("Transpose", value, perm=perm)
        sides.append(value)
    y = draft.add("MatMul", *sides)
    alpha = draft.attribute("alpha", 1.0)
    draft.give(y if alpha == 1.0 else draft.add("Mul", y, draft.number(alpha, draft.value(0))))
    return True


def _multi_head_attention(draft: Draft) -> bool:
    """Write attention over [batch, length, heads · size]; the scores may have a bias.

    Masks of keys, packed inputs, caches and the outputs behind the first are left to others.
    """
    node = draft.node
    rest = (3, 4, 6, 7, 8, 9)
    if any(draft.value(place) for place in rest) or any(list(node.output)[1:]):
        return False
    if not draft.value(1) or not draft.value(2) or draft.attribute("unidirectional", 0):
        return False
    shape = draft.graph.shape(draft.value(0))
    heads = draft.attribute("num_heads")
    if shape is None or len(shape) != 3 or shape[2] is None:
        return False
    if draft.graph.rank(draft.value(1)) != 3 or draft.graph.rank(draft.value(2)) != 3:
        return False
    scale = draft.attribute("scale", 0.0) or (shape[2] // heads) ** -0.5
    q, k, v = (heads_of(draft, draft.value(place), heads) for place in range(3))
    scores = draft.add("MatMul", q, draft.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = draft.add("Mul", scores, draft.number(scale, draft.value(0)))
    if draft.value(5):
        scores = draft.add("Add", scores, draft.value(5))
    y = draft.add("MatMul", draft.add("Softmax", scores, axis=-1), v)
    y = draft.add("Transpose", y, perm=[0, 2, 1, 3])
    draft.give(draft.add("Reshape", y, draft.ints(0, 0, -1)))
    return True


MICROSOFT: Final[dict[str, Callable[[Draft], bool]]] = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "FusedMatMul": _fused_mat_mul,
    "Gelu": _gelu,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_normalization,
}


def is_microsoft(node: Any) -> bool:
    """Tell whether a node is one of ONNX Runtime's own operators."""
    return bool(node.domain == DOMAIN)
