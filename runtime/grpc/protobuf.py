"""The wire format of Protocol Buffers: fields out of bytes and into them, within limits."""

from __future__ import annotations

from struct import Struct
from typing import Any, Iterator, List, Tuple, Union

from ..errors import BadRequest

Body = Union[bytes, bytearray, memoryview]
# number, wire type, and where the value lies; of a varint the value itself and where it ends
Field = Tuple[int, int, int, int]

VARINT, FIXED64, BYTES, _GROUP, _GROUP_END, FIXED32 = range(6)
_MAX_VARINT_BYTES = 10
_SIZES = {FIXED64: 8, FIXED32: 4}
_MASK_64 = (1 << 64) - 1
_DOUBLE = Struct("<d")


def fields(body: Body, start: int, stop: int, *, limit: int = 4096) -> Iterator[Field]:
    """Yield the fields of a message that lies in `body[start:stop]`.

    Args:
        body: The bytes.
        start: Where the message begins.
        stop: Where it ends.
        limit: The most fields, as each costs more than its bytes show.

    Raises:
        BadRequest: the message is cut off, holds a group, or more fields than `limit`.
    """
    at = start
    count = 0
    while at < stop:
        key, at = varint(body, at, stop)
        number, kind = key >> 3, key & 7
        count += 1
        if number == 0:
            raise BadRequest("the message has a field number 0")
        if count > limit:
            raise BadRequest("the message has more than %d fields in one place" % limit)
        if kind == BYTES:
            size, at = varint(body, at, stop)
            end = at + size
        elif kind == VARINT:
            value, at = varint(body, at, stop)
            yield number, kind, value, at
            continue
        else:
            known = _SIZES.get(kind)
            if known is None:
                raise BadRequest("the message holds a field of wire type %d" % kind)
            end = at + known
        if end > stop:
            raise BadRequest("the message is cut off")
        yield number, kind, at, end
        at = end


def varint(body: Body, at: int, stop: int) -> Tuple[int, int]:
    """Return an unsigned number and where it ends.

    Raises:
        BadRequest: it is cut off or longer than ten bytes.
    """
    if at < stop:
        value = body[at]
        if value < 0x80:
            return value, at + 1
        value &= 0x7F
        shift = 7
        for position in range(at + 1, min(stop, at + _MAX_VARINT_BYTES)):
            byte = body[position]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _MASK_64, position + 1
            shift += 7
        if stop - at >= _MAX_VARINT_BYTES:
            raise BadRequest("the message holds a number of more than ten bytes")
    raise BadRequest("the message is cut off")


def signed(value: int) -> int:
    """Return what a varint of type `int32` or `int64` means."""
    return value - (1 << 64) if value >> 63 else value


def varints(body: Body, start: int, stop: int, most: int) -> List[int]:
    """Return the numbers of a packed field, unsigned.

    Raises:
        BadRequest: there are more than `most`, or the last is cut off.
    """
    found: List[int] = []
    at = start
    while at < stop:
        value, at = varint(body, at, stop)
        if len(found) >= most:
            raise BadRequest("the message holds more than %d numbers in one place" % most)
        found.append(value)
    return found


def text(body: Body, start: int, stop: int) -> str:
    """Return a string field.

    Raises:
        BadRequest: it is not UTF-8, as the format demands.
    """
    try:
        return str(memoryview(body)[start:stop], "utf-8")
    except UnicodeDecodeError:
        raise BadRequest("the message holds a text that is not UTF-8") from None


def double(body: Body, at: int) -> float:
    """Return a double field."""
    value: float = _DOUBLE.unpack_from(body, at)[0]
    return value


def pack_varint(value: int) -> bytes:
    """Return an unsigned number, or a negative one as `int64` has it."""
    if 0 <= value < 0x80:
        return bytes((value,))
    value &= _MASK_64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack_bytes(number: int, value: Any) -> bytes:
    """Return a string, bytes or message field, empty or not."""
    data = value.encode("utf-8") if isinstance(value, str) else value
    return b"%b%b%b" % (pack_varint(number << 3 | BYTES), pack_varint(len(data)), data)


def pack_text(number: int, value: str) -> bytes:
    """Return a string field; empty ones are left out, as the format has it."""
    return pack_bytes(number, value) if value else b""


def pack_bool(number: int, *, value: bool) -> bytes:
    """Return a boolean field; false is left out, as the format has it."""
    return pack_varint(number << 3) + b"\1" if value else b""
