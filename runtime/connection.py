"""One client's connection: requests in order, time limits, answers in the loop or in a thread."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

from .errors import BadRequest
from .failing import error_answer, fault_answer
from .framing import IDLE, IN_BODY, IN_HEAD, Admission, Admissions, Body, BodyBudget, RequestReader
from .http1 import CONTINUE, Answer, Head, wire
from .logs import log
from .loop import Loop, Stream

if TYPE_CHECKING:
    import socket

    from .app import App
    from .closed.guard import Caller, Guard
    from .jobs import Job
    from .scheduling import Scheduler

HEAD_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 75.0
BODY_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 20.0
LINGER_S = 2.0
_SILENT = -1  # the stage of a connection on which nothing has come yet
# The slowest body or answer that is waited for, on top of the fixed time.
SLOWEST_BYTES_PER_S = 65536
# What a client may send ahead while its request is being answered.
MAX_AHEAD_BYTES = 65536
# Connections past the limit that are told so at the same time; the rest are cut.
MAX_TURNED_AWAY = 64
# What a connection that speaks HTTP/2 without TLS begins with (RFC 9113).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_NEVER = float("inf")


class Shared:
    """What all connections of one server share; used by its loop only.

    Attributes:
        open_stream: Makes the stream of an accepted socket for its protocol.
        http2: Takes over a stream, what came on it, and who TLS says it is; None where HTTP/2
            is not served.
        check: Raises where a head is for another host, or from a page that may not ask.
        guard: Knows the callers by their keys; None where everyone may ask.
        grpc: What HTTP/2's connections share, made by the first of them.
        draining: No connection outlives its next answer.
    """

    def __init__(
        self,
        *,
        app: App,
        loop: Loop,
        admissions: Admissions,
        budget: BodyBudget,
        scheduler: Scheduler,
        max_connections: int,
        http2: Optional[Callable[[Shared, Stream, bytes, str], Any]] = None,
        guard: Optional[Guard] = None,
    ) -> None:
        self.app = app
        self.loop = loop
        self.admissions = admissions
        self.budget = budget
        self.metrics = app.metrics
        self.scheduler: Scheduler = scheduler
        self.max_connections = max_connections
        self.http2 = http2
        self.guard = guard
        self.check: Callable[[Head], None] = lambda head: None
        self.grpc: Any = None
        self.open_stream: Callable[[Any, Any], Stream] = partial(Stream, loop)
        # HTTP/1.1 and HTTP/2 alike: each has `deadline`, `expire`, `drain` and `abort`
        self.connections: Dict[Any, None] = {}
        self.draining: bool = False


class Connection:
    """Answers the requests of one connection, one after the other.

    Args:
        shared: What it shares with the others.
        connected: The accepted socket.

    Attributes:
        deadline: When `expire` has to be called, in the loop's time.
    """

    def __init__(self, shared: Shared, connected: socket.socket) -> None:
        self._shared = shared
        gate = None if shared.guard is None else self._identify
        self._reader = RequestReader(shared.admissions, shared.budget, gate)
        self._caller: Optional[Caller] = None
        self._name = self._certified = ""  # who asks, where it is known; by the certificate
        self._peer: Optional[str] = None
        self._busy = False  # a thread works on the answer
        self._scheduled = False  # the next request is looked at in the loop's next round
        self._blocked = False  # the client does not take its answer
        self._paused = False  # we do not take the client's requests
        self._ended = False  # the client sends no more
        self._closing = False  # no further request is answered
        self._job: Optional[Job] = None
        self._events: Any = None  # the event stream that is being sent
        self._fresh = shared.http2 is not None  # may still turn out to be HTTP/2
        self._early = b""
        self._stage = _SILENT
        self.deadline: float = shared.loop.time() + HEAD_TIMEOUT_S
        self._stream = shared.open_stream(connected, self)
        shared.connections[self] = None
        shared.metrics.connections += 1
        surplus = len(shared.connections) - shared.max_connections
        if surplus > 0:
            shared.metrics.refused_connections += 1
            log.event("too_many_connections", "warning")
            if surplus > MAX_TURNED_AWAY:
                self.abort()
            else:
                self._fail(BadRequest("too many connections", 503))

    def handshake_done(self, alpn: Optional[str], peer_name: Optional[str]) -> None:
        """Go on where TLS is agreed on, in the protocol that the client chose there."""
        if self._closing:
            return
        self._fresh = False
        self._name = self._certified = peer_name or ""
        self.deadline = self._shared.loop.time() + HEAD_TIMEOUT_S
        if alpn == "h2":
            self._become_http2(b"")

    def connection_lost(self) -> None:
        """Forget everything; work in a thread ends unheard."""
        self._closing = True
        self._dismiss()
        if self._job is not None:
            self._job.cancel()
        if self._events is not None:
            self._events.lose()
        self._reader.release()
        self._shared.connections.pop(self, None)
        self._shared.metrics.connections -= 1

    def data_received(self, data: bytes) -> None:
        """Take bytes and answer what they complete."""
        if self._closing:
            return
        if self._fresh:
            data = self._early + data
            if PREFACE.startswith(data[:3]):
                # no method of HTTP/1.1 begins with these three, but POST with the first of them
                if len(data) < 3:
                    self._early = data
                else:
                    self._become_http2(data)
                return
            self._fresh = False
        try:
            self._reader.feed(data)
        except BadRequest as error:
            self._fail(error)
            return
        if not (self._busy or self._blocked or self._scheduled):
            self._advance()
        elif self._reader.buffered > MAX_AHEAD_BYTES and not self._paused:
            self._paused = True
            self._stream.pause_reading()

    def _become_http2(self, data: bytes) -> None:
        """Leave the stream to HTTP/2."""
        shared = self._shared
        del shared.connections[self]
        shared.metrics.connections -= 1
        self._closing = True
        assert shared.http2 is not None  # noqa: S101 - for the type checker: it was looked at
        shared.http2(shared, self._stream, data, self._name)

    def eof_received(self) -> bool:
        """Keep the way back open while there is something to answer."""
        self._ended = True
        return not self._closing and (self._busy or self._blocked or self._scheduled)

    def pause_writing(self) -> None:
        """Stop answering: the client reads slower than we write."""
        self._blocked = True
        size = self._stream.unsent
        self.deadline = self._shared.loop.time() + WRITE_TIMEOUT_S + size / SLOWEST_BYTES_PER_S

    def resume_writing(self) -> None:
        """Go on with what came meanwhile."""
        self._blocked = False
        self.deadline = self._shared.loop.time() + IDLE_TIMEOUT_S
        if self._events is not None:
            self._events.resume()
        elif not self._scheduled:
            self._advance()

    def expire(self) -> None:
        """End a connection that took too long."""
        if self._events is not None and not self._blocked:
            self._events.beat()
        elif self._closing or self._blocked or self._reader.stage == IDLE:
            self._stream.abort()
        else:
            self._fail(BadRequest("the request did not arrive in time", 408))

    def drain(self) -> None:
        """Close as soon as what was begun is answered."""
        if self._stage == _SILENT:  # if it has only just connected, its request is on the way
            self.deadline -= HEAD_TIMEOUT_S - LINGER_S
        elif not self._busy and not self._blocked and self._reader.stage == IDLE:
            self._stream.close()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._stream.abort()

    def _identify(self, admission: Admission) -> Admission:
        """Let a request in whose caller may send it, or return what refuses it."""
        guard = self._shared.guard
        self._name = self._certified  # the last request's key says nothing of this one
        if guard is None or not admission.scope:
            return admission
        if self._peer is None:
            self._peer = self._stream.peer
        try:
            self._caller = caller = guard.admit(admission.head.fields, admission.scope, self._peer)
        except BadRequest as error:
            return admission._replace(refusal=error_answer(error), task=None, stream=None)
        self._name = caller.name
        return admission

    def _dismiss(self) -> None:
        """The caller's request is answered, or will not be."""
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.release()

    def _advance_later(self) -> None:
        self._scheduled = False
        self._advance()

    def _advance(self) -> None:
        """Answer the next request if it is complete; later ones wait for their turn."""
        if self._busy or self._blocked or self._closing or self._stream.is_closing:
            return
        reader = self._reader
        try:
            found = reader.next()
        except BadRequest as error:
            self._fail(error)
            return
        if found is not None:
            self._stage = IDLE
            self._answer(*found)
            return
        if self._ended:
            self._close(unread=False)
            return
        if self._paused:
            self._paused = False
            self._stream.resume_reading()
        if reader.wants_continue:
            reader.wants_continue = False
            self._stream.write(CONTINUE)
        if reader.stage != self._stage:
            # the clock runs from the first byte: a byte a second does not stretch it
            self._stage = reader.stage
            now = self._shared.loop.time()
            if reader.stage == IN_HEAD:
                self.deadline = now + HEAD_TIMEOUT_S
            elif reader.stage == IN_BODY:
                self.deadline = now + BODY_TIMEOUT_S + reader.expected_bytes / SLOWEST_BYTES_PER_S

    def _answer(self, admission: Admission, body: Body) -> None:
        shared = self._shared
        started = time.perf_counter()
        if admission.stream is not None:
            self._busy = True
            self._events = admission.stream.over_http1(
                admission, body, self, shared=shared, stream=self._stream, caller=self._name
            )
            self._events.beat()
            return
        if admission.refusal is not None or admission.task is None:
            self._send(admission, started, _act(admission, body))
            return
        self._busy = True
        self.deadline = _NEVER
        self._job = shared.scheduler.submit(
            admission.task,
            body,
            route=admission.route,
            caller=self._name,
            done=partial(self.finish, admission, started),
        )

    def finish(self, admission: Admission, started: float, answer: Answer) -> None:
        """Send the answer that work on a request came to."""
        self._busy = False
        self._job = self._events = None
        if not self._closing:
            self._send(admission, started, answer)

    def end_events(self, *, keep_alive: bool) -> None:
        """Go on after an event stream that was sent."""
        self._busy = False
        self._events = None
        if not self._closing:
            self._go_on(keep_alive=keep_alive)

    def settle(self, admission: Admission, started: float, answer: Answer) -> Answer:
        """Count and tell of an answer, and return it with all its fields."""
        head = admission.head
        if admission.fields:
            answer = answer._replace(fields=answer.fields + admission.fields)
        seconds = time.perf_counter() - started
        self._shared.metrics.observe(admission.route, answer.status, seconds, head.method)
        if log.has_access or "traceparent" in head.fields:
            answer = self._told(admission, answer, seconds)
        return answer

    def _send(self, admission: Admission, started: float, answer: Answer) -> None:
        head = admission.head
        keep_alive = head.keep_alive and not self._reader.dead and not self._shared.draining
        answer = self.settle(admission, started, answer)
        self._stream.write(
            wire(
                answer,
                keep_alive=keep_alive,
                minor=head.minor,
                with_body=head.method != "HEAD",
            )
        )
        self._go_on(keep_alive=keep_alive)

    def _go_on(self, *, keep_alive: bool) -> None:
        """Close after an answer, or take the next request."""
        shared, reader = self._shared, self._reader
        reader.release()
        self._dismiss()
        if not self._blocked:
            self.deadline = shared.loop.time() + IDLE_TIMEOUT_S
        if not keep_alive:
            self._close(unread=reader.dead)
        elif reader.buffered:
            # other connections get their turn between the requests of a pipeline
            self._scheduled = True
            shared.loop.soon(self._advance_later)
        elif self._ended:
            self._close(unread=False)
        elif self._paused:
            self._paused = False
            self._stream.resume_reading()

    def _told(self, admission: Admission, answer: Answer, seconds: float) -> Answer:
        """Return the answer with its trace, once the log knows of it."""
        from .requestlog import tell

        times = None if admission.task is None else self._shared.scheduler.times
        return tell(admission, answer, seconds=seconds, caller=self._name, times=times)

    def _fail(self, error: BadRequest) -> None:
        """Answer what cannot be understood, and close: the stream makes no sense from here on."""
        self._shared.metrics.observe("malformed", error.status, 0.0)
        if log.has_access:
            log.access(protocol="HTTP/1.1", route="malformed", status=error.status)
        answer = error_answer(error)
        self._stream.write(wire(answer, keep_alive=False, minor=1, with_body=True))
        self._close(unread=True)

    def _close(self, *, unread: bool) -> None:
        """Close; where the client may still be sending, let it read the answer first.

        Closing a socket with unread bytes sends a reset, which can destroy the answer on its way.
        """
        self._closing = True
        self._reader.release()
        self._dismiss()
        if not unread:
            self._stream.close()
            return
        self.deadline = self._shared.loop.time() + LINGER_S
        if self._paused:
            self._paused = False
            self._stream.resume_reading()
        self._stream.write_eof()


def _act(admission: Admission, body: Body) -> Answer:
    """Return the answer whatever happens: one request must not stop the server."""
    if admission.refusal is not None:
        return admission.refusal
    try:
        return admission.act(body)
    except Exception as error:  # noqa: BLE001 - the border where a bug of ours becomes a status
        return fault_answer(error)
