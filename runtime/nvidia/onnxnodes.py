"""Names a node of an ONNX file by its number, reading only what the protocol buffer needs."""

from __future__ import annotations

import mmap
from typing import Iterator, Optional, Tuple, Union

# Field numbers in onnx.proto.
_GRAPH, _NODE, _OUTPUT, _NAME, _OPERATOR = 7, 1, 2, 3, 4
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5

Buffer = Union[bytes, mmap.mmap]


def name_node(path: str, number: int) -> Optional[Tuple[str, str]]:
    """Return the name and operator of a node of the outermost graph.

    A node without a name goes by its first output. None where the file has no such node, or is
    no protocol buffer.
    """
    try:
        with open(path, "rb") as stream:  # noqa: SIM117 - CPython 3.8 has no brackets round these
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _find(data, number)
    except (OSError, ValueError, IndexError):
        return None


def _find(data: Buffer, number: int) -> Optional[Tuple[str, str]]:
    count = 0
    for field, start, end in _fields(data, 0, len(data)):
        if field != _GRAPH:
            continue
        for inner, first, last in _fields(data, start, end):
            if inner != _NODE:
                continue
            if count == number:
                return _describe(data, first, last)
            count += 1
    return None


def _describe(data: Buffer, start: int, end: int) -> Tuple[str, str]:
    words = {_NAME: "", _OPERATOR: "", _OUTPUT: ""}
    for field, first, last in _fields(data, start, end):
        if field in words and not words[field]:
            words[field] = data[first:last].decode("utf-8", "replace")
    return words[_NAME] or words[_OUTPUT], words[_OPERATOR]


def _fields(data: Buffer, at: int, end: int) -> Iterator[Tuple[int, int, int]]:
    """Yield the number and the extent of each field that has a length.

    Raises:
        ValueError: it is no protocol buffer.
    """
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _EIGHT:
            at += 8
        elif kind == _FOUR:
            at += 4
        elif kind == _LENGTH:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("a field is longer than what holds it")
            yield key >> 3, at, at + size
            at += size
        else:
            raise ValueError("a field of an unknown kind")


def _varint(data: Buffer, at: int) -> Tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number that does not end")
