"""One client's HTTP/2 connection: many requests at once, time limits, and an end without loss."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, Optional, Tuple

from ..errors import BadRequest
from ..failing import error_answer
from ..http1 import Answer, Head
from ..logs import log
from . import status
from .calls import SLOWEST_BYTES_PER_S, Call
from .frames import CANCEL, ENHANCE_YOUR_CALM, NO_ERROR
from .heads import Request, read_request
from .hpack import Field
from .http2 import Http2
from .outgoing import Exchange
from .rest import Rest, refuse
from .service import service_of
from .streaming import StreamCall

if TYPE_CHECKING:
    from ..connection import Shared
    from ..jobs import Job, Task
    from ..loop import Stream

HEAD_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 75.0
WRITE_TIMEOUT_S = 20.0
LINGER_S = 2.0
# Time limits of single requests are looked at this often.
CHECK_S = 1.0
# Answers that one client may leave lying with us, beside one that is larger.
MAX_BACKLOG_BYTES = 4 << 20
# Requests of one client that are begun before other clients get their turn.
MAX_TURN = 8


class GrpcConnection:
    """Answers the requests of one connection, as they come.

    Args:
        shared: What it shares with the others.
        stream: Where the bytes come from and go to; it has belonged to another protocol.
        early: What has come on it.
        name: Who the client is, where TLS has told.

    Attributes:
        deadline: When `expire` has to be called, in the loop's time.
        http2: The protocol.
        heads: Blocks of answers' headers made before.
        listeners: Event streams, told when all that could be written was.
        is_blocked: The client does not take what we write.
    """

    def __init__(self, shared: Shared, stream: Stream, early: bytes, name: str = "") -> None:
        self._shared = shared
        self._stream = stream
        self._name = name
        self._peer: Optional[str] = None
        self.now: Callable[[], float] = shared.loop.time
        self.budget = shared.budget
        self.metrics = shared.metrics
        self.heads: Dict[Tuple[int, bytes], bytes] = {}
        self.listeners: Dict[Any, None] = {}
        self.http2 = Http2(self, shared.loop.time)
        self._service = service_of(shared)
        self._waiting: Deque[Any] = deque()  # complete requests, whose answers have no room yet
        self._working = 0  # requests whose answers come
        self._turn = MAX_TURN  # requests that are begun before others get their turn
        self._summoned = False  # in the loop's next round it is our turn again
        self._receiving = False
        self.is_blocked = False
        self._blocked_until = 0.0
        self._ended = False  # the client sends no more
        self._closing = False
        self._close_at = 0.0
        self._draining = False
        self._frames = -1  # seen when the time limits were last looked at
        now = self.now()
        self._moved_at = now  # a frame was complete
        self._active_at = now  # a request was under way
        self.deadline = now + CHECK_S
        shared.connections[self] = None
        shared.metrics.connections += 1
        stream.hand_over(self)
        if shared.draining:
            self.drain()
        self.data_received(early)

    # What the stream tells

    def data_received(self, data: bytes) -> None:
        """Take bytes and answer what they complete."""
        if self._closing:
            return
        self._receiving = True
        self._turn = MAX_TURN
        self.http2.receive(data)
        self._receiving = False
        self._flush()

    def eof_received(self) -> bool:
        """Keep the way back open while there is something to answer."""
        self._ended = True
        for exchange in [item for item in self.http2.streams.values() if not item.ended]:
            self.give_up(exchange)  # the rest of it cannot come any more
        return bool(self.http2.streams) and not self._closing

    def pause_writing(self) -> None:
        """Write no more, and hear no more: what is heard asks for answers."""
        self.is_blocked = True
        self._blocked_until = self.write_deadline()
        if not self._ended:
            self._stream.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self.is_blocked = False
        if not self._ended:
            self._stream.resume_reading()
        self._flush()

    def connection_lost(self) -> None:
        """Forget everything; work in a thread ends unheard."""
        self._closing = True
        self._waiting.clear()
        self.http2.abandon(NO_ERROR)
        self._shared.connections.pop(self, None)
        self._shared.metrics.connections -= 1

    # What the server asks

    def expire(self) -> None:
        """Look at all time limits."""
        now, http2 = self.now(), self.http2
        self.deadline = now + CHECK_S
        if self._closing or (self.is_blocked and now >= self._blocked_until):
            if not self._closing or now >= self._close_at:
                self._stream.abort()
            return
        if http2.frames != self._frames:
            self._frames = http2.frames
            self._moved_at = now
        if http2.streams:
            self._active_at = now
        if now - self._moved_at >= HEAD_TIMEOUT_S and (
            not http2.greeted or http2.in_block or (http2.in_frame and not http2.streams)
        ):
            http2.abandon(ENHANCE_YOUR_CALM, "the request did not arrive in time")
        elif now - self._active_at >= IDLE_TIMEOUT_S:
            http2.abandon(NO_ERROR, "nothing was asked for a while")
        for exchange in list(http2.streams.values()):
            call = exchange.call
            if call is not None and call.expires <= now:
                call.expire()
        http2.reset_overdue()
        if self._draining:
            http2.is_settled = True  # a second is enough for an answer to our ping
        self._flush()

    def drain(self) -> None:
        """Ask for no new requests, answer those that have come, and close."""
        if not self._closing and not self._draining:
            self._draining = True
            self.deadline = self.now() + CHECK_S
            self.http2.announce_end()
            self._flush()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._stream.abort()

    # What HTTP/2 tells

    def understand(self, fields: List[Field], oversized: bool) -> Request:
        """Return the meaning of a request's header."""
        return read_request(fields, oversized=oversized)

    def begin(self, exchange: Exchange, request: Request) -> None:
        """Decide on a request from its header."""
        head = request.head
        if request.is_grpc and head is not None:
            self._begin_call(exchange, request, head)
        elif head is not None:
            self._begin_rest(exchange, head)
        elif request.error is not None:
            refuse(self, exchange, error_answer(request.error))

    def data(self, exchange: Exchange, piece: bytes) -> None:
        """Take a piece of a request's body; that of a refused one is dropped."""
        if exchange.call is not None:
            exchange.call.data(piece)

    def end(self, exchange: Exchange) -> None:
        """Answer a complete request, unless it was refused by its header."""
        if exchange.call is not None:
            exchange.call.end()

    def lost(self, exchange: Exchange) -> None:
        """Drop what is not begun of a request."""
        if exchange.call is not None:
            exchange.call.lost()
            if exchange.call in self._waiting:
                self._waiting.remove(exchange.call)

    # What calls ask

    def admit(self, head: Head, scope: str) -> Any:
        """Return who sends a request; None where everyone may.

        Raises:
            BadRequest: this caller may not, or not now.
        """
        guard = self._shared.guard
        if guard is None or not scope:
            return None
        if self._peer is None:
            self._peer = self._stream.peer
        return guard.admit(head.fields, scope, self._peer)

    def name_of(self, caller: Any) -> str:
        """Return who asks: by the key, or else by the certificate; empty where neither tells."""
        return self._name if caller is None else str(caller.name)

    def start(self, call: Any) -> None:
        """Let a complete request be worked on, once its answer has room."""
        if self._turn > 0 and not self._waiting and self._has_room():
            self._turn -= 1
            call.work()
        else:
            # for its turn, or until the client takes earlier answers
            call.expires = min(call.expires, self.write_deadline())
            self._waiting.append(call)

    def submit(
        self,
        task: Task,
        body: Any,
        route: str,
        done: Callable[[Any], None],
        *,
        caller: Any,
        deadline: Optional[float] = None,
    ) -> Optional[Job]:
        """Have a request worked on, in the loop or in a thread."""
        self._working += 1
        return self._shared.scheduler.submit(
            task,
            body,
            route=route,
            done=partial(self._worked, done),
            deadline=deadline,
            caller=self.name_of(caller),
        )

    def drop(self, job: Job) -> None:
        """Have a request not worked on, unless that has begun."""
        self._working -= 1
        job.cancel()

    def answered(self) -> None:
        """Send an answer that came while nothing was read, those that come now along with it."""
        if self._receiving:
            return
        if not self._working:
            self._flush()
        elif not self._summoned:
            self._summoned = True
            self._shared.loop.soon(self._go_on)

    def give_up(self, exchange: Exchange, code: int = CANCEL) -> None:
        """Drop a request, its answer included."""
        self.http2.reset(exchange, code)
        self.lost(exchange)

    @property
    def times(self) -> Tuple[float, float]:
        """Seconds in the queue and in the model of the request that is being answered."""
        return self._shared.scheduler.times

    def write_deadline(self) -> float:
        """Return when the client has to have taken everything that lies here for it."""
        size = self.http2.backlog + self._stream.unsent
        return self.now() + WRITE_TIMEOUT_S + size / SLOWEST_BYTES_PER_S

    def _begin_call(self, exchange: Exchange, request: Request, head: Head) -> None:
        shared = self._shared
        if self._service.app is not shared.app:
            self._service = service_of(shared)
        caller = None
        try:
            shared.check(head)
            if request.error is not None:
                raise request.error
            method = self._service.find(head.path)
            caller = self.admit(head, method.scope)
        except BadRequest as error:
            failed = status.failure(error)
            self.metrics.observe_grpc(head.path, failed.code, 0.0)
            if log.has_access:
                from ..requestlog import tell_call

                name = self._name
                tell_call(head.fields, "refused", failed.code, seconds=0.0, caller=name, times=None)
            self.http2.respond(exchange, status.only_trailers(failed), b"", None)
            return
        kind = StreamCall if method.streams else Call
        exchange.call = kind(self, exchange, method, request, caller)

    def _begin_rest(self, exchange: Exchange, head: Head) -> None:
        admission = self._shared.admissions.admit(head)
        refusal, caller = admission.refusal, None
        try:
            # first: what is here and what is not is told only to those who may ask
            caller = self.admit(head, admission.scope)
        except BadRequest as error:
            refusal = error_answer(error)
        if refusal is None and admission.stream is not None:
            from .events import Events  # seldom asked for

            name, shared = self.name_of(caller), self._shared
            exchange.call = Events(self, exchange, admission, caller, shared=shared, name=name)
            return
        if refusal is None:
            exchange.call = Rest(self, exchange, admission, caller)
            return
        if caller is not None:
            caller.release()
        refuse(self, exchange, refusal, admission, caller)

    def _worked(self, done: Callable[[Any], None], answer: Any) -> None:
        self._working -= 1
        # an `Answer`, a message, or a `Failure`, which is short
        size = len(answer.body if isinstance(answer, Answer) else answer)
        self._service.largest_answer = max(self._service.largest_answer, size)
        done(answer)

    def _has_room(self) -> bool:
        """Whether one more answer may come: those that nobody takes lie in our memory."""
        backlog, working = self.http2.backlog, self._working
        if not backlog and not working:
            return True
        return backlog + (working + 1) * self._service.largest_answer <= MAX_BACKLOG_BYTES

    def _flush(self) -> None:
        """Write what there is, begin what has room, and close where all is done."""
        http2, stream = self.http2, self._stream
        while not self.is_blocked and not stream.is_closing:
            data = http2.take()
            if data:
                stream.write(data)
            elif self._waiting and self._turn > 0 and self._has_room():
                self._receiving = True
                self._turn -= 1
                self._waiting.popleft().work()
                self._receiving = False
            else:
                break
        if self._closing or stream.is_closing:
            return
        if self.listeners and not self.is_blocked:
            for call in list(self.listeners):
                call.resume()
        if self._waiting and not self._summoned and self._has_room():
            self._summoned = True
            self._shared.loop.soon(self._go_on)
        if self._draining and http2.is_settled and not http2.is_refusing and not http2.dead:
            http2.refuse_new()
            self._flush()
        elif http2.dead or (
            not http2.streams and (self._ended or (self._draining and http2.is_refusing))
        ):
            self._close()

    def _go_on(self) -> None:
        self._summoned = False
        self._turn = MAX_TURN
        self._flush()

    def _close(self) -> None:
        """Close once all is sent; what the client still sends must not destroy it on its way."""
        self._closing = True
        self._close_at = self.now() + LINGER_S + self._stream.unsent / SLOWEST_BYTES_PER_S
        if self._ended:
            self._stream.close()
            return
        if self.is_blocked:
            self._stream.resume_reading()
        self._stream.write_eof()
