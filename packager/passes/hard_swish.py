"""Finds hard sigmoid and hard swish in their parts and makes one operator, or two, of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import op_types
from packager.passes.patterns import Graph, attribute

# Factors such as 0.1666667 are written with six to eight digits.
_CLOSE: Final = 1e-5


@dataclass(frozen=True, kw_only=True)
class HardSwish:
    """Rewrites `x * clip(x + 3, 0, 6) / 6` to HardSigmoid and Mul.

    Exporters write it as up to four operators over the whole tensor, in any order: the division
    may be a product with 1/6, or stand before the Mul. A hard sigmoid without the product with x
    is found as well. Any slope, offset and limit will do: c · clip(a x + b, 0, h) is c h ·
    HardSigmoid(x) with alpha = a / h and beta = b / h; where c h is not 1 the Mul by it stays.

    The operator HardSwish of opset 14 would do no better: ONNX Runtime 1.32 runs both forms alike
    (0.99 ×), in float fused into the convolution before, and a quantizer knows the Mul.
    """

    name: ClassVar[str] = "hard-swish"
    summary: ClassVar[str] = "make hard swish of its parts"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Need a Clip, or a Min that may stand for one."""
        if not op_types(model) & {"Clip", "Min"}:
            return "nothing is clipped"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the model with the patterns rewritten; unchanged if there are none."""
        import onnx

        after = onnx.ModelProto()
        after.CopyFrom(model)
        found: Counter[str] = Counter()
        while _rewrite(after, found):
            pass
        if not found:
            return PassResult(model=model, modified=False)
        note = ", ".join(f"{count} × {name}" for name, count in sorted(found.items()))
        return PassResult(model=after, modified=True, notes=(note,))

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that the graph became smaller.

        Raises:
            PassBroken: it did not.
        """
        if len(after.graph.node) >= len(before.graph.node):
            raise PassBroken("the graph did not become smaller")


@dataclass(frozen=True, kw_only=True)
class _Match:
    """`factor` · [x ·] HardSigmoid(x; alpha, beta), and the outputs of the nodes that go."""

    x: str
    alpha: float
    beta: float
    factor: float
    times_x: bool
    parts: tuple[str, ...]


