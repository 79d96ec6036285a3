"""Joins the operators of multi-head attention to ONNX Runtime's MultiHeadAttention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from packager.passes.contract import PassBroken, PassContext, PassResult, opset_of
from packager.passes.fuse_transformer import MICROSOFT
from packager.passes.graph import interface_of
from packager.passes.patterns import Graph, attribute, import_domain

_HEADS_FIRST: Final = [0, 2, 1, 3]
_KEYS_LAST: Final = [0, 2, 3, 1]


@dataclass(frozen=True, kw_only=True)
class FuseAttention:
    """Multi-head attention as one operator, with any additive mask.

    Whether it is faster depends on sequence and threads (ONNX Runtime 1.32.0, x86-64), so it is a
    shape for the search to try, not part of `FuseTransformer`.
    """

    name: ClassVar[str] = "fuse-attention"
    summary: ClassVar[str] = "fuse multi-head attention"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need ONNX Runtime, whose own operator is used."""
        engine = context.target.engine.name
        if engine != "onnxruntime":
            return f"the fused operator is that of onnxruntime, not of {engine}"
        if opset_of(model) < 13:
            return f"opset {opset_of(model)} is older than the forms that are known; 13 is needed"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the rewritten graph; unchanged where no attention is found."""
        import onnx

        draft = onnx.ModelProto()
        draft.CopyFrom(model)
        graph = Graph(draft)
        masks: dict[tuple[str, bool], str] = {}
        for product in graph.nodes("MatMul"):
            found = find_attention(graph, product)
            if found is not None:
                _write(graph, found, masks)
        if graph.edits == 0:
            return PassResult(model=model, modified=False)
        import_domain(draft, MICROSOFT, 1)
        graph.sweep()
        count = len(Graph(draft).nodes("MultiHeadAttention", MICROSOFT))
        return PassResult(model=draft, modified=True, notes=(f"{count} attentions",))

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that names, dtypes and shapes of inputs and outputs stay.

        Raises:
            PassBroken: one of them changed.
        """
        if interface_of(before) != interface_of(after):
            raise PassBroken("an input or output changed its name, dtype or shape")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One multi-head attention: softmax(scale · Q Kᵀ + mask) V, heads side by side.

    Attributes:
        query: Value of shape [batch, queries, heads × size]; `key`, `value` alike, over keys.
        mask: Value added to the scores, which broadcasts to them; empty for none.
        last: The node that makes the result, [batch, queries, heads × size].
    """

    query: str
    key: str
    value: str
    heads: int
    scale: float
    mask: str
    last: Any


def find_attention(graph: Graph, product: Any) -> Attention | None:
    """Return the attention whose probabilities and values a matrix product joins, or None."""
    softmax = graph.producer(product.input[0], "Softmax")
    if softmax is None or attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    last = _heads_joined(graph, product.output[0])
    scores, mask = softmax.input[0], ""
    plus = graph.producer(scores, "Add")
    if plus is not None:
        sides = [graph.producer(graph.scaled(name)[0], "MatMul") for name in plus.input]
        if (sides[0] is None) == (sides[1] is None):
            return None
        scores, mask = plus.input if sides[0] is not None else reversed(plus.input)
    scores, scale = graph.scaled(scores)
    dots = graph.producer(scores, "MatMul")
    if dots is None or last is None:
        return None
    query, query_scale = graph.scaled(dots.input[0])
    key, key_scale = graph.scaled(dots.input[1])
    split = (
        _heads_split(graph, query, _HEADS_FIRST),
        _keys(graph, key),
        _heads_split(graph, product.input[1], _HEADS_FIRST),
    )
    if split[0] is None or split[1] is None or split[2] is None:
        return None
    shapes = {(heads, size) for _, heads, size in (split[0], split[1], split[2])}
    if len(shapes) > 1:
        return None
    return Attention(
        query=split[0][0],
        key=split[1][0],
        value=split[2][0],
        heads=split[0][1],
        scale=scale * query_scale * key_scale,
        mask=mask,
        last=last,
    )


def _heads_joined(graph: Graph, name: str) -> Any | None:
    """Return the Reshape that puts the heads of [batch, heads, queries, size] side by side."""
    for turn in graph.consumers(name):
        if turn.op_type != "Transpose" or attribute(turn, "perm") != _HEADS_FIRST:
            continue
        for reshape in graph.consumers(turn.output[0]):
            if reshape.op_type == "Reshape" and len(_parts(graph, reshape.input[1])) == 3:
                return reshape
    return None


def _heads_split(graph: Graph, name: str, perm: list[int]) -> tuple[str, int, int] | None:
    """Return (value before, heads, size of a head) of a Reshape and Transpose to heads first."""
    turn = graph.producer(name, "Transpose")
    if turn is None or attribute(turn, "perm") != perm:
        return None
    reshape = graph.producer(turn.input[0], "Reshape")
    parts = _parts(graph, reshape.input[1]) if reshape is not None else []
    if reshape is None or len(parts) != 4 or graph.rank(reshape.input[0]) not in (3, None):
        return None
    heads, size = parts[2:]
    if heads is None or size is None or heads < 1 or size < 1:
        return None
    return str(reshape.input[0]), heads, size


def _keys(graph: Graph, name: str) -> tuple[str, int, int] | None:
    """Return the same of keys whose last two axes were exchanged, in any of the exporters' ways."""
    direct = _heads_split(graph, name, _KEYS_LAST)
    if direct is not None:
        return direct
    # torch.export writes the exchange on three axes, between two Reshapes.
    outer = graph.producer(name, "Reshape")
    turn = graph.producer(outer.input[0] if outer is not None else name, "Transpose")
    if turn is None:
        return None
    perm, before = attribute(turn, "perm"), turn.input[0]
    if outer is None:
        return _heads_split(graph, before, _HEADS_FIRST) if perm == [0, 1, 3, 2] else None
    inner = graph.producer(before, "Reshape")
    if inner is None or perm != [0, 2, 1]:
        return None
    found = _heads_split(graph, inner.input[0], _HEADS_FIRST)
    flat, full = (_parts(graph, node.input[1]) for node in (inner, outer))
    # Two entries taken out of a shape at once may count as one here.
    if found is None or len(flat) != 3 or len(full) not in (3, 4) or flat[0] != -1:
        return None
    size = found[2]
    return found if flat[2] in (size, None) and full[-2] in (size, None) else None


