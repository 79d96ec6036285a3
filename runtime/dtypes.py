"""One table of element types: our name, ONNX Runtime's, the inference protocol's and NumPy's."""

from __future__ import annotations

import struct
from array import array
from typing import Any, Iterable, List, NamedTuple, Optional, Sequence


class DType(NamedTuple):
    """One element type under each of its names.

    Attributes:
        name: Ours, as in manifests: `float32`.
        onnx: `ONNXTensorElementDataType` of ONNX Runtime's C API.
        protocol: The Open Inference Protocol's: `FP32`.
        itemsize: Bytes an element; 0 for strings, whose size varies.
        code: The code of `array`, `struct` and `memoryview.cast`, empty where none exists.
        npy: The descriptor in an `.npy` header, empty where NumPy itself has no such type.
    """

    name: str
    onnx: int
    protocol: str
    itemsize: int
    code: str
    npy: str


TABLE = (
    DType("float32", 1, "FP32", 4, "f", "<f4"),
    DType("uint8", 2, "UINT8", 1, "B", "|u1"),
    DType("int8", 3, "INT8", 1, "b", "|i1"),
    DType("uint16", 4, "UINT16", 2, "H", "<u2"),
    DType("int16", 5, "INT16", 2, "h", "<i2"),
    DType("int32", 6, "INT32", 4, "i", "<i4"),
    DType("int64", 7, "INT64", 8, "q", "<i8"),
    DType("string", 8, "BYTES", 0, "", ""),
    DType("bool", 9, "BOOL", 1, "?", "|b1"),
    DType("float16", 10, "FP16", 2, "e", "<f2"),
    DType("float64", 11, "FP64", 8, "d", "<f8"),
    DType("uint32", 12, "UINT32", 4, "I", "<u4"),
    DType("uint64", 13, "UINT64", 8, "Q", "<u8"),
    DType("bfloat16", 16, "BF16", 2, "", ""),
)
BY_NAME = {dtype.name: dtype for dtype in TABLE}
BY_ONNX = {dtype.onnx: dtype for dtype in TABLE}
BY_PROTOCOL = {dtype.protocol: dtype for dtype in TABLE}

FLOATS = frozenset(("float16", "bfloat16", "float32", "float64"))
INTEGERS = frozenset(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"))
# An array has no code for these two, but memoryview and bytes read them directly.
_ARRAY_CODES = frozenset("fdbBhHiIqQ")


def integer_range(name: str) -> range:
    """Return all values of an integer type, as a range that is never expanded."""
    bits = BY_NAME[name].itemsize * 8
    if name.startswith("u"):
        return range(1 << bits)
    return range(-(1 << (bits - 1)), 1 << (bits - 1))


def pack(name: str, values: Sequence[Any]) -> bytes:
    """Return the little-endian bytes of numbers or bools of one type.

    Raises:
        TypeError: an element is no number.
        OverflowError: an element is out of the type's range; a float32 becomes an infinity instead.
        struct.error: the same for a float16 in some interpreters.
    """
    if name == "bfloat16":
        return _pack_bfloat16(values)
    code = BY_NAME[name].code
    if code in _ARRAY_CODES:
        return array(code, values).tobytes()
    if code == "?":
        return bytes(bytearray(map(bool, values)))
    return struct.pack("<%d%s" % (len(values), code), *values)


def unpack(name: str, data: Any) -> List[Any]:
    """Return the numbers or bools that little-endian bytes hold; `data` is bytes-like."""
    view = memoryview(data).cast("B")
    if name == "bfloat16":
        halves = view.cast("H").tolist()
        return list(memoryview(array("I", [half << 16 for half in halves])).cast("B").cast("f"))
    code = BY_NAME[name].code
    if code == "e":
        # memoryview reads half floats only from CPython 3.12 on
        return list(struct.unpack("<%de" % (len(view) // 2), view))
    elements: List[Any] = view.cast(code).tolist()  # type: ignore[call-overload]
    return elements


def _pack_bfloat16(values: Iterable[Any]) -> bytes:
    """Round float32 bits to their upper half, ties to even, as every accelerator does."""
    halves = array("H")
    words = memoryview(array("f", values)).cast("B").cast("I")
    for word in words:
        if word & 0x7FFFFFFF > 0x7F800000:
            halves.append((word >> 16) | 0x40)  # NaN stays NaN: rounding could make it infinite
        else:
            halves.append((word + 0x7FFF + ((word >> 16) & 1)) >> 16)
    return halves.tobytes()


def closest(name: str, accepted: Iterable[str]) -> Optional[str]:
    """Return the accepted word most like `name`, or None where none is near."""
    from difflib import get_close_matches

    found = get_close_matches(name, list(accepted), 1, 0.6)
    return found[0] if found else None
