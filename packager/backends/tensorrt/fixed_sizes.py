"""Finds which sizes of the values between head and core are fixed, by running the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.passes.contract import tool_faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from packager.backends.tensorrt.split import Split
    from packager.model import Signature

# Sizes of free axes behind the first, to be tried where nobody says which can be: photos take the
# first, sound needs the length of its window.
_GUESSES: Final = (8, 64, 512, 4096, 65536)
_BATCHES: Final = (2, 3)


def fix_sizes(cut: Split, whole: Any, signature: Signature | None) -> None:
    """Write the sizes that never change into what the core takes, in place.

    Inference often loses sizes that are computed, as those of a resized photo, and TensorRT must
    know the channels of a convolution. The head is run at two sizes of every named dimension: an
    axis that stays is fixed, one that is always as long as a dimension is that dimension.

    Args:
        cut: Has a head.
        whole: The model that was cut; its inputs name the dimensions.
        signature: What sizes can be; None for guesses.
    """
    for first, second in _sizes(whole, signature):
        try:
            made = [run(cut.head, _feeds(cut.head, sizes)) for sizes in (first, second)]
        except tool_faults():
            continue
        _write(cut.head.graph.output, made, first, second)
        _write(cut.core.graph.input, made, first, second)
        return


def run(model: Any, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a model's outputs, from ONNX Runtime without optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
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
            more = size + 1 if dim.max is None or size < dim.max else max(dim.min, size - 1)
            first[name], second[name] = size, more
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
                sizes[name] = guess + number + turn * (len(names) + 1)
            pair.append(sizes)
        yield pair[0], pair[1]


def _feeds(head: Any, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    import numpy as np
    import onnx

    feeds = {}
    for value in head.graph.input:
        kind = value.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param, 1)
            for d in kind.shape.dim
        ]
        if kind.elem_type == onnx.TensorProto.STRING:
            feeds[value.name] = np.full(shape, "", object)
        else:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            feeds[value.name] = np.zeros(shape, dtype)
    return feeds


def _write(
    values: Any,
    made: list[dict[str, NDArray[Any]]],
    first: Mapping[str, int],
    second: Mapping[str, int],
) -> None:
    for value in values:
        if value.name not in made[0]:
            continue
        shapes = [made[turn][value.name].shape for turn in range(2)]
        dims = value.type.tensor_type.shape.dim
        for dim, (one, other) in zip(dims, zip(*shapes, strict=True), strict=True):
            if dim.HasField("dim_value"):
                continue
            twins = [n for n in first if (first[n], second[n]) == (one, other) and one != other]
            if one == other and all(first[n] != second[n] for n in first):
                dim.dim_value = one
            elif len(twins) == 1:
                dim.dim_param = twins[0]
