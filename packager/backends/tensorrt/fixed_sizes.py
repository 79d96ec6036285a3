"""Finds types and sizes that inference has lost, by running what leads to a value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.regions import outer_reads
from packager.checks.bfloat16 import with_bfloat16
from packager.passes.contract import tool_faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from packager.model import Signature

# Sizes of free axes behind the first, to be tried where nobody says which can be: photos take the
# first, sound needs the length of its window.
_GUESSES: Final = (8, 64, 512, 4096, 65536)
_BATCHES: Final = (2, 3)
_MOST_ELEMENTS: Final = 1 << 25


def settle(model: Any, names: Iterable[str], signature: Signature | None) -> None:
    """Write types and sizes of values into a model's `value_info`, in place, by computing them.

    Inference often loses sizes that are computed, as those of a resized photo, and TensorRT must
    know the channels of a convolution. What leads to the values is run at two sizes of every named
    dimension: an axis that stays is fixed, one that is always as long as a dimension is that
    dimension. Where nothing runs, nothing is written.

    Args:
        model: An `onnx.ModelProto`.
        names: Of values that are cheap to compute.
        signature: What sizes can be; None for guesses.
    """
    import onnx

    wanted = list(names)
    part = leading_to(model, wanted)
    for first, second in _sizes(model, signature):
        if max(_elements(part, sizes) for sizes in (first, second)) > _MOST_ELEMENTS:
            continue
        try:
            made = [run(part, _feeds(part, sizes)) for sizes in (first, second)]
        except tool_faults():
            continue
        kept = [value for value in model.graph.value_info if value.name not in wanted]
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        kept += [_described(name, made, first, second) for name in wanted]
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
        return


def leading_to(model: Any, names: Iterable[str]) -> Any:
    """Return the part of a model that computes some values."""
    import onnx

    wanted = list(names)
    makers = {name: node for node in model.graph.node for name in node.output if name}
    needed: set[str] = set()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += outer_reads(makers[name]) if name in makers else []
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = onnx.helper.make_graph(
        [node for node in model.graph.node if needed.intersection(node.output)],
        "part",
        [value for value in model.graph.input if value.name in needed],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )
    result.graph.CopyFrom(graph)
    return result


def run(model: Any, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a model's outputs, from ONNX Runtime without optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = with_bfloat16(
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    )
    names = [value.name for value in session.get_outputs()]
    taken = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, taken), strict=True))


def _sizes(
    whole: Any, signature: Signature | None
) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Yield pairs of sizes for every named dimension, which differ in each where they can."""
    if signature is not None:
        first, second = {}, {}
        for name, dim in signature.dims().items():
            size = dim.opt if dim.opt is not None else dim.min
            # Apart enough for windows and strides to give another number of steps.
            double = size * 2 if dim.max is None else min(size * 2, dim.max)
            first[name], second[name] = size, double if double > size else max(dim.min, size // 2)
        yield first, second
    leading: list[str] = []
    others: list[str] = []
    for value in whole.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                (others if axis else leading).append(dim.dim_param)
    # A dimension that leads some input is a batch, whatever else it is.
    names = [name for name in dict.fromkeys(others) if name not in leading]
    for guess in _GUESSES:
        pair: list[dict[str, int]] = []
        for turn, batch in enumerate(_BATCHES):
            sizes = dict.fromkeys(leading, batch)
            for number, name in enumerate(names):
                sizes[name] = (guess + number) * (1 + turn)
            pair.append(sizes)
        yield pair[0], pair[1]


def _elements(part: Any, sizes: Mapping[str, int]) -> int:
    shapes = [_shape_at(value, sizes) for value in part.graph.input]
    return max((math.prod(shape) for shape in shapes), default=0)


def _shape_at(value: Any, sizes: Mapping[str, int]) -> list[int]:
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param, 1) for d in dims]


def _feeds(head: Any, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    import numpy as np
    import onnx

    feeds = {}
    for value in head.graph.input:
        kind = value.type.tensor_type
        shape = _shape_at(value, sizes)
        if kind.elem_type == onnx.TensorProto.STRING:
            feeds[value.name] = np.full(shape, "", object)
        else:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            feeds[value.name] = np.zeros(shape, dtype)
    return feeds


def _described(
    name: str,
    made: list[dict[str, NDArray[Any]]],
    first: Mapping[str, int],
    second: Mapping[str, int],
) -> Any:
    import onnx

    dims: list[int | str] = []
    shapes = [made[turn][name].shape for turn in range(2)]
    for axis, (one, other) in enumerate(zip(*shapes, strict=True)):
        twins = [n for n in first if (first[n], second[n]) == (one, other) and one != other]
        if one == other:
            dims.append(one)
        else:
            dims.append(twins[0] if len(twins) == 1 else f"{name}.{axis}")
    dtype = made[0][name].dtype
    text = dtype.kind == "O"
    kind = onnx.TensorProto.STRING if text else onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return onnx.helper.make_tensor_value_info(name, kind, dims)