def _parts(graph: Graph, name: str) -> list[int | None]:
    """Return the entries of a shape, None for those known at run time only; empty if unknown."""
    constant = graph.constant(name)
    if constant is not None:
        return [int(part) for part in constant.reshape(-1)]
    join = graph.producer(name, "Concat")
    parts: list[int | None] = []
    for entry in join.input if join is not None else ():
        value = graph.constant(entry)
        if value is not None:
            parts += [int(part) for part in value.reshape(-1)]
            continue
        # A slice of a shape may hold more than one entry; inference knows.
        parts += [None] * (graph.length(entry) or 1)
    return parts


def _write(graph: Graph, found: Attention, masks: dict[tuple[str, bool], str]) -> None:
    from onnx import helper

    inputs = [found.query, found.key, found.value]
    if found.mask:
        own = _source(graph, found.query) == _source(graph, found.key)
        if (found.mask, own) not in masks:
            masks[found.mask, own] = _whole_mask(graph, found)
        inputs += ["", "", masks[found.mask, own]]
    node = helper.make_node(
        "MultiHeadAttention", inputs, list(found.last.output), graph.fresh("attention"),
        domain=MICROSOFT, num_heads=found.heads, scale=found.scale,
    )  # fmt: skip
    graph.replace(found.last, node)


def _source(graph: Graph, name: str) -> str:
    """Return what a linear layer reads, so that self-attention is known from the other kind."""
    plus = graph.producer(name, "Add")
    for operand in plus.input if plus is not None else (name,):
        product = graph.producer(operand, "MatMul")
        if product is not None:
            return str(product.input[0])
    return name


def _whole_mask(graph: Graph, found: Attention) -> str:
    """Return the mask with an axis of queries of full size, which the operator asks for."""
    import numpy as np
    from onnx import helper

    shape, queries, full, whole = (
        graph.fresh(f"{found.mask}_{part}") for part in ("shape", "queries", "full", "whole")
    )
    one = graph.add_constant("one", np.array([1], np.int64))
    two = graph.add_constant("two", np.array([2], np.int64))
    # Behind the query: the mask is there by then, as the scores need both.
    after = max((found.query, found.mask), key=graph.position)
    graph.insert_after(
        after,
        helper.make_node("Shape", [found.query], [shape], shape),
        helper.make_node("Slice", [shape, one, two], [queries], queries),
        helper.make_node("Concat", [one, one, queries, one], [full], full, axis=0),
        helper.make_node("Expand", [found.mask, full], [whole], whole),
    )
    return whole
