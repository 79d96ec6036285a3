"""Writes nodes as an older opset has them, where the older form says the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.passes.contract import opset_of
from packager.passes.graph import all_nodes, fresh_name
from packager.passes.patterns import attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# The first opset in which the axes of a reduction are an input.
_AXES_AS_INPUT: Final = {"ReduceSum": 13}
_AXES_AS_INPUT_ELSE: Final = 18
# Attributes by the opset that brought them, with the value that is the older form.
_DEFAULTS: Final[dict[tuple[str, str], tuple[int, Any]]] = {
    ("Resize", "antialias"): (18, 0),
    ("Resize", "keep_aspect_ratio_policy"): (18, b"stretch"),
    ("Cast", "saturate"): (19, 1),
    ("Cast", "round_mode"): (24, b"up"),
    ("CastLike", "saturate"): (19, 1),
    ("QuantizeLinear", "saturate"): (19, 1),
    ("QuantizeLinear", "block_size"): (21, 0),
    ("QuantizeLinear", "precision"): (23, 0),
    ("DequantizeLinear", "block_size"): (21, 0),
    ("DequantizeLinear", "output_dtype"): (23, 0),
}
# How the interpolations were called before opset 20.
_OLD_MODES: Final = {b"linear": "bilinear", b"cubic": "bicubic"}


def rewrite_for(model: Any, opset: int) -> None:
    """Give nodes the form of an older opset, in place; what has none stays as it is.

    The opset that the model imports is left to the caller, who checks the result against it.

    Args:
        model: An `onnx.ModelProto` of a later opset.
        opset: The older one.
    """
    now = opset_of(model)
    constants = _constants_of(model)
    for node in all_nodes(model):
        if node.domain not in ("", "ai.onnx"):
            continue
        _drop_defaults(node, opset, now)
        for since, operators, rewrite in _REWRITES:
            if node.op_type in operators and opset < since <= now:
                rewrite(model, node, constants)
        if node.op_type.startswith("Reduce"):
            since = _AXES_AS_INPUT.get(node.op_type, _AXES_AS_INPUT_ELSE)
            if opset < since <= now:
                _axes_as_attribute(node, constants)


def _drop_defaults(node: Any, opset: int, now: int) -> None:
    dropped = [
        entry.name
        for entry in node.attribute
        if (known := _DEFAULTS.get((node.op_type, entry.name))) is not None
        and opset < known[0] <= now
        and attribute(node, entry.name) == known[1]
    ]
    _remove_attributes(node, *dropped)


def _axes_as_attribute(node: Any, constants: dict[str, NDArray[Any]]) -> None:
    from onnx import helper

    if len(node.input) < 2 or not node.input[1]:
        if attribute(node, "noop_with_empty_axes", 0):
            node.op_type = "Identity"
            _remove_attributes(node, "noop_with_empty_axes", "keepdims")
        else:
            _remove_attributes(node, "noop_with_empty_axes")
        del node.input[1:]
        return
    axes = constants.get(node.input[1])
    if axes is None:
        return
    _remove_attributes(node, "noop_with_empty_axes")
    del node.input[1:]
    if axes.size:
        node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes.ravel()]))


def _sizes_of_split(model: Any, node: Any, constants: dict[str, NDArray[Any]]) -> None:
    """Say the parts of a Split by their sizes; opset 18 may say their number alone."""
    import numpy as np

    count = attribute(node, "num_outputs")
    if count is None:
        return
    size = _size_along(model, node.input[0], attribute(node, "axis", 0))
    if size is not None and size % count:
        part = -(-size // count)
        sizes = [part] * (count - 1) + [size - part * (count - 1)]
        name = _constant(model, f"{node.name or node.output[0]}.split", np.asarray(sizes, np.int64))
        del node.input[1:]
        node.input.append(name)
    elif size is None:
        return  # the older form would split evenly, and whether that is so is not known
    _remove_attributes(node, "num_outputs")


def _old_grid_mode(model: Any, node: Any, constants: dict[str, NDArray[Any]]) -> None:
    for entry in node.attribute:
        if entry.name == "mode" and entry.s in _OLD_MODES:
            entry.s = _OLD_MODES[entry.s].encode()


def _all_axes_of_resize(model: Any, node: Any, constants: dict[str, NDArray[Any]]) -> None:
    """Drop `axes` where they are all axes in order."""
    axes = attribute(node, "axes")
    if axes is None:
        return
    given = [name for name in list(node.input)[2:] if name]
    sizes = constants.get(given[-1]) if given else None
    rank = len(_shape_of(model, node.input[0]) or ())
    if sizes is not None and rank == len(axes) and list(axes) == list(range(rank)):
        _remove_attributes(node, "axes")


def _all_axes_of_pad(model: Any, node: Any, constants: dict[str, NDArray[Any]]) -> None:
    """Give pads for every axis, where opset 18 may name some."""
    import numpy as np

    if len(node.input) < 4 or not node.input[3]:
        del node.input[3:]
        return
    axes, pads = constants.get(node.input[3]), constants.get(node.input[1])
    shape = _shape_of(model, node.input[0])
    if axes is None or pads is None or shape is None:
        return
    full = np.zeros((2, len(shape)), np.int64)
    full[:, axes.ravel() % len(shape)] = pads.reshape(2, -1)
    node.input[1] = _constant(model, f"{node.name or node.output[0]}.pads", full.ravel())
    del node.input[3:]


def _plain_dilations(model: Any, node: Any, constants: dict[str, NDArray[Any]]) -> None:
    if all(step == 1 for step in attribute(node, "dilations", ())):
        _remove_attributes(node, "dilations")


def _zero_point_for_dtype(model: Any, node: Any, constants: dict[str, NDArray[Any]]) -> None:
    """Say the quantized dtype by a zero point, as before opset 21."""
    import numpy as np
    from onnx import helper

    dtype = attribute(node, "output_dtype", 0)
    if dtype and (len(node.input) < 3 or not node.input[2]):
        scale = constants.get(node.input[1])
        if scale is None:
            return
        zeros = np.zeros(scale.shape, helper.tensor_dtype_to_np_dtype(dtype))
        name = _constant(model, f"{node.name or node.output[0]}.zero_point", zeros)
        del node.input[2:]
        node.input.append(name)
    _remove_attributes(node, "output_dtype")


_REWRITES: Final[tuple[tuple[int, tuple[str, ...], Callable[[Any, Any, Any], None]], ...]] = (
    (18, ("Split",), _sizes_of_split),
    (18, ("Pad",), _all_axes_of_pad),
    (18, ("Resize",), _all_axes_of_resize),
    (18, ("LpPool",), _plain_dilations),
    (19, ("AveragePool",), _plain_dilations),
    (20, ("GridSample",), _old_grid_mode),
    (21, ("QuantizeLinear",), _zero_point_for_dtype),
)


def _constants_of(model: Any) -> dict[str, NDArray[Any]]:
    """Return the small constants of the whole model, those of branches included."""
    from onnx import numpy_helper

    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in all_nodes(model):
        for entry in node.attribute:
            if node.op_type == "Constant" and entry.name == "value":
                tensors.append((node.output[0], entry.t))
            elif node.op_type == "Constant" and entry.name in ("value_ints", "value_int"):
                found = entry.ints if entry.name == "value_ints" else [entry.i]
                tensors.append((node.output[0], _int_tensor(found)))
            if entry.HasField("g"):
                tensors += [(tensor.name, tensor) for tensor in entry.g.initializer]
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in tensors
        if not tensor.external_data and len(tensor.dims) <= 1
    }


def _int_tensor(values: Any) -> Any:
    import numpy as np
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(list(values), np.int64))


def _constant(model: Any, stem: str, value: NDArray[Any]) -> str:
    from onnx import numpy_helper

    name = fresh_name(model, stem)
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _shape_of(model: Any, name: str) -> list[int | None] | None:
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.name == name and value.type.tensor_type.HasField("shape"):
            return [
                d.dim_value if d.HasField("dim_value") else None
                for d in value.type.tensor_type.shape.dim
            ]
    return None


def _size_along(model: Any, name: str, axis: int) -> int | None:
    shape = _shape_of(model, name)
    return None if shape is None else shape[axis]


def _remove_attributes(node: Any, *names: str) -> None:
    kept = [entry for entry in node.attribute if entry.name not in names]
    if len(kept) < len(node.attribute):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
        del node.attribute[:]
        node.attribute.extend(copies)
