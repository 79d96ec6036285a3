"""A tensor without numpy: type, shape and bytes, and the way from and to JSON."""

from __future__ import annotations

import math
import struct
from array import array
from itertools import chain
from typing import Any, List, Optional, Sequence, Tuple, Union

from .dtypes import BY_NAME, FLOATS, INTEGERS, integer_range, pack, unpack
from .errors import BadRequest

MAX_RANK = 32

_ARRAY_CODES = {"float32": "f", "float64": "d"}
_NUMBER_TYPES = ({float}, {int}, {float, int})
_EXPECTED = {"bool": "true or false", "string": "a string"}
_JSON_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class Tensor:
    """Elements of one type in row-major order.

    Args:
        dtype: Our name of the element type, such as `float32`.
        shape: Sizes; empty for a scalar.
        data: Bytes-like, little-endian; a list of `bytes` for `string`.
    """

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, dtype: str, shape: Tuple[int, ...], data: Any) -> None:
        self.dtype = dtype
        self.shape = shape
        self.data = data

    def __repr__(self) -> str:
        # never the contents: a repr may end up in a log, and a request must not
        return "Tensor(%s, %r)" % (self.dtype, list(self.shape))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and tuple(self.shape) == tuple(other.shape)
            and (self.data == other.data if self.dtype == "string" else _same(self, other))
        )

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_nested(
        cls, value: object, dtype: str, *, where: str = "data", allow_non_finite: bool = False
    ) -> Tensor:
        """Return the tensor that nested lists describe, their nesting being its shape.

        Args:
            value: A number, boolean or string, or lists of them, as a JSON parser gives them.
            dtype: The element type to make; nothing is converted but integers to floats.
            where: What to call the value in a message.
            allow_non_finite: Whether NaN and infinities pass.

        Raises:
            BadRequest: ragged lists, a wrong type, a number out of range; says which element.
        """
        shape, leaves = _flatten(value, where)
        return cls(dtype, shape, _encode(leaves, dtype, shape, where, allow_non_finite))

    @classmethod
    def from_flat(
        cls,
        values: object,
        shape: Sequence[int],
        dtype: str,
        *,
        where: str = "data",
        allow_non_finite: bool = False,
    ) -> Tensor:
        """Return a tensor of a known shape from a flat list, or from lists nested in that shape.

        Raises:
            BadRequest: as `from_nested`, or the number of elements is not the shape's.
        """
        sizes = tuple(shape)
        if type(values) is not list:
            raise BadRequest("`%s` has to be a list, not %s" % (where, _json_name(values)))
        if values and type(values[0]) is list:
            nested, values = _flatten(values, where)
            if nested != sizes:
                raise BadRequest(
                    "`%s` is nested as %s but its shape says %s"
                    % (where, list(nested), list(sizes))
                )
        if len(values) != math.prod(sizes):
            raise BadRequest(
                "`%s` has %d elements where shape %s needs %d"
                % (where, len(values), list(sizes), math.prod(sizes))
            )
        data = _encode(values, dtype, (len(values),), where, allow_non_finite)
        return cls(dtype, sizes, data)

    @classmethod
    def from_bytes(
        cls, data: Any, shape: Sequence[int], dtype: str, *, where: str = "data"
    ) -> Tensor:
        """Return a tensor from the protocol's binary form, without a copy where it can.

        Strings come as a four-byte little-endian length before each one's bytes.

        Raises:
            BadRequest: the size is not the shape's, a boolean is neither 0 nor 1, a string's
                length runs past the end.
        """
        sizes = tuple(shape)
        count = math.prod(sizes)
        if dtype == "string":
            return cls(dtype, sizes, _split_strings(bytes(data), count, where))
        needed = count * BY_NAME[dtype].itemsize
        if len(data) != needed:
            raise BadRequest(
                "`%s` has %d bytes where %s of shape %s needs %d"
                % (where, len(data), dtype, list(sizes), needed)
            )
        # another value than 0 and 1 in a C++ bool is undefined behaviour inside the engine
        if dtype == "bool" and bytes(data).translate(None, b"\0\1"):
            raise BadRequest("`%s` holds a byte that is neither 0 nor 1" % where)
        return cls(dtype, sizes, data)

    def to_bytes(self) -> bytes:
        """Return the protocol's binary form; exact for every type."""
        if self.dtype != "string":
            return bytes(self.data)
        return b"".join(struct.pack("<I", len(item)) + item for item in self.data)

    def to_flat(self) -> List[Any]:
        """Return the elements in row-major order; strings decoded, invalid UTF-8 replaced."""
        if self.dtype == "string":
            return [item.decode("utf-8", "replace") for item in self.data]
        return unpack(self.dtype, self.data)

    def to_nested(self) -> Any:
        """Return the elements as lists nested by the shape; a bare element for a scalar."""
        level = self.to_flat()
        if not self.shape:
            return level[0]
        for axis in range(len(self.shape) - 1, 0, -1):
            size = self.shape[axis]
            count = math.prod(self.shape[:axis])
            level = [level[i * size : (i + 1) * size] for i in range(count)]
        return level


def _same(left: Tensor, right: Tensor) -> bool:
    return bytes(left.data) == bytes(right.data)