class _Products(Graph):
    """The graph's scalars, and the nodes whose output only one node reads."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._reads = Counter(name for node in model.graph.node for name in node.input)

    def number(self, name: str) -> float | None:
        """Return a float32 scalar that gives no tensor another axis, or None."""
        array = self.constant(name)
        fits = array is not None and array.dtype == "float32" and array.size == 1
        return (
            float(array.reshape(-1)[0]) if fits and array is not None and array.ndim < 2 else None
        )

    def inner(self, name: str, *kinds: str) -> Any:
        """Return the node that makes a value which only one node reads, if of one of the kinds."""
        alone = self._reads[name] == 1 and not self.is_kept(name)
        return self.producer(name, *kinds) if alone else None


def _rewrite(model: Any, found: Counter[str]) -> bool:
    """Rewrite the patterns of a graph in place and count them; tell whether there were any."""
    graph = _Products(model)
    gone: set[str] = set()
    # From the end: the last product of a pattern is met before those inside it.
    for node in reversed(list(model.graph.node)):
        match = None if gone.intersection(node.output) else _match(graph, node)
        if match is not None:
            gone.update(match.parts)
            graph.replace(node, *_nodes(graph, node, match))
            found["hard swish" if match.times_x else "hard sigmoid"] += 1
    if gone:
        graph.sweep()
    return bool(gone)


def _match(graph: _Products, node: Any) -> _Match | None:
    if node.op_type not in ("Mul", "Div", "Clip", "Min"):
        return None
    parts: list[str] = []
    product = _factors(graph, node, parts)
    if product is None:
        return None
    factor, names = product
    for clip, other in ((names[0], names[-1]), (names[-1], names[0])):
        inside = list(parts)
        limits = _limits(graph, clip, node, inside)
        if limits is None or limits[0] != 0.0 or limits[1] <= 0.0:
            continue
        _, high, value = limits
        times_x = len(names) == 2
        slope, offset, x = _affine(graph, value, other if times_x else "", inside)
        if slope <= 0.0 or (times_x and x != other):
            continue
        factor *= high
        factor = 1.0 if abs(factor - 1.0) < _CLOSE else factor
        if len(inside) > 1 + times_x + (factor != 1.0):
            return _Match(
                x=x, alpha=slope / high, beta=offset / high, factor=factor, times_x=times_x,
                parts=tuple(inside),
            )  # fmt: skip
        factor /= high
    return None


def _factors(graph: _Products, node: Any, parts: list[str]) -> tuple[float, tuple[str, ...]] | None:
    """Return a node as (constant, one or two computed factors), or None.

    The names of the products that a rewritten pattern needs no more go into `parts`.
    """
    if node.op_type not in ("Mul", "Div"):
        return 1.0, (node.output[0],)
    parts.append(node.output[0])
    factor = 1.0
    names: list[str] = []
    for position, side in enumerate(node.input):
        number = graph.number(side)
        if number is None and node.op_type == "Div" and position == 1:
            return None
        if number is not None:
            if node.op_type == "Div" and (position == 0 or number == 0.0):
                return None
            factor = factor * number if node.op_type == "Mul" else factor / number
            continue
        inner = graph.inner(side, "Mul", "Div")
        found = _factors(graph, inner, parts) if inner is not None else (1.0, (side,))
        if found is None:
            return None
        factor *= found[0]
        names += found[1]
    # A product of more than two belongs to something else.
    return (factor, tuple(names)) if 1 <= len(names) <= 2 else None


def _limits(
    graph: _Products, name: str, last: Any, parts: list[str]
) -> tuple[float, float, str] | None:
    """Return a clipped tensor as (low, high, what is clipped), or None."""
    node = last if name == last.output[0] else graph.inner(name, "Clip", "Min")
    if node is None:
        return None
    parts.append(name)
    if node.op_type == "Clip":
        low, high = (
            graph.number(node.input[index]) if len(node.input) > index else attribute(node, key)
            for index, key in ((1, "min"), (2, "max"))
        )
        return None if low is None or high is None else (low, high, node.input[0])
    high, rest = _with_number(graph, node)
    inner = graph.inner(rest, "Max", "Relu") if high is not None else None
    if inner is None or high is None:
        return None
    parts.append(rest)
    if inner.op_type == "Relu":
        return 0.0, high, inner.input[0]
    low, value = _with_number(graph, inner)
    return None if low is None else (low, high, value)


def _with_number(graph: _Products, node: Any) -> tuple[float | None, str]:
    """Return the constant of a node with two inputs, and its other input."""
    if len(node.input) == 2:
        for constant, other in (tuple(node.input), tuple(reversed(node.input))):
            number = graph.number(constant)
            if number is not None and graph.number(other) is None:
                return number, other
    return None, ""


def _affine(graph: _Products, name: str, stop: str, parts: list[str]) -> tuple[float, float, str]:
    """Return a tensor as slope · x + offset, going back to `stop` or as far as it goes."""
    slope, offset = 1.0, 0.0
    while name != stop:
        node = graph.inner(name, "Add", "Sub", "Mul", "Div")
        number, other = _with_number(graph, node) if node is not None else (None, "")
        if node is None or number is None:
            break
        behind = node.input[1] == other
        if node.op_type == "Add":
            offset += slope * number
        elif node.op_type == "Mul":
            slope *= number
        elif node.op_type == "Sub" and not behind:
            offset -= slope * number
        elif node.op_type == "Div" and not behind and number != 0.0:
            slope /= number
        else:
            break
        parts.append(name)
        name = other
    return slope, offset, name


def _nodes(graph: Graph, last: Any, match: _Match) -> list[Any]:
    """Return what takes the place of a pattern's last node."""
    import numpy as np
    from onnx.helper import make_node

    name = last.name or last.output[0]
    value = graph.fresh(f"{name}_hard_sigmoid")
    nodes = [
        make_node("HardSigmoid", [match.x], [value], value, alpha=match.alpha, beta=match.beta)
    ]
    if match.times_x:
        value = graph.fresh(f"{name}_hard_swish")
        nodes.append(make_node("Mul", [match.x, nodes[-1].output[0]], [value], value))
    if match.factor != 1.0:
        factor = graph.add_constant(f"{name}_factor", np.asarray(match.factor, np.float32))
        value = graph.fresh(f"{name}_scaled")
        nodes.append(make_node("Mul", [nodes[-1].output[0], factor], [value], value))
    nodes[-1].output[0] = last.output[0]
    return nodes
