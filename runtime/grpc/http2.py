"""The server's side of an HTTP/2 connection (RFC 9113), without I/O: frames in, calls out."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Protocol

from . import frames as wire
from .frames import Fault, check_connection, check_size, unpad
from .hpack import MAX_LIST_BYTES, Decoder, Field
from .outgoing import (
    CONNECTION_WINDOW_BYTES,
    MAX_OUT_FRAME_BYTES,
    MAX_STREAMS,
    Exchange,
    Outgoing,
)

# A header block before decompression; more could not become an acceptable header.
MAX_BLOCK_BYTES = MAX_LIST_BYTES
MAX_CONTINUATIONS = 16
_CONTROL_COST = 1
# Making us begin what is then thrown away (CVE-2023-44487) costs more.
_RESET_COST = 8
_SETTINGS_PER_COST = 16
_SMALL_BYTES = 16
_MAX_MEANINGS = 64
_MAX_REMEMBERED_BYTES = 512
_DRAIN_PING = b"edgepack"


class Sink(Protocol):
    """Who hears of the requests of a connection."""

    def understand(self, fields: List[Field], oversized: bool) -> Any:
        """Return the meaning of a request's header; the same bytes again are not asked about."""

    def begin(self, exchange: Exchange, meaning: Any) -> None:
        """Take a new request, whose body may follow."""

    def data(self, exchange: Exchange, piece: bytes) -> None:
        """Take a piece of a request's body, never empty."""

    def end(self, exchange: Exchange) -> None:
        """Take note that a request is complete."""

    def lost(self, exchange: Exchange) -> None:
        """Take note that nobody waits for this answer any more."""


