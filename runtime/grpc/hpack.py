"""Header compression of HTTP/2 (RFC 7541): a bounded decoder, and an encoder without a state."""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, Iterable, List, Tuple

from .huffman import decode as decode_huffman

Field = Tuple[bytes, bytes]

TABLE_BYTES = 4096
# Of all fields after decompression, counted as RFC 9113, section 6.5.2 says.
MAX_LIST_BYTES = 16384
_FIELD_BYTES = 32
_MAX_INTEGER = 1 << 24
_MAX_SIZE_UPDATES = 2

_STATIC: Tuple[Field, ...] = (
    (b"", b""),
    (b":authority", b""),
    (b":method", b"GET"), (b":method", b"POST"),
    (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"),
    (b":status", b"200"), (b":status", b"204"), (b":status", b"206"), (b":status", b"304"),
    (b":status", b"400"), (b":status", b"404"), (b":status", b"500"),
    (b"accept-charset", b""), (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""),
    (b"accept-ranges", b""), (b"accept", b""), (b"access-control-allow-origin", b""),
    (b"age", b""), (b"allow", b""), (b"authorization", b""), (b"cache-control", b""),
    (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""),
    (b"content-length", b""), (b"content-location", b""), (b"content-range", b""),
    (b"content-type", b""), (b"cookie", b""), (b"date", b""), (b"etag", b""), (b"expect", b""),
    (b"expires", b""), (b"from", b""), (b"host", b""), (b"if-match", b""),
    (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""),
    (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""), (b"location", b""),
    (b"max-forwards", b""), (b"proxy-authenticate", b""), (b"proxy-authorization", b""),
    (b"range", b""), (b"referer", b""), (b"refresh", b""), (b"retry-after", b""),
    (b"server", b""), (b"set-cookie", b""), (b"strict-transport-security", b""),
    (b"transfer-encoding", b""), (b"user-agent", b""), (b"vary", b""), (b"via", b""),
    (b"www-authenticate", b""),
)  # fmt: skip
_STATIC_FIELDS: Dict[Field, int] = {}
_STATIC_NAMES: Dict[bytes, int] = {}
for _index, _field in enumerate(_STATIC[1:], 1):
    _STATIC_FIELDS[_field] = _index
    _STATIC_NAMES.setdefault(_field[0], _index)


class Decoder:
    """One connection's incoming side.

    Attributes:
        changed: The last block changed the table: the same bytes may mean something else now.
        oversized: The last block held more than `MAX_LIST_BYTES`; the fields past them are left
            out of what was returned, though not out of the table.
    """

    def __init__(self) -> None:
        self._table: Deque[Field] = deque()
        self._used = 0
        self._allowed = TABLE_BYTES
        self.changed = False
        self.oversized = False

    def decode(self, block: bytes) -> List[Field]:
        """Return the fields of a whole block.

        Raises:
            ValueError: it is malformed; nothing that follows on the connection can be understood.
        """
        self.changed = self.oversized = False
        fields: List[Field] = []
        at = total = updates = 0
        size = len(block)
        while at < size:
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 0x7F)
                field = self._field(index)
            elif first & 0xE0 == 0x20:
                limit, at = _integer(block, at, 0x1F)
                updates += 1
                if fields or updates > _MAX_SIZE_UPDATES or limit > TABLE_BYTES:
                    raise ValueError("a change of the header table's size is not allowed here")
                self._allowed = limit
                self._evict(0)
                self.changed = True
                continue
            else:
                keep = first & 0x40
                index, at = _integer(block, at, 0x3F if keep else 0x0F)
                if index:
                    name = self._field(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = (name, value)
                if keep:
                    self._insert(field)
            total += len(field[0]) + len(field[1]) + _FIELD_BYTES
            if total > MAX_LIST_BYTES:
                self.oversized = True
            else:
                fields.append(field)
        return fields

    def _field(self, index: int) -> Field:
        if 0 < index < len(_STATIC):
            return _STATIC[index]
        index -= len(_STATIC)
        if 0 <= index < len(self._table):
            return self._table[index]
        raise ValueError("a header field has an index that does not exist")

    def _insert(self, field: Field) -> None:
        self.changed = True
        size = len(field[0]) + len(field[1]) + _FIELD_BYTES
        self._evict(size)
        if size <= self._allowed:
            self._table.appendleft(field)
            self._used += size

    def _evict(self, coming: int) -> None:
        while self._table and self._used + coming > self._allowed:
            name, value = self._table.pop()
            self._used -= len(name) + len(value) + _FIELD_BYTES


def encode(fields: Iterable[Field]) -> bytes:
    """Return a block that needs no table but the fixed one, so that it never changes."""
    out = bytearray()
    for name, value in fields:
        index = _STATIC_FIELDS.get((name, value))
        if index is not None:
            out += _pack(index, 0x7F, 0x80)
            continue
        index = _STATIC_NAMES.get(name, 0)
        out += _pack(index, 0x0F, 0)
        if not index:
            out += _pack(len(name), 0x7F, 0) + name
        out += _pack(len(value), 0x7F, 0) + value
    return bytes(out)


def _integer(block: bytes, at: int, prefix: int) -> Tuple[int, int]:
    value = block[at] & prefix
    at += 1
    if value < prefix:
        return value, at
    shift = 0
    while at < len(block):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if value > _MAX_INTEGER or shift > 28:
            break
        if byte < 0x80:
            return value, at
    raise ValueError("a number in a header block is cut off or too large")


def _string(block: bytes, at: int) -> Tuple[bytes, int]:
    if at >= len(block):
        raise ValueError("a header block is cut off")
    coded = block[at] & 0x80
    length, at = _integer(block, at, 0x7F)
    stop = at + length
    if stop > len(block):
        raise ValueError("a header block is cut off")
    text = block[at:stop]
    return (decode_huffman(text) if coded else text), stop


def _pack(value: int, prefix: int, marks: int) -> bytes:
    if value < prefix:
        return bytes((marks | value,))
    out = bytearray((marks | prefix,))
    value -= prefix
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
