"""Our side of an HTTP/2 connection whose client is made of exact bytes, and what it hears."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from runtime.grpc import frames
from runtime.grpc.hpack import encode
from runtime.grpc.http2 import Http2

if TYPE_CHECKING:
    from runtime.grpc import outgoing

FIELDS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/s/M"),
    (b":authority", b"127.0.0.1"),
]
BLOCK = encode(FIELDS)
HELLO = frames.PREFACE + frames.settings()


class Heard:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.understood = 0
        self.begun: dict[int, Any] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.dropped: list[int] = []
        self.exchanges: dict[int, outgoing.Exchange] = {}

    def understand(self, fields: Any, oversized: bool) -> Any:
        self.understood += 1
        return "oversized" if oversized else tuple(fields)

    def begin(self, exchange: outgoing.Exchange, meaning: Any) -> None:
        self.exchanges[exchange.id] = exchange
        self.begun[exchange.id] = meaning
        self.bodies[exchange.id] = b""

    def data(self, exchange: outgoing.Exchange, piece: bytes) -> None:
        assert piece
        self.bodies[exchange.id] += piece

    def end(self, exchange: outgoing.Exchange) -> None:
        self.ended.append(exchange.id)

    def lost(self, exchange: outgoing.Exchange) -> None:
        self.dropped.append(exchange.id)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Side:
    """Our side of a connection whose client is made of exact bytes."""

    def __init__(self, early: bytes = HELLO) -> None:
        self.heard = Heard()
        self.clock = Clock()
        self.http2 = Http2(self.heard, self.clock)
        self.http2.take()
        self.http2.receive(early)
        self.http2.take()

    def get(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        self.http2.receive(data)
        return parse(self.http2.take())

    def goaway(self, data: bytes) -> tuple[int, str]:
        """Return code and words of the end of the connection."""
        found = [payload for kind, _, _, payload in self.get(data) if kind == frames.GOAWAY]
        assert len(found) == 1
        assert self.http2.dead
        return struct.unpack(">L", found[0][4:8])[0], found[0][8:].decode()


def parse(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Return type, flags, stream and payload of whole frames."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        assert len(data) >= 9 + size
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frames.frame_header(len(payload), kind, flags, stream) + payload


def request(stream: int, body: bytes = b"", *, block: bytes = BLOCK, end: bool = True) -> bytes:
    head = frame(frames.HEADERS, 4 | (1 if end and not body else 0), stream, block)
    return head + (frame(frames.DATA, 1 if end else 0, stream, body) if body else b"")