class Http2(Outgoing):
    """One connection.

    Args:
        sink: Who hears of requests.
        clock: Seconds, never going back; asked only when the credit is spent.

    Attributes:
        greeted: The client's preface and settings have come.
        dead: Nothing more is read: send what `take` returns, then close.
        frames: How many were complete.
        is_settled: The client has seen that we stop: no request of its is on its way.
    """

    def __init__(self, sink: Sink, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._sink = sink
        self._decoder = Decoder()
        self._meanings: Dict[bytes, Any] = {}
        self._buffer = b""
        self._receivable = CONNECTION_WINDOW_BYTES
        self._block: List[bytes] = []
        self._block_stream = self._block_flags = self._block_bytes = 0
        self._last = 0
        self._promised = wire.MAX_WINDOW_BYTES  # later streams were told to go elsewhere
        self._prefaced = False
        self.greeted = False
        self.dead = False
        self.frames = 0
        self.is_settled = False

    @property
    def is_refusing(self) -> bool:
        """Whether later requests than those that came are not answered."""
        return self._promised != wire.MAX_WINDOW_BYTES

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    @property
    def in_block(self) -> bool:
        """Whether a header has begun and not ended."""
        return bool(self._block)

    def receive(self, data: bytes) -> None:
        """Take bytes; what they complete reaches the sink before this returns."""
        if self.dead:
            return
        try:
            self._receive(self._buffer + data if self._buffer else data)
        except Fault as fault:
            self.abandon(fault.code, fault.message)

    def abandon(self, code: int, message: str = "") -> None:
        """End the connection: say why, and hear nothing more."""
        if self.dead:
            return
        self.dead = True
        self._out.append(wire.goaway(self._last, code, message))
        self._buffer = b""
        self._block.clear()
        for exchange in list(self.streams.values()):
            self._forget(exchange)
            self._sink.lost(exchange)

    def announce_end(self) -> None:
        """Ask the client to send no new requests; those on their way are still answered."""
        self._out.append(wire.goaway(wire.MAX_WINDOW_BYTES, wire.NO_ERROR, "the server stops"))
        # what was sent before our word arrived comes before the answer to this
        self._out.append(wire.frame_header(8, wire.PING, 0, 0) + _DRAIN_PING)

    def refuse_new(self) -> None:
        """Answer what has come until now; later requests the client has to send elsewhere."""
        self._promised = self._last
        self._out.append(wire.goaway(self._last, wire.NO_ERROR, "the server stops"))

    def _receive(self, data: bytes) -> None:
        at, size = 0, len(data)
        if not self._prefaced:
            known = data[: len(wire.PREFACE)]
            if not wire.PREFACE.startswith(known):
                raise Fault(wire.PROTOCOL_ERROR, "this is not the preface of HTTP/2")
            if len(known) < len(wire.PREFACE):
                self._buffer = data
                return
            self._prefaced = True
            at = len(wire.PREFACE)
        unpack = wire.HEADER.unpack_from
        while size - at >= wire.HEADER_BYTES:
            high, low, kind, flags, identifier = unpack(data, at)
            length = high << 16 | low
            if length > wire.MAX_FRAME_BYTES:
                raise Fault(
                    wire.FRAME_SIZE_ERROR, "a frame has more than %d bytes" % wire.MAX_FRAME_BYTES
                )
            stop = at + wire.HEADER_BYTES + length
            if stop > size:
                break
            payload = data[at + wire.HEADER_BYTES : stop]
            at = stop
            self.frames += 1
            self._frame(kind, flags, identifier & wire.MAX_WINDOW_BYTES, payload)
            if self.dead:
                return
        self._buffer = data[at:]

    def _frame(self, kind: int, flags: int, identifier: int, payload: bytes) -> None:
        if self._block and (kind != wire.CONTINUATION or identifier != self._block_stream):
            raise Fault(wire.PROTOCOL_ERROR, "a header was interrupted by another frame")
        if not self.greeted:
            if kind != wire.SETTINGS or flags & wire.ACK:
                raise Fault(wire.PROTOCOL_ERROR, "the first frame has to be `SETTINGS`")
            self.greeted = True
        if kind == wire.DATA:
            self._on_data(flags, identifier, payload)
        elif kind == wire.HEADERS:
            self._on_headers(flags, identifier, payload)
        elif kind == wire.CONTINUATION:
            self._on_continuation(flags, payload)
        else:
            self._on_control(kind, flags, identifier, payload)

    def _on_headers(self, flags: int, identifier: int, payload: bytes) -> None:
        if flags & wire.PADDED:
            payload = unpad(payload)
        if flags & wire.PRIORITIZED:
            if len(payload) < 5:
                raise Fault(wire.FRAME_SIZE_ERROR, "a header is too short for its priority")
            payload = payload[5:]
        if not identifier & 1:
            raise Fault(wire.PROTOCOL_ERROR, "clients send on streams with odd numbers")
        if flags & wire.END_HEADERS:
            self._on_block(identifier, payload, flags)
            return
        self._block = [payload]
        self._block_bytes = len(payload)
        self._block_stream = identifier
        self._block_flags = flags

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        block = self._block
        if not block:
            raise Fault(wire.PROTOCOL_ERROR, "nothing precedes this `CONTINUATION`")
        block.append(payload)
        self._block_bytes += len(payload)
        if len(block) > MAX_CONTINUATIONS or self._block_bytes > MAX_BLOCK_BYTES:
            raise Fault(
                wire.ENHANCE_YOUR_CALM, "a header is larger than %d bytes" % MAX_BLOCK_BYTES
            )
        if flags & wire.END_HEADERS:
            whole = b"".join(block)
            self._block = []
            self._on_block(self._block_stream, whole, self._block_flags)

    def _on_block(self, identifier: int, block: bytes, flags: int) -> None:
        exchange = self.streams.get(identifier)
        if exchange is not None:
            self._on_trailers(exchange, block, flags)
            return
        if identifier <= self._last:
            self._decode(block)  # whatever becomes of it, it may change the table
            if not self._drop(identifier, 0, ends=bool(flags & wire.END_STREAM)):
                raise Fault(wire.STREAM_CLOSED, "stream %d has ended" % identifier)
            self._spend(_CONTROL_COST)
            return
        meaning = self._meanings.get(block)
        if meaning is None:
            meaning = self._learn(block)
        self._last = identifier
        if len(self.streams) >= MAX_STREAMS or identifier > self._promised:
            self._spend(_RESET_COST)
            self._out.append(wire.rst_stream(identifier, wire.REFUSED_STREAM))
            self._own_resets.append(identifier)
            return
        exchange = self.streams[identifier] = Exchange(identifier, self._first_window)
        if flags & wire.END_STREAM:
            exchange.ended = True
            self._sink.begin(exchange, meaning)
            if exchange.open:
                self._sink.end(exchange)
        else:
            self._sink.begin(exchange, meaning)

    def _learn(self, block: bytes) -> Any:
        """Return the meaning of a header; it is remembered until the table changes."""
        fields = self._decode(block)
        decoder = self._decoder
        meaning = self._sink.understand(fields, decoder.oversized)
        if decoder.changed:
            self._meanings.clear()
        elif len(block) <= _MAX_REMEMBERED_BYTES:
            if len(self._meanings) >= _MAX_MEANINGS:
                self._meanings.clear()
            self._meanings[block] = meaning
        return meaning

    def _decode(self, block: bytes) -> List[Field]:
        try:
            fields = self._decoder.decode(block)
        except ValueError as error:
            raise Fault(wire.COMPRESSION_ERROR, str(error)) from None
        if self._decoder.changed:
            self._meanings.clear()
        return fields

    def _on_trailers(self, exchange: Exchange, block: bytes, flags: int) -> None:
        fields = self._decode(block)
        if exchange.ended:
            raise Fault(wire.STREAM_CLOSED, "stream %d has ended" % exchange.id)
        if not flags & wire.END_STREAM or any(name[:1] == b":" for name, _ in fields):
            self._give_up(exchange, wire.PROTOCOL_ERROR)
            return
        exchange.ended = True
        self._sink.end(exchange)

    def _on_data(self, flags: int, identifier: int, payload: bytes) -> None:
        size = len(payload)
        self._receivable -= size
        if self._receivable < 0:
            raise Fault(wire.FLOW_CONTROL_ERROR, "more came than the connection's window")
        if self._receivable < CONNECTION_WINDOW_BYTES // 2:
            missing = CONNECTION_WINDOW_BYTES - self._receivable
            self._out.append(wire.window_update(0, missing))
            self._receivable = CONNECTION_WINDOW_BYTES
        if flags & wire.PADDED:
            payload = unpad(payload)
        ends = flags & wire.END_STREAM
        if len(payload) < _SMALL_BYTES and not ends:
            self._spend(_CONTROL_COST)
        else:
            self._earn(_CONTROL_COST)
        exchange = self.streams.get(identifier)
        if exchange is None:
            self._on_stray(identifier, size, ends=bool(ends))
            return
        if exchange.ended:
            self._spend(_RESET_COST)
            self._give_up(exchange, wire.STREAM_CLOSED)
            return
        exchange.receivable -= size
        if exchange.receivable < 0:
            self._give_up(exchange, wire.FLOW_CONTROL_ERROR)
            return
        if payload:
            self._sink.data(exchange, payload)
        if ends and exchange.open:
            exchange.ended = True
            self._sink.end(exchange)

    def _on_stray(self, identifier: int, size: int, *, ends: bool) -> None:
        """Let a frame pass that was on its way while we answered, or gave its stream up."""
        if identifier > self._last or not identifier & 1:
            raise Fault(wire.PROTOCOL_ERROR, "stream %d has not begun" % identifier)
        if not self._drop(identifier, size, ends=ends):
            raise Fault(wire.STREAM_CLOSED, "stream %d has ended" % identifier)

    def _give_up(self, exchange: Exchange, code: int) -> None:
        self.reset(exchange, code)
        self._sink.lost(exchange)

    def _on_control(self, kind: int, flags: int, identifier: int, payload: bytes) -> None:
        self._spend(_CONTROL_COST)
        size = len(payload)
        if kind == wire.WINDOW_UPDATE:
            check_size(size == 4, "a `WINDOW_UPDATE` has 4 bytes")
            increment = wire.NUMBER.unpack(payload)[0] & wire.MAX_WINDOW_BYTES
            self._on_window_update(identifier, increment)
        elif kind == wire.PING:
            check_size(size == 8, "a `PING` has 8 bytes")
            check_connection(identifier, "PING")
            if not flags & wire.ACK:
                self._out.append(wire.frame_header(8, wire.PING, wire.ACK, 0) + payload)
            elif payload == _DRAIN_PING:
                self.is_settled = True
        elif kind == wire.SETTINGS:
            check_connection(identifier, "SETTINGS")
            self._on_settings(flags, payload)
        elif kind == wire.RST_STREAM:
            check_size(size == 4, "a `RST_STREAM` has 4 bytes")
            self._check_begun(identifier)
            self._lingering.forget(identifier)
            exchange = self.streams.get(identifier)
            if exchange is not None:
                self._spend(_RESET_COST)
                self._forget(exchange)
                self._sink.lost(exchange)
        elif kind == wire.PRIORITY:
            check_size(size == 5, "a `PRIORITY` has 5 bytes")
            if not identifier:
                raise Fault(wire.PROTOCOL_ERROR, "`PRIORITY` belongs to a stream")
        elif kind == wire.PUSH_PROMISE:
            raise Fault(wire.PROTOCOL_ERROR, "clients promise nothing")
        elif kind == wire.GOAWAY:
            check_connection(identifier, "GOAWAY")
            check_size(size >= 8, "a `GOAWAY` has 8 bytes or more")
        # others are extensions, which have to be ignored

    def _on_window_update(self, identifier: int, increment: int) -> None:
        if identifier == 0:
            self._window += increment
            if not increment:
                raise Fault(wire.PROTOCOL_ERROR, "a window was opened by nothing")
            if self._window > wire.MAX_WINDOW_BYTES:
                raise Fault(wire.FLOW_CONTROL_ERROR, "the connection's window is too large")
            return
        self._check_begun(identifier)
        exchange = self.streams.get(identifier)
        if exchange is None:
            return
        if not increment:
            self._give_up(exchange, wire.PROTOCOL_ERROR)
        elif exchange.window + increment > wire.MAX_WINDOW_BYTES:
            self._give_up(exchange, wire.FLOW_CONTROL_ERROR)
        else:
            self._widen_ours(exchange, increment)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & wire.ACK:
            check_size(not payload, "an acknowledgement of settings has no bytes")
            return
        check_size(len(payload) % 6 == 0, "a setting has 6 bytes")
        self._spend(len(payload) // 6 // _SETTINGS_PER_COST)
        first_window = self._first_window
        for key, value in wire.SETTING.iter_unpack(payload):
            if key == wire.INITIAL_WINDOW_SIZE:
                if value > wire.MAX_WINDOW_BYTES:
                    raise Fault(wire.FLOW_CONTROL_ERROR, "the first window is too large")
                first_window = value
            elif key == wire.MAX_FRAME_SIZE:
                if not wire.MAX_FRAME_BYTES <= value <= wire.LARGEST_FRAME_BYTES:
                    raise Fault(wire.PROTOCOL_ERROR, "the largest frame cannot have that size")
                self._max_frame = min(value, MAX_OUT_FRAME_BYTES)
            elif key == wire.ENABLE_PUSH and value > 1:
                raise Fault(wire.PROTOCOL_ERROR, "`ENABLE_PUSH` is 0 or 1")
        change = first_window - self._first_window
        self._first_window = first_window
        if change:
            for exchange in self.streams.values():
                if exchange.window + change > wire.MAX_WINDOW_BYTES:
                    raise Fault(wire.FLOW_CONTROL_ERROR, "a stream's window is too large")
                self._widen_ours(exchange, change)
        self._out.append(wire.SETTINGS_ACK)

    def _check_begun(self, identifier: int) -> None:
        if identifier == 0 or identifier > self._last or not identifier & 1:
            raise Fault(wire.PROTOCOL_ERROR, "stream %d has not begun" % identifier)
