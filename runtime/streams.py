"""Sends the answers to one request as they come: server-sent events over HTTP/1.

Format: the HTML standard's section on server-sent events. Each event is one answer of the Open
Inference Protocol with its index; `end` or `error` is the last one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, NamedTuple, Optional, Protocol

from .core import InferRequest
from .errors import BadRequest, Busy
from .failing import blame, error_answer
from .http1 import EVENTS_TYPE, Answer, stream_head
from .inference import NON_FINITE, InferenceProtocol
from .jobs import Body, Task
from .jsontext import dumps
from .logs import log
from .pieces import Cutter
from .tensor import Tensor

if TYPE_CHECKING:
    from .connection import Connection, Shared
    from .framing import Admission
    from .loop import Stream


class Outlet(Protocol):
    """Where the events of one stream go; `lose` it when the client has gone."""

    def begin(self) -> None:
        """Send the answer's head; what is counted and logged of the answer is known with it."""

    def send(self, data: bytes) -> None:
        """Send one or more events."""

    def close(self) -> None:
        """End the answer."""

    def finish(self, answer: Answer) -> None:
        """Send one whole answer instead."""

    def is_free(self) -> bool:
        """Whether the client has taken what was sent; if not, `resume` when it has."""

    def wake_after(self, seconds: float) -> None:
        """Call `beat` once, after some time."""


# A proxy or a client that hears nothing for a minute often hangs up.
BEAT_S = 15.0
# When a piece that found the queue full tries again.
RETRY_S = 0.5
# A server that stops lets a stream go on for so long, which is less than the server itself waits.
DRAIN_S = 20.0
# The name that metrics and the expectation of a piece's time go by.
ROUTE = "infer_stream"
_BEAT = b":\n\n"
_MAX_BODY_BYTES = 16 << 20


class _Gone(Exception):  # noqa: N818 - no fault, but the end of a stream that nobody reads
    """The client of a stream has gone."""


class EventStreams:
    """Streams of one app's model.

    Args:
        app: Has `.manifest`, `.inference` and `.limits`.

    Attributes:
        inference: The model.
        cutter: Where its requests are cut.
        protocol: Decodes whole requests and encodes the answer to each piece.
        max_tensor_bytes: The most that the binary tensors of a request may have.
    """

    def __init__(self, app: Any) -> None:
        manifest = app.manifest
        read_sequence = None
        if manifest.get("sequences"):
            from .sequences import read_control

            read_sequence = read_control
        self.inference = app.inference
        self.cutter = Cutter(manifest["model"], manifest.get("sequences"))
        self.protocol = InferenceProtocol(
            self.cutter.signature,
            name=self.inference.name,
            version=self.inference.version,
            read_sequence=read_sequence,
        )
        most = self.cutter.signature.max_bytes()
        most = _MAX_BODY_BYTES if most is None else min(most, _MAX_BODY_BYTES)
        self.max_tensor_bytes = max(most, app.limits.binary_bytes)

    def read(self, body: Any, header_bytes: Optional[int]) -> InferRequest:
        """Return the whole request.

        Raises:
            BadRequest: it is none, or asks for what a stream cannot carry.
        """
        request = self.protocol.decode(body, header_bytes)
        if request.binary_default or any((request.binary or {}).values()):
            raise BadRequest(
                "an event stream carries no binary tensors", hint="leave `binary_data` out"
            )
        return request


class StreamRoute(NamedTuple):
    """What an admission says of a request that is to be streamed.

    Attributes:
        streams: What is streamed.
        header_bytes: As for `InferenceProtocol.decode`.
    """

    streams: EventStreams
    header_bytes: Optional[int]

    def over(self, body: Body, outlet: Outlet, *, shared: Shared, caller: str) -> EventStream:
        """Return the stream that answers a request."""
        return EventStream(self, body, outlet, shared=shared, caller=caller)

    def over_http1(
        self,
        admission: Admission,
        body: Body,
        connection: Connection,
        *,
        shared: Shared,
        stream: Stream,
        caller: str,
    ) -> EventStream:
        """Return the stream that answers a request on a connection of HTTP/1."""
        outlet = _Http1Outlet(admission, connection, shared, stream)
        return self.over(body, outlet, shared=shared, caller=caller)


