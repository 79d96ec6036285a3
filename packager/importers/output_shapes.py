"""Ties the outputs' axes to the inputs' dimensions, from the shapes of several runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from packager.errors import ModelUnsupported
from packager.importers.graph_walk import attribute_graphs
from packager.importers.probe import dtype_name
from packager.model import Dim, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

_DATA_DEPENDENT_OPS: Final = frozenset(
    {"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop",
     "ConcatFromSequence"}
)  # fmt: skip
_NUMPY_NAMES: Final = {"object": "string", "str": "string"}


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One run: the sizes of the named dimensions, and every output's dtype and shape."""

    sizes: Mapping[str, int]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def of(cls, sizes: Mapping[str, int], got: Mapping[str, Any]) -> Self:
        """Return what a run showed; outputs that are no tensors are refused.

        Raises:
            ModelUnsupported: an output is a sequence, a map, or absent.
        """
        outputs = {}
        for name, value in got.items():
            if not hasattr(value, "shape"):
                raise ModelUnsupported(
                    f"output `{name}` is not a tensor but a {type(value).__name__}",
                    accepted="tensors; a ZipMap's list of maps is turned into one",
                )
            kind = str(value.dtype)
            kind = "string" if kind.startswith("<U") else _NUMPY_NAMES.get(kind, kind)
            outputs[name] = (kind, tuple(value.shape))
        return cls(sizes=dict(sizes), outputs=outputs)


def output_specs(
    model: onnx.ModelProto, seen: Sequence[Observation], dims: Mapping[str, Dim]
) -> tuple[TensorSpec, ...]:
    """Return the outputs' specifications.

    An axis is tied to a dimension that it equals in every run, over at least two sizes; it is
    static where it never changed; anything else depends on the data. In a model whose operators
    make shapes from values, an axis that the file leaves open is not trusted to be static.

    Raises:
        ModelUnsupported: an output changes its rank or has a type no answer can carry.
    """
    wild = _fed_by_data_dependent_ops(model)
    specs = []
    for value in model.graph.output:
        dtype = dtype_name(value.type.tensor_type.elem_type) or seen[0].outputs[value.name][0]
        shapes = [run.outputs[value.name][1] for run in seen]
        if len({len(shape) for shape in shapes}) != 1:
            raise ModelUnsupported(f"output `{value.name}` changes its number of dimensions")
        declared = value.type.tensor_type.shape.dim
        axes = []
        for axis in range(len(shapes[0])):
            pairs = [(run.sizes, shape[axis]) for run, shape in zip(seen, shapes, strict=True)]
            closed = len(declared) == len(shapes[0]) and declared[axis].dim_value > 0
            axes.append(_axis(pairs, dims, trusted=closed or value.name not in wild))
        specs.append(TensorSpec(name=value.name, dtype=dtype, shape=tuple(axes)))
    return tuple(specs)


def _fed_by_data_dependent_ops(model: onnx.ModelProto) -> set[str]:
    """Return the tensors of the main graph that such an operator lies before.

    A subgraph counts for the node that carries it; nodes come in topological order.
    """
    fed: set[str] = set()
    for node in model.graph.node:
        pending = [node]
        hit = any(name in fed for name in node.input)
        while pending and not hit:
            inner = pending.pop()
            hit = inner.op_type in _DATA_DEPENDENT_OPS
            for graph in attribute_graphs(inner):
                hit = hit or any(name in fed for n in graph.node for name in n.input)
                pending.extend(graph.node)
        if hit:
            fed.update(node.output)
    return fed


def _axis(
    pairs: Sequence[tuple[Mapping[str, int], int]], dims: Mapping[str, Dim], *, trusted: bool
) -> Dim:
    got = {size for _, size in pairs}
    for name, dim in dims.items():
        known = [(sizes[name], size) for sizes, size in pairs if name in sizes]
        if len({size for size, _ in known}) >= 2 and all(a == b for a, b in known):
            return dim
    if len(got) == 1 and trusted and got != {0}:
        return Dim(size=got.pop())
    return Dim(name=None, min=0, max=None, opt=pairs[0][1])
