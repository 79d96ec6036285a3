"""What a server sends on an HTTP/2 connection: answers within the peer's windows; no I/O.

Whatever a peer can send much of for little is paid from a credit that useful frames earn back.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Union

from . import frames as wire
from .frames import Fault, frame_header
from .hpack import MAX_LIST_BYTES
from .lingering import Lingering

MAX_STREAMS = 64
STREAM_WINDOW_BYTES = 1 << 20
CONNECTION_WINDOW_BYTES = 1 << 20
# What `take` returns at once; the rest of large answers stays where it is, uncopied.
MAX_OUT_BYTES = 1 << 18
MAX_OUT_FRAME_BYTES = 1 << 16

# A peer may send this many control frames in a burst, and so many a second for ever.
MAX_CREDIT = 1000
CREDIT_PER_S = 100
_FRAME_EARNS = 4
# Streams that we gave up while the client may still be sending.
_MAX_OWN_RESETS = 128

Piece = Union[bytes, bytearray, memoryview]


class Exchange:
    """One stream: a request and its answer.

    Attributes:
        call: Whatever the sink keeps here.
        ended: The client has sent all of its request.
        open: The answer is not finished, and the client has not given up.
        queued: Bytes of the answer that wait for the peer's window.
        receivable: Bytes that the client may send.
        window: Bytes that we may send.
    """

    __slots__ = ("call", "ended", "id", "last", "open", "queue", "queued", "receivable", "window")

    def __init__(self, identifier: int, window: int) -> None:
        self.id = identifier
        self.window = window
        self.receivable = STREAM_WINDOW_BYTES
        self.ended = False
        self.open = True
        self.queue: Optional[Deque[memoryview]] = None
        self.queued = 0
        self.last: Optional[bytes] = None  # the trailers, once all data is queued
        self.call: Any = None


class Outgoing:
    """The sending half of a connection.

    Args:
        clock: Seconds, never going back; asked when the credit is spent, and for requests that
            are answered before they are complete.

    Attributes:
        streams: Open requests by their number.
        backlog: Bytes of answers that wait for the peer's windows.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._credit = MAX_CREDIT
        self._credited_at = clock()
        self._out: List[Piece] = [
            wire.settings(
                (wire.MAX_CONCURRENT_STREAMS, MAX_STREAMS),
                (wire.INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES),
                (wire.MAX_HEADER_LIST_SIZE, MAX_LIST_BYTES),
            ),
            wire.window_update(0, CONNECTION_WINDOW_BYTES - wire.DEFAULT_WINDOW_BYTES),
        ]
        self._window = wire.DEFAULT_WINDOW_BYTES
        self._first_window = wire.DEFAULT_WINDOW_BYTES
        self._max_frame = wire.MAX_FRAME_BYTES
        self._ready: Dict[int, Exchange] = {}  # have data and, for all we know, a window
        self._own_resets: Deque[int] = deque(maxlen=_MAX_OWN_RESETS)
        self._lingering = Lingering()
        self.streams: Dict[int, Exchange] = {}
        self.backlog = 0

    def take(self) -> bytes:
        """Return what to send now, empty for nothing; ask again once it is sent."""
        if self._ready:
            self._pump()
        out = self._out
        if not out:
            return b""
        data = bytes(out[0]) if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def respond(
        self, exchange: Exchange, head: bytes, body: bytes, trailers: Optional[bytes]
    ) -> None:
        """Send a whole answer.

        Args:
            exchange: Whose.
            head: The block of its header fields.
            body: May be empty.
            trailers: The block of the fields that follow; None for none.
        """
        identifier, size = exchange.id, len(body)
        if trailers is None and not size:
            self._out.append(frame_header(len(head), wire.HEADERS, 0x5, identifier) + head)
            self._finish(exchange)
        elif (
            trailers is not None
            and size <= self._window
            and size <= exchange.window
            and size <= self._max_frame
        ):
            # the usual case: everything fits, in one piece
            self._window -= size
            self._out.append(
                b"".join((
                    frame_header(len(head), wire.HEADERS, 0x4, identifier), head,
                    frame_header(size, wire.DATA, 0, identifier), body,
                    frame_header(len(trailers), wire.HEADERS, 0x5, identifier), trailers,
                ))
            )  # fmt: skip
            self._finish(exchange)
        else:
            self.send_head(exchange, head)
            self.send(exchange, body)
            self.finish(exchange, trailers or b"")

    def send_head(self, exchange: Exchange, head: bytes) -> None:
        """Begin an answer in pieces."""
        self._out.append(frame_header(len(head), wire.HEADERS, wire.END_HEADERS, exchange.id))
        self._out.append(head)

    def send(self, exchange: Exchange, data: Piece) -> None:
        """Send a piece of an answer's body, as the peer's windows allow; it is not copied."""
        if not data:
            return
        if exchange.queue is None:
            exchange.queue = deque()
        exchange.queue.append(memoryview(data))
        exchange.queued += len(data)
        self.backlog += len(data)
        self._ready[exchange.id] = exchange

    def finish(self, exchange: Exchange, trailers: bytes) -> None:
        """End an answer in pieces, after everything that waits; empty trailers are none."""
        exchange.last = trailers
        if not exchange.queued:
            self._send_last(exchange)

    def reset(self, exchange: Exchange, code: int) -> None:
        """Give up a request; the sink is not told."""
        self._out.append(wire.rst_stream(exchange.id, code))
        self._own_resets.append(exchange.id)
        self._forget(exchange)

    def reset_overdue(self) -> None:
        """Tell clients to stop that have sent on for long after they were answered."""
        if self._lingering:
            for identifier in self._lingering.overdue(self._clock()):
                self._stop(identifier)

    def widen(self, exchange: Exchange, at_least: int = STREAM_WINDOW_BYTES // 2) -> None:
        """Let the client send more of a request, once it may send less than `at_least`."""
        if exchange.receivable < at_least and exchange.open and not exchange.ended:
            missing = STREAM_WINDOW_BYTES - exchange.receivable
            exchange.receivable = STREAM_WINDOW_BYTES
            self._out.append(wire.window_update(exchange.id, missing))

    def _send_last(self, exchange: Exchange) -> None:
        trailers = exchange.last
        if trailers:
            self._out.append(frame_header(len(trailers), wire.HEADERS, 0x5, exchange.id))
            self._out.append(trailers)
        else:
            self._out.append(frame_header(0, wire.DATA, wire.END_STREAM, exchange.id))
        self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        """Forget an answered request; what a client still sends of it is dropped for a while."""
        self._earn(_FRAME_EARNS)
        if not exchange.ended:
            oldest = self._lingering.add(exchange.id, exchange.receivable, self._clock())
            if oldest is not None:
                self._stop(oldest)
        self._forget(exchange)

    def _stop(self, identifier: int) -> None:
        """Tell a client that has its answer to send no more of the request."""
        self._out.append(wire.rst_stream(identifier, wire.NO_ERROR))
        self._own_resets.append(identifier)

    def _drop(self, identifier: int, size: int, *, ends: bool) -> bool:
        """Drop what came of a request that was answered or given up; False if it was neither."""
        increment = self._lingering.drop(identifier, size, ends=ends)
        if increment is None:
            return identifier in self._own_resets
        if increment < 0:
            self._stop(identifier)
        elif increment:
            self._out.append(wire.window_update(identifier, increment))
        return True

    def _forget(self, exchange: Exchange) -> None:
        exchange.open = False
        if self.streams.pop(exchange.id, None) is not None:
            self._ready.pop(exchange.id, None)
            self.backlog -= exchange.queued
            exchange.queue = None
            exchange.queued = 0

    def _pump(self) -> None:
        """Write queued data, a frame of each stream in turns, as far as the windows reach."""
        room = MAX_OUT_BYTES
        while self._ready and self._window > 0 and room > 0:
            identifier = next(iter(self._ready))
            exchange = self._ready.pop(identifier)
            queue = exchange.queue
            if not queue or exchange.window <= 0:
                continue
            piece = queue[0]
            size = min(len(piece), self._window, exchange.window, self._max_frame)
            self._out.append(frame_header(size, wire.DATA, 0, identifier))
            self._out.append(piece[:size])
            if size == len(piece):
                queue.popleft()
            else:
                queue[0] = piece[size:]
            self._window -= size
            exchange.window -= size
            exchange.queued -= size
            self.backlog -= size
            room -= size
            self._earn(_FRAME_EARNS)
            if exchange.queued:
                self._ready[identifier] = exchange
            elif exchange.last is not None:
                self._send_last(exchange)

    def _widen_ours(self, exchange: Exchange, increment: int) -> None:
        exchange.window += increment
        if exchange.queued and exchange.window > 0:
            self._ready[exchange.id] = exchange

    def _earn(self, amount: int) -> None:
        if self._credit < MAX_CREDIT:
            self._credit += amount

    def _spend(self, cost: int) -> None:
        self._credit -= cost
        if self._credit < 0:
            now = self._clock()
            earned = int((now - self._credited_at) * CREDIT_PER_S)
            self._credit = min(self._credit + earned, MAX_CREDIT)
            self._credited_at = now
            if self._credit < 0:
                raise Fault(wire.ENHANCE_YOUR_CALM, "too many frames that ask for no answer")