class EventStream:
    """One request and the answers to its pieces; used by the loop, but for `_read` and `_encode`.

    `beat` begins it.

    Args:
        route: What is streamed.
        body: The request's.
        outlet: Where the events go.
        shared: What connections share.
        caller: Who asks.
    """

    def __init__(
        self, route: StreamRoute, body: Body, outlet: Outlet, *, shared: Shared, caller: str
    ) -> None:
        self._streams, self._header_bytes = route
        self._body = body
        self._outlet = outlet
        self._shared = shared
        self._caller = caller
        run = self._streams.inference.run
        self._task = Task(self._read, run, self._encode, lambda error: error)
        self._request = InferRequest({})
        self._pieces: Iterator[Dict[str, Tensor]] = iter(())
        self._piece: Optional[Dict[str, Tensor]] = None  # read, but not yet answered
        self._lease: Any = None
        self._count = 0
        self._sent = 0
        self._begun = False  # the head is sent
        self._working = False  # a piece is on its way through the scheduler, or about to be
        self._gone = False
        self._drained_at = float("inf")

    def resume(self) -> None:
        """Go on: the client has taken everything."""
        if not self._working:
            self._next_later()

    def beat(self) -> None:
        """Begin; later show that the stream is alive, or try again where the queue was full."""
        self._outlet.wake_after(BEAT_S)
        if self._working:
            self._write(_BEAT)
        else:
            self._next()

    def lose(self) -> None:
        """Compute nothing more: the client has gone."""
        self._gone = True
        if not self._working:
            self._leave(early=True)

    def _read(self, body: Body) -> InferRequest:
        """Return the next piece; perhaps in a thread."""
        if self._gone:
            raise _Gone
        if not self._count:
            request = self._streams.read(body, self._header_bytes)
            count, self._pieces = self._streams.cutter.cut(request)
            sequences = self._streams.inference.sequences
            if sequences is not None:
                self._lease = sequences.enter(request.sequence, self._caller)
            self._count = count
            self._request = request._replace(sequence=self._lease)
        if self._piece is None:
            self._piece = next(self._pieces)
        return self._request._replace(feeds=self._piece)

    def _encode(self, request: InferRequest, results: Mapping[str, Tensor]) -> bytes:
        """Return the event of an answer; perhaps in a thread."""
        answer = self._streams.protocol.encode(request, results)
        mark = b',"non_finite":true' if NON_FINITE in answer.fields else b""
        return b'id: %d\ndata: %s,"parameters":{"index":%d%s}}\n\n' % (
            self._sent,
            answer.body[:-1],
            self._sent,
            mark,
        )

    def _done(self, result: Any) -> None:
        """Take the answer to a piece, or what went wrong with it."""
        self._piece = None if not isinstance(result, Busy) else self._piece
        if self._gone:
            self._leave(early=True)
        elif isinstance(result, Busy) and self._begun:
            self._working = False
            self._outlet.wake_after(RETRY_S)
        elif isinstance(result, Exception):
            self._fail(blame(result))
        else:
            self._sent += 1
            if self._sent < self._count:
                self._write(result)  # which may end in `resume` before it returns
                self._next_later()
            else:
                end = b'event: end\ndata: {"events":%d}\n\n' % self._count
                self._end(result + end, early=False)

    def _next_later(self) -> None:
        # other connections get their turn between the pieces
        self._working = True
        self._shared.loop.soon(self._next)

    def _next(self) -> None:
        """Ask for the next answer, unless the client has yet to take the last one."""
        self._working = False
        if self._gone:
            self._leave(early=True)
        elif not self._outlet.is_free():
            pass  # `lose` or `resume` comes
        elif self._shared.draining and self._is_too_long():
            self._fail(BadRequest("the server is stopping", 503))
        else:
            self._working = True
            body, self._body = self._body, b""
            self._shared.scheduler.submit(
                self._task, body, route=ROUTE, done=self._done, caller=self._caller
            )

    def _is_too_long(self) -> bool:
        """Whether a server that stops has waited long enough for this stream."""
        now = self._shared.loop.time()
        self._drained_at = min(self._drained_at, now)
        return now - self._drained_at >= DRAIN_S

    def _fail(self, error: BadRequest) -> None:
        if not self._begun:
            self._leave(early=True)
            self._outlet.finish(error_answer(error))
            return
        # its line in the access log was written with its head, and says 200
        log.event("stream_failed", "warning", status=error.status, events=self._sent)
        message = error.message if error.hint is None else "%s (%s)" % (error.message, error.hint)
        told = {"error": message, "status": error.status, "index": self._sent}
        self._end(b"event: error\ndata: %s\n\n" % dumps(told).encode("ascii"), early=True)

    def _write(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._outlet.begin()
        self._outlet.send(data)

    def _end(self, data: bytes, *, early: bool) -> None:
        self._leave(early=early)
        self._write(data)
        self._outlet.close()

    def _leave(self, *, early: bool) -> None:
        """Give the sequence back."""
        if self._lease is not None:
            self._lease.leave(early=early)
            self._lease = None


class _Http1Outlet:
    """Events in the chunks of one answer over HTTP/1.1, or until the end over HTTP/1.0."""

    def __init__(
        self, admission: Admission, connection: Connection, shared: Shared, stream: Stream
    ) -> None:
        self._admission = admission
        self._chunked = admission.head.minor == 1
        self._connection = connection
        self._shared = shared
        self._stream = stream
        self._started = time.perf_counter()

    def begin(self) -> None:
        answer = Answer(200, b"", EVENTS_TYPE)
        answer = self._connection.settle(self._admission, self._started, answer)
        minor = self._admission.head.minor
        self._stream.write(stream_head(answer.fields, keep_alive=self._stays_open(), minor=minor))

    def send(self, data: bytes) -> None:
        self._stream.write(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def close(self) -> None:
        if self._chunked:
            self._stream.write(b"0\r\n\r\n")
        self._connection.end_events(keep_alive=self._stays_open())

    def finish(self, answer: Answer) -> None:
        self._connection.finish(self._admission, self._started, answer)

    def is_free(self) -> bool:
        return not self._stream.is_closing and not self._stream.unsent

    def wake_after(self, seconds: float) -> None:
        self._connection.deadline = self._shared.loop.time() + seconds

    def _stays_open(self) -> bool:
        return self._admission.head.keep_alive and self._chunked and not self._shared.draining
