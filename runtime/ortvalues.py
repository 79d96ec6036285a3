"""Tensors into ONNX Runtime's values and back, and what a model declares of them."""

from __future__ import annotations

import ctypes
import math
from typing import List, NamedTuple, Sequence, Tuple, Union

from .dtypes import BY_NAME, BY_ONNX
from .errors import BadRequest, ModelFault
from .ortlibrary import Library
from .tensor import Tensor

# Past AVX-512's width no kernel gains from a stricter alignment.
_ALIGNMENT = 64
_ONNX_TENSOR = 1
_ONNX_TYPES = {2: "a sequence", 3: "a map", 4: "opaque", 5: "a sparse tensor", 6: "optional"}


class TensorInfo(NamedTuple):
    """An input or output as the model declares it, which need not be the truth.

    Attributes:
        name: Any text.
        dtype: Our name of the element type.
        shape: Sizes; a text for a named dimension, None for an unknown one.
    """

    name: str
    dtype: str
    shape: Tuple[Union[int, str, None], ...]


def wrap(ort: Library, dtype: str, shape: Sequence[int], size: int) -> Tuple[memoryview, int]:
    """Return a new buffer and the tensor that ONNX Runtime sees in it."""
    raw = ctypes.create_string_buffer(size + _ALIGNMENT)
    offset = -ctypes.addressof(raw) % _ALIGNMENT
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    value = ort.create(
        "CreateTensorWithDataAsOrtValue",
        ort.cpu_memory,
        ctypes.addressof(raw) + offset,
        size,
        sizes,
        len(shape),
        BY_NAME[dtype].onnx,
    )
    # the view keeps the buffer alive
    return memoryview(raw).cast("B")[offset : offset + size], value


def string_value(ort: Library, name: str, tensor: Tensor) -> int:
    """Return a tensor of strings, copied into ONNX Runtime's memory."""
    items = list(tensor.data)
    if len(items) != math.prod(tensor.shape):
        raise BadRequest(
            "input `%s` has %d strings, which is not what shape %s needs"
            % (name, len(items), list(tensor.shape))
        )
    if any(b"\0" in item for item in items):
        raise BadRequest("input `%s` holds a NUL character, where a C string ends" % name)
    sizes = (ctypes.c_int64 * len(tensor.shape))(*tensor.shape)
    onnx = BY_NAME["string"].onnx
    value = ort.create("CreateTensorAsOrtValue", ort.allocator, sizes, len(sizes), onnx)
    array = (ctypes.c_char_p * len(items))(*items)
    try:
        ort.call("FillStringTensor", value, array, len(items))
    except ModelFault:
        ort.release("ReleaseValue", value)
        raise
    return value


def read_shape(ort: Library, info: int) -> Tuple[int, ...]:
    """Return the sizes in an `OrtTensorTypeAndShapeInfo`, negative where unknown."""
    rank = ort.count("GetDimensionsCount", info)
    sizes = (ctypes.c_int64 * rank)()
    ort.call("GetDimensions", info, sizes, rank)
    return tuple(sizes)


def read_value(ort: Library, value: int) -> Tensor:
    """Copy a tensor out of ONNX Runtime's memory."""
    info = ort.create("GetTensorTypeAndShape", value)
    try:
        dtype = BY_ONNX[ort.code("GetTensorElementType", info)]
        shape = read_shape(ort, info)
    finally:
        ort.release("ReleaseTensorTypeAndShapeInfo", info)
    count = math.prod(shape)
    if dtype.name == "string":
        return Tensor("string", shape, _read_strings(ort, value, count))
    pointer = ort.create("GetTensorMutableData", value)
    size = count * dtype.itemsize
    return Tensor(dtype.name, shape, ctypes.string_at(pointer, size) if size else b"")


def _read_strings(ort: Library, value: int, count: int) -> List[bytes]:
    if not count:
        return []
    size = ort.count("GetStringTensorDataLength", value)
    content = ctypes.create_string_buffer(max(size, 1))
    starts = (ctypes.c_size_t * count)()
    ort.call("GetStringTensorContent", value, content, size, starts, count)
    text = content.raw[:size]
    ends = [*starts[1:], size]
    return [text[start:end] for start, end in zip(starts, ends)]  # noqa: B905


def describe(ort: Library, session: int, kind: str) -> Tuple[TensorInfo, ...]:
    """Return the declared inputs or outputs; `kind` is `Input` or `Output`."""
    count = ort.count("SessionGet%sCount" % kind, session)
    return tuple(_describe_one(ort, session, kind, index) for index in range(count))


def _describe_one(ort: Library, session: int, kind: str, index: int) -> TensorInfo:
    text = ort.create("SessionGet%sName" % kind, session, index, ort.allocator)
    name = ctypes.string_at(text).decode("utf-8", "replace")
    ort.call("AllocatorFree", ort.allocator, text)
    info = ort.create("SessionGet%sTypeInfo" % kind, session, index)
    try:
        onnx_type = ort.code("GetOnnxTypeFromTypeInfo", info)
        if onnx_type != _ONNX_TENSOR:
            raise ModelFault(
                "%s `%s` is %s, and only tensors are served"
                % (kind.lower(), name, _ONNX_TYPES.get(onnx_type, "of an unknown kind")),
                hint="cut the model before it, or export it without that %s" % kind.lower(),
            )
        tensor_info = ort.create("CastTypeInfoToTensorInfo", info)
        dtype = BY_ONNX.get(ort.code("GetTensorElementType", tensor_info))
        if dtype is None:
            raise ModelFault(
                "%s `%s` has an element type that is not served" % (kind.lower(), name)
            )
        sizes = read_shape(ort, tensor_info)
        symbols = (ctypes.c_char_p * len(sizes))()
        ort.call("GetSymbolicDimensions", tensor_info, symbols, len(sizes))
        shape = tuple(
            size if size >= 0 else (symbol.decode("utf-8", "replace") or None)
            for size, symbol in zip(sizes, symbols)  # noqa: B905
        )
    finally:
        ort.release("ReleaseTypeInfo", info)
    return TensorInfo(name, dtype.name, shape)
