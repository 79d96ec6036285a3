"""One client's connection: requests in order, time limits, answers in the loop or in a thread."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Dict, Optional, Tuple

from .app import error_answer
from .errors import BadRequest, ModelFault
from .framing import IDLE, IN_BODY, IN_HEAD, Admission, Admissions, Body, BodyBudget, RequestReader
from .http1 import CONTINUE, Answer, wire
from .loop import Loop, Stream, Workers

if TYPE_CHECKING:
    import socket

    from .metrics import Metrics

HEAD_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 75.0
BODY_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 20.0
LINGER_S = 2.0
# The slowest body or answer that is waited for, on top of the fixed time.
SLOWEST_BYTES_PER_S = 65536
# What a client may send ahead while its request is being answered.
MAX_AHEAD_BYTES = 65536
# Connections past the limit that are told so at the same time; the rest are cut.
MAX_TURNED_AWAY = 64
# Handing a request to a thread costs 0.1 ms, so only longer work is handed over.
INLINE_S = 0.001
_NEVER = float("inf")


class Pace:
    """Expects the time of a request from earlier ones of its route and size."""

    def __init__(self) -> None:
        self._expected_s: Dict[Tuple[str, int], float] = {}

    def is_inline(self, route: str, size: int) -> bool:
        """Say whether an answer is expected so soon that the loop can wait for it."""
        return self._expected_s.get((route, size.bit_length()), _NEVER) < INLINE_S

    def observe(self, route: str, size: int, seconds: float) -> None:
        """Learn from one answer's CPU seconds; one slow answer among quick ones changes little."""
        seconds = min(seconds, 2 * INLINE_S)
        key = (route, size.bit_length())
        expected = self._expected_s.get(key)
        if expected is None:
            self._expected_s[key] = seconds
        else:
            self._expected_s[key] = expected + 0.2 * (seconds - expected)


class Shared:
    """What all connections of one server share; used by its loop only."""

    def __init__(
        self,
        *,
        loop: Loop,
        admissions: Admissions,
        budget: BodyBudget,
        metrics: Metrics,
        workers: Workers,
        max_connections: int,
    ) -> None:
        self.loop = loop
        self.admissions = admissions
        self.budget = budget
        self.metrics = metrics
        self.workers = workers
        self.max_connections = max_connections
        self.pace = Pace()
        self.connections: Dict[Connection, None] = {}
        self.draining = False


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
        self._reader = RequestReader(shared.admissions, shared.budget)
        self._busy = False  # a thread works on the answer
        self._scheduled = False  # the next request is looked at in the loop's next round
        self._blocked = False  # the client does not take its answer
        self._paused = False  # we do not take the client's requests
        self._ended = False  # the client sends no more
        self._closing = False  # no further request is answered
        self._stage = IDLE
        self.deadline = shared.loop.time() + HEAD_TIMEOUT_S
        self._stream = Stream(shared.loop, connected, self)
        shared.connections[self] = None
        shared.metrics.connections += 1
        surplus = len(shared.connections) - shared.max_connections
        if surplus > 0:
            shared.metrics.refused_connections += 1
            if surplus > MAX_TURNED_AWAY:
                self.abort()
            else:
                self._fail(BadRequest("too many connections", 503))

    def connection_lost(self) -> None:
        """Forget everything; work in a thread ends unheard."""
        self._closing = True
        self._reader.release()
        self._shared.connections.pop(self, None)
        self._shared.metrics.connections -= 1

    def data_received(self, data: bytes) -> None:
        """Take bytes and answer what they complete."""
        if self._closing:
            return
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
        if not self._scheduled:
            self._advance()

    def expire(self) -> None:
        """End a connection that took too long."""
        if self._closing or self._blocked or self._reader.stage == IDLE:
            self._stream.abort()
        else:
            self._fail(BadRequest("the request did not arrive in time", 408))

    def drain(self) -> None:
        """Close as soon as what was begun is answered."""
        if not self._busy and not self._blocked and self._reader.stage == IDLE:
            self._stream.close()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._stream.abort()

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
        if admission.quick:
            self._send(admission, _act(admission, body), started)
        elif shared.pace.is_inline(admission.route, len(body)):
            shared.metrics.in_flight += 1
            answer = _act(admission, body)
            shared.metrics.in_flight -= 1
            shared.pace.observe(admission.route, len(body), time.perf_counter() - started)
            self._send(admission, answer, started)
        else:
            self._busy = True
            self.deadline = _NEVER
            shared.metrics.in_flight += 1
            shared.workers.submit(
                partial(self._work, admission, body),
                partial(self._finish, admission, len(body), started),
            )

    def _work(self, admission: Admission, body: Body) -> Tuple[Optional[Answer], float]:
        """In a thread: return the answer and the CPU seconds it took."""
        if self._closing:
            return None, 0.0  # nobody waits for it any more
        # CPU time, as wall time would count waiting for the interpreter's lock as work
        started_s = time.thread_time()
        answer = _act(admission, body)
        return answer, time.thread_time() - started_s

    def _finish(
        self,
        admission: Admission,
        size: int,
        started: float,
        result: Tuple[Optional[Answer], float],
    ) -> None:
        self._busy = False
        self._shared.metrics.in_flight -= 1
        answer, seconds = result
        if answer is None:
            return
        self._shared.pace.observe(admission.route, size, seconds)
        if not self._closing:
            self._send(admission, answer, started)

    def _send(self, admission: Admission, answer: Answer, started: float) -> None:
        shared = self._shared
        head = admission.head
        reader = self._reader
        reader.release()
        keep_alive = head.keep_alive and not reader.dead and not shared.draining
        now = time.perf_counter()
        shared.metrics.observe(admission.route, answer.status, now - started)
        self.deadline = shared.loop.time() + IDLE_TIMEOUT_S
        self._stream.write(
            wire(
                answer,
                keep_alive=keep_alive,
                minor=head.minor,
                with_body=head.method != "HEAD",
            )
        )
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

    def _fail(self, error: BadRequest) -> None:
        """Answer what cannot be understood, and close: the stream makes no sense from here on."""
        self._shared.metrics.observe("malformed", error.status, 0.0)
        answer = error_answer(error)
        self._stream.write(wire(answer, keep_alive=False, minor=1, with_body=True))
        self._close(unread=True)

    def _close(self, *, unread: bool) -> None:
        """Close; where the client may still be sending, let it read the answer first.

        Closing a socket with unread bytes sends a reset, which can destroy the answer on its way.
        """
        self._closing = True
        self._reader.release()
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
    try:
        return admission.act(body)
    except BadRequest as error:
        return error_answer(error)
    except ModelFault as error:
        _report(error)
        return error_answer(BadRequest("the model failed", 500))
    except MemoryError:
        return error_answer(BadRequest("there is not enough memory for this request", 503))
    except Exception as error:  # noqa: BLE001 - the border where a bug of ours becomes a status
        _report(error)
        return error_answer(BadRequest("internal error", 500))


def _report(error: Exception) -> None:
    """Write where it happened, without messages: they could hold parts of a request."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join("%s:%s" % (frame.name, frame.lineno) for frame in reversed(frames))
    print("error: %s in %s" % (type(error).__name__, where), file=sys.stderr, flush=True)
