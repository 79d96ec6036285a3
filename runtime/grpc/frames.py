"""Frames of HTTP/2 (RFC 9113, sections 4, 6 and 7): numbers, limits, and how they are written."""

from __future__ import annotations

from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

DEFAULT_WINDOW_BYTES = 65535
MAX_WINDOW_BYTES = (1 << 31) - 1
# The smallest that the protocol allows, and what a read of the loop holds four of.
MAX_FRAME_BYTES = 16384
LARGEST_FRAME_BYTES = (1 << 24) - 1

HEADER = Struct(">BHBBL")  # length in three bytes, type, flags, stream
SETTING = Struct(">HL")
NUMBER = Struct(">L")
_PAIR = Struct(">LL")
_MAX_DEBUG_BYTES = 256

_pack_header = HEADER.pack


class Fault(Exception):  # noqa: N818 - an error of the peer's, named as in this package
    """What ends a connection, with the code and the words for its `GOAWAY`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def frame_header(length: int, kind: int, flags: int, stream: int) -> bytes:
    """Return the nine bytes in front of a payload."""
    return _pack_header(length >> 16, length & 0xFFFF, kind, flags, stream)


def settings(*pairs: "tuple[int, int]") -> bytes:
    """Return a `SETTINGS` frame."""
    payload = b"".join(SETTING.pack(*pair) for pair in pairs)
    return frame_header(len(payload), SETTINGS, 0, 0) + payload


def window_update(stream: int, increment: int) -> bytes:
    """Return a `WINDOW_UPDATE` frame; stream 0 is the connection."""
    return frame_header(4, WINDOW_UPDATE, 0, stream) + NUMBER.pack(increment)


def rst_stream(stream: int, code: int) -> bytes:
    """Return a `RST_STREAM` frame."""
    return frame_header(4, RST_STREAM, 0, stream) + NUMBER.pack(code)


def goaway(last: int, code: int, message: str = "") -> bytes:
    """Return a `GOAWAY` frame; the message is for whoever debugs the client."""
    debug = message.encode("ascii", "replace")[:_MAX_DEBUG_BYTES]
    return frame_header(8 + len(debug), GOAWAY, 0, 0) + _PAIR.pack(last, code) + debug


def unpad(payload: bytes) -> bytes:
    """Return a payload without its padding.

    Raises:
        Fault: there is more padding than payload.
    """
    if not payload or payload[0] >= len(payload):
        raise Fault(PROTOCOL_ERROR, "the padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def check_size(is_right: bool, message: str) -> None:
    """Raise a `Fault` where a frame has not the size of its type."""
    if not is_right:
        raise Fault(FRAME_SIZE_ERROR, message)


def check_connection(stream: int, kind: str) -> None:
    """Raise a `Fault` where a frame that concerns the whole connection names a stream."""
    if stream:
        raise Fault(PROTOCOL_ERROR, "`%s` belongs to no stream" % kind)


SETTINGS_ACK = frame_header(0, SETTINGS, ACK, 0)