def _flatten(value: object, where: str) -> Tuple[Tuple[int, ...], List[Any]]:
    """Return the shape of nested lists and their elements in order.

    Works level by level with built-in functions: an element costs nanoseconds, not a call.
    """
    if type(value) is not list:
        return (), [value]
    shape = [len(value)]
    level: List[Any] = value
    while level and type(level[0]) is list:
        size = len(level[0])
        if len(shape) == MAX_RANK:
            raise BadRequest("`%s` is nested deeper than %d lists" % (where, MAX_RANK))
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise BadRequest(_ragged(level, size, shape, where))
        shape.append(size)
        level = list(chain.from_iterable(level))
    return tuple(shape), level


def _ragged(level: List[Any], size: int, shape: Sequence[int], where: str) -> str:
    for index, item in enumerate(level):
        if type(item) is not list:
            return "`%s` is %s where its neighbours are lists" % (
                _position(where, index, shape),
                _json_name(item),
            )
        if len(item) != size:
            return "`%s` has %d elements where its neighbours have %d" % (
                _position(where, index, shape),
                len(item),
                size,
            )
    raise AssertionError("only called for ragged lists")


def _encode(
    leaves: List[Any], dtype: str, shape: Sequence[int], where: str, allow_non_finite: bool
) -> Union[bytes, List[bytes]]:
    """Return the bytes of checked elements; slow only where something is wrong."""
    types = set(map(type, leaves))
    if dtype in FLOATS:
        if not leaves or types in _NUMBER_TYPES:
            data = _encode_floats(leaves, dtype)
            if data is not None:
                return data
            return _encode_odd_floats(leaves, dtype, shape, where, allow_non_finite)
    elif dtype in INTEGERS:
        if types <= {int}:
            try:
                return pack(dtype, leaves)
            except OverflowError:
                raise BadRequest(_out_of_range(leaves, dtype, shape, where)) from None
    elif dtype == "bool":
        if types <= {bool}:
            return pack(dtype, leaves)
    elif types <= {str}:
        try:
            return [item.encode() for item in leaves]
        except UnicodeEncodeError:
            raise BadRequest("`%s` holds a lone surrogate, which is no text" % where) from None
    raise BadRequest(_wrong_type(leaves, dtype, shape, where))


def _encode_floats(leaves: List[Any], dtype: str) -> Optional[bytes]:
    """Return the bytes, or None where an element is not finite before or after rounding."""
    # A sum with a NaN or an infinity in it is never finite, and adding up is the fastest look.
    try:
        if dtype in _ARRAY_CODES:
            numbers = array(_ARRAY_CODES[dtype], leaves)
            return numbers.tobytes() if math.isfinite(sum(numbers)) else None
        data = pack(dtype, leaves)
        return data if math.isfinite(sum(unpack(dtype, data))) else None
    except (OverflowError, struct.error):
        return None


def _encode_odd_floats(
    leaves: List[Any], dtype: str, shape: Sequence[int], where: str, allow_non_finite: bool
) -> bytes:
    """Encode one by one: NaN, infinities, numbers that round to an infinity, sums that do."""
    for index, item in enumerate(leaves):
        finite = type(item) is int or math.isfinite(item)
        if not finite and not allow_non_finite:
            raise BadRequest(
                "`%s` is not a finite number" % _position(where, index, shape),
                hint="a number past 1e308 reads as an infinity; NaN is no JSON",
            )
        try:
            rounded = unpack(dtype, pack(dtype, [item]))[0]
        except (OverflowError, struct.error):
            rounded = math.inf
        if finite and not math.isfinite(rounded):
            raise BadRequest("`%s` is too large for %s" % (_position(where, index, shape), dtype))
    return pack(dtype, leaves)


def _out_of_range(leaves: List[Any], dtype: str, shape: Sequence[int], where: str) -> str:
    allowed = integer_range(dtype)
    index = next(i for i, item in enumerate(leaves) if item not in allowed)
    return "`%s` is out of the range of %s, %d to %d" % (
        _position(where, index, shape),
        dtype,
        allowed.start,
        allowed.stop - 1,
    )


def _wrong_type(leaves: List[Any], dtype: str, shape: Sequence[int], where: str) -> str:
    if dtype in FLOATS:
        accepted, expected = {float, int}, "a number"
    elif dtype in INTEGERS:
        accepted, expected = {int}, "an integer"
    else:
        accepted, expected = ({bool} if dtype == "bool" else {str}), _EXPECTED[dtype]
    index = next(i for i, item in enumerate(leaves) if type(item) not in accepted)
    return "`%s` is %s where %s needs %s" % (
        _position(where, index, shape),
        _json_name(leaves[index]),
        dtype,
        expected,
    )


def _position(where: str, index: int, shape: Sequence[int]) -> str:
    """Return `data[1][2]` for an index counted in row-major order."""
    steps = []
    for size in reversed(shape):
        index, step = divmod(index, size)
        steps.append("[%d]" % step)
    return where + "".join(reversed(steps))


def _json_name(item: object) -> str:
    return _JSON_NAMES.get(type(item), type(item).__name__)


def _split_strings(data: bytes, count: int, where: str) -> List[bytes]:
    items: List[bytes] = []
    offset = 0
    # every string takes four bytes at least, so a lying shape fails before the loop
    if count * 4 <= len(data):
        while offset + 4 <= len(data) and len(items) < count:
            (length,) = struct.unpack_from("<I", data, offset)
            offset += 4
            if length > len(data) - offset:
                break
            items.append(data[offset : offset + length])
            offset += length
    if len(items) != count or offset != len(data):
        raise BadRequest("`%s` is not %d strings with their four-byte lengths" % (where, count))
    return items
