"""Writes ONNX's Attention as matrix products and a softmax, which TensorRT fuses by itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packager.backends.tensorrt.draft import Draft

# A mask's "never" where -inf would make 0 · inf of rows that are masked whole.
_NEVER = {"float16": -6.0e4, "bfloat16": -3.0e38, "float32": -3.0e38, "float64": -1.0e300}


def attention(draft: Draft) -> bool:
    """Write softmax(q kᵀ · scale + mask) v for 3 or 4 axes, grouped heads and causal masks.

    Caches of keys and values, soft caps and the outputs behind the first are left to others.

    Source: ONNX's definition of Attention-23.
    """
    node = draft.node
    past = any(draft.value(place) for place in (4, 5, 6))
    more = any(node.output[place] for place in range(1, len(node.output)))
    if past or more or draft.attribute("softcap", 0.0) or draft.attribute("softmax_precision"):
        return False
    q, k, v = (draft.value(place) for place in range(3))
    flat = draft.graph.rank(q) == 3
    if not flat and draft.graph.rank(q) != 4:
        return False
    heads, kv_heads = draft.attribute("q_num_heads"), draft.attribute("kv_num_heads")
    if flat:
        q, k, v = _heads(draft, q, heads), _heads(draft, k, kv_heads), _heads(draft, v, kv_heads)
    else:
        heads, kv_heads = (_axis_size(draft, draft.value(place), 1) for place in (0, 1))
    if heads is None or kv_heads is None or heads % kv_heads:
        return False
    if heads != kv_heads:
        k, v = (_repeated(draft, value, kv_heads, heads // kv_heads) for value in (k, v))
    scale = _scale(draft, heads, flat=flat)
    if scale is None:
        return False
    # The root of the scale on either side keeps products of 16-bit floats small.
    root = draft.number(math.sqrt(scale), draft.value(0))
    q = draft.add("Mul", q, root)
    k = draft.add("Mul", draft.add("Transpose", k, perm=[0, 1, 3, 2]), root)
    scores = draft.add("MatMul", q, k)
    if draft.attribute("is_causal", 0):
        scores = draft.add("Add", scores, _causal(draft, scores))
    if draft.value(3):
        scores = _masked(draft, scores, draft.value(3))
    y = draft.add("MatMul", draft.add("Softmax", scores, axis=-1), v)
    if flat:
        y = draft.add("Transpose", y, perm=[0, 2, 1, 3])
        y = draft.add("Reshape", y, draft.ints(0, 0, -1))
    draft.give(y)
    return True


def heads_of(draft: Draft, value: str, heads: int) -> str:
    """Append [batch, length, heads · size] → [batch, heads, length, size]."""
    split = draft.add("Reshape", value, draft.ints(0, 0, heads, -1))
    return draft.add("Transpose", split, perm=[0, 2, 1, 3])


def _heads(draft: Draft, value: str, heads: int | None) -> str:
    return heads_of(draft, value, heads) if heads else value


def _repeated(draft: Draft, value: str, heads: int, times: int) -> str:
    """Repeat each head for the queries that share it."""
    shape = draft.add("Shape", value)
    apart = draft.unsqueeze(value, 2)
    lead = draft.add("Slice", shape, draft.ints(0), draft.ints(2))
    rest = draft.add("Slice", shape, draft.ints(2), draft.ints(4))
    wide = draft.add("Concat", lead, draft.ints(times), rest, axis=0)
    first = draft.add("Slice", shape, draft.ints(0), draft.ints(1))
    joined = draft.add("Concat", first, draft.ints(heads * times), rest, axis=0)
    return draft.add("Reshape", draft.add("Expand", apart, wide), joined)


def _scale(draft: Draft, heads: int, *, flat: bool) -> float | None:
    asked = draft.attribute("scale")
    if asked is not None:
        return float(asked) if asked > 0 else None
    size = _axis_size(draft, draft.value(0), -1)
    if size is None:
        return None
    return 1.0 / math.sqrt(size // heads if flat else size)


def _axis_size(draft: Draft, name: str, axis: int) -> int | None:
    shape = draft.graph.shape(name)
    return None if shape is None else shape[axis]


def _causal(draft: Draft, scores: str) -> str:
    """Return a mask that hides what comes later, for any length."""
    dtype = draft.dtype(draft.value(0))
    shape = draft.add("Shape", scores)
    last = draft.add("Slice", shape, draft.ints(2), draft.ints(4))
    never = draft.add("Expand", draft.constant([[_NEVER[dtype]]], dtype), last)
    return draft.add("Trilu", never, draft.constant(1, "int64"), upper=1)


def _masked(draft: Draft, scores: str, mask: str) -> str:
    dtype = draft.dtype(draft.value(0))
    if draft.dtype(mask) == "bool":
        never, zero = draft.constant(_NEVER[dtype], dtype), draft.constant(0.0, dtype)
        mask = draft.add("Where", mask, zero, never)
    return draft.add("Add", scores, mask)
