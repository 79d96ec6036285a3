"""gRPC calls: messages cut out of a request's body, worked on, and answered in order."""

from __future__ import annotations

import time
from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Any, Deque, Optional, Union

from ..errors import BadRequest, TooLate
from ..logs import log
from . import status
from .messages import read_id, stream_error, stream_response
from .outgoing import Exchange
from .service import Method, fail
from .status import GOOD, HEAD, Failure

if TYPE_CHECKING:
    from ..jobs import Job
    from .connection import GrpcConnection
    from .heads import Request

BODY_TIMEOUT_S = 10.0
# A stream on which nothing happens; its client has to say something, or begin again.
STREAM_IDLE_S = 300.0
# The slowest message that is waited for, on top of the fixed time.
SLOWEST_BYTES_PER_S = 65536
# Messages of one stream that may wait for their turn.
MAX_WAITING_BYTES = 1 << 20
PREFIX = Struct(">BL")
_PREFIX_BYTES = 5
_NEVER = float("inf")
_pack_prefix = PREFIX.pack


class Call:
    """One call of a method with one message.

    Args:
        owner: The connection.
        exchange: Its stream.
        method: What is called.
        request: Its header.
        caller: Who calls; None where everyone may.

    Attributes:
        expires: When the next part of the request, or the client's taking of the answer, is
            overdue.
    """

    __slots__ = (
        "_buffer", "_caller", "_deadline", "_exchange", "_head", "_job", "_message", "_method",
        "_missing", "_owner", "_started", "_taken", "expires",
    )  # fmt: skip

    def __init__(
        self,
        owner: GrpcConnection,
        exchange: Exchange,
        method: Method,
        request: Request,
        caller: Any,
    ) -> None:
        self._owner = owner
        self._exchange = exchange
        self._method = method
        self._head = request.head
        self._caller = caller
        self._started = time.perf_counter()
        limit_s = request.timeout_s
        self._deadline = _NEVER if limit_s is None else owner.now() + limit_s
        self._buffer: Union[bytes, bytearray] = b""  # of the message that is arriving
        self._missing = -1  # bytes of it; -1 before its prefix is known
        self._message: Union[bytes, bytearray, None] = None
        self._taken = 0
        self._job: Optional[Job] = None
        self.expires = _NEVER if exchange.ended else self._within(BODY_TIMEOUT_S)

    def data(self, piece: bytes) -> None:
        """Take bytes of the request."""
        if self._exchange.last is not None:
            return  # it is answered already
        if self._missing < 0 and not self._buffer and len(piece) >= _PREFIX_BYTES:
            compressed, size = PREFIX.unpack_from(piece)
            if not compressed and size == len(piece) - _PREFIX_BYTES and size <= self._limit:
                # the usual case: a whole message
                if self._take(len(piece)):
                    self._receive(piece[_PREFIX_BYTES:])
                return
        if self._take(len(piece)):
            self._collect(piece)

    def end(self) -> None:
        """The request is complete."""
        if self._message is None:
            what = "is cut off" if self._buffer or self._missing >= 0 else "is missing"
            self.fail(Failure(status.INVALID_ARGUMENT, "the request's message %s" % what))
            return
        self.expires = self._deadline
        self._owner.start(self)

    def work(self) -> None:
        """Answer; the connection calls this when there is room for the answer."""
        message, self._message = self._message, None
        if message is None:
            return  # given up meanwhile
        method = self._method
        if method.act is not None:
            try:
                answer: Any = method.act(message)
            except Exception as error:  # noqa: BLE001 - one request must not stop the server
                answer = fail(error)
            self._done(answer)
            return
        self.expires = _NEVER
        assert method.task is not None  # noqa: S101 - for the type checker: one of the two is
        self._job = self._owner.submit(
            method.task,
            message,
            method.name,
            self._done,
            caller=self._caller,
            deadline=self._limit_at,
        )

    def lost(self) -> None:
        """Nobody waits for the answer any more."""
        if self._job is not None:
            self._owner.drop(self._job)
            self._job = None
        self._message = None
        self._release()

    def expire(self) -> None:
        """What has to happen before `expires` did not."""
        if self._exchange.last is not None:
            self._owner.give_up(self._exchange)
        elif self._deadline <= self._owner.now():
            self.fail(status.failure(TooLate("the time limit of the call is over")))
        else:
            self.fail(status.failure(BadRequest("the request did not arrive in time", 408)))

    def fail(self, failed: Failure) -> None:
        """End the call without an answer."""
        exchange = self._exchange
        if exchange.open and exchange.last is None:
            self._count(failed.code)
            self._owner.http2.respond(exchange, status.only_trailers(failed), b"", None)
        self.lost()

    @property
    def _limit(self) -> int:
        return self._method.max_bytes

    @property
    def _limit_at(self) -> Optional[float]:
        return None if self._deadline == _NEVER else self._deadline

    def _within(self, seconds: float) -> float:
        """Return when what is expected within `seconds` is overdue."""
        return min(self._owner.now() + seconds, self._deadline)

    def _take(self, size: int) -> bool:
        try:
            self._owner.budget.take(size)
        except BadRequest as error:
            self.fail(status.failure(error))
            return False
        self._taken += size
        if self._exchange.receivable < MAX_WAITING_BYTES // 2:
            self._owner.http2.widen(self._exchange)
        return True

    def _collect(self, piece: bytes) -> None:
        """Take a part of a message, or more than one."""
        buffer = self._buffer
        if isinstance(buffer, bytes):
            buffer = self._buffer = bytearray(buffer)
        buffer += piece
        while True:
            if self._missing < 0:
                if len(buffer) < _PREFIX_BYTES:
                    return
                compressed, size = PREFIX.unpack_from(buffer)
                if not self._is_acceptable(compressed, size):
                    return
                del buffer[:_PREFIX_BYTES]
                self._missing = size
                self.expires = self._within(BODY_TIMEOUT_S + size / SLOWEST_BYTES_PER_S)
            if len(buffer) < self._missing:
                return
            rest = buffer[self._missing :]
            del buffer[self._missing :]
            self._missing = -1
            self._buffer = rest
            self._receive(buffer)
            if not rest or not self._exchange.open:
                return
            buffer = rest

    def _is_acceptable(self, compressed: int, size: int) -> bool:
        """Look at a message's prefix, before memory is taken for it."""
        if compressed:
            failed = Failure(
                status.UNIMPLEMENTED if compressed == 1 else status.INVALID_ARGUMENT,
                "the message is compressed, which is not served; send it as it is",
            )
        elif size > self._limit:
            failed = Failure(
                status.RESOURCE_EXHAUSTED,
                "the message has %d bytes where %d are the limit" % (size, self._limit),
            )
        elif self._message is not None:
            failed = Failure(status.INVALID_ARGUMENT, "this method takes one message")
        else:
            return True
        self.fail(failed)
        return False

    def _receive(self, message: Union[bytes, bytearray]) -> None:
        if self._message is not None:
            self.fail(Failure(status.INVALID_ARGUMENT, "this method takes one message"))
            return
        self._message = message
        if not self._exchange.ended:
            self.expires = self._within(BODY_TIMEOUT_S)

    def _done(self, answer: Any) -> None:
        self._job = None
        exchange = self._exchange
        if not exchange.open:
            self._release()
            return
        if type(answer) is Failure:
            self.fail(answer)
        else:
            self._count(status.OK)
            self._release()
            size = len(answer)
            self._owner.http2.respond(exchange, HEAD, _pack_prefix(0, size) + answer, GOOD)
            if exchange.open:
                self.expires = self._owner.write_deadline(size)
        self._owner.answered()

    def _release(self) -> None:
        """Give back what the request held."""
        if self._taken:
            self._owner.budget.give_back(self._taken)
            self._taken = 0
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.release()

    def _count(self, code: int) -> None:
        seconds = time.perf_counter() - self._started
        self._owner.metrics.observe_grpc(self._method.name, code, seconds)
        if log.has_access and self._head is not None:
            from ..requestlog import tell_call

            name = "" if self._caller is None else self._caller.name
            times = None if self._method.task is None else self._owner.times
            tell_call(
                self._head.fields, self._method.name, code, seconds=seconds, caller=name,
                times=times,
            )  # fmt: skip


class StreamCall(Call):
    """A call whose messages are answered one by one, in order, until the client ends it.

    What goes wrong with one message is told in its answer; the next one is none the worse.
    """

    __slots__ = ("_busy", "_current", "_waiting")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._waiting: Deque[Union[bytes, bytearray]] = deque()
        self._busy = False  # a message is being worked on, or waits for room for its answer
        self._current: Union[bytes, bytearray] = b""
        self._await_message()
        self._owner.http2.send_head(self._exchange, HEAD)

    def end(self) -> None:
        """No more messages come."""
        if self._exchange.last is not None:
            return
        if self._missing >= 0 or self._buffer:
            self.fail(Failure(status.INVALID_ARGUMENT, "the last message is cut off"))
        elif not self._busy:
            self._finish()

    def work(self) -> None:
        """Answer the message that waits longest."""
        if not self._waiting or self._exchange.last is not None:
            return  # given up meanwhile
        message = self._current = self._waiting.popleft()
        caller = self._caller
        if caller is None:
            try:
                assert self._head is not None  # noqa: S101 - for the type checker: calls have one
                caller = self._caller = self._owner.admit(self._head, self._method.scope)
            except BadRequest as error:
                self._done(status.failure(error))
                return
        self.expires = _NEVER
        assert self._method.task is not None  # noqa: S101 - for the type checker: it has one
        self._job = self._owner.submit(
            self._method.task,
            message,
            self._method.name,
            self._done,
            caller=caller,
            deadline=self._limit_at,
        )

    def lost(self) -> None:
        """Nobody waits for the answers any more."""
        self._waiting.clear()
        super().lost()

    def fail(self, failed: Failure) -> None:
        """End the call; the answers that were given stay."""
        exchange = self._exchange
        if exchange.open and exchange.last is None:
            self._count(failed.code)
            self._owner.http2.finish(exchange, status.trailers(failed))
            self._expect_sent()
        self.lost()

    def _receive(self, message: Union[bytes, bytearray]) -> None:
        self._waiting.append(message)
        if not self._busy:
            self._busy = True
            self._owner.start(self)

    def _done(self, answer: Any) -> None:
        self._job = None
        exchange, message = self._exchange, self._current
        self._current = b""
        if not exchange.open or exchange.last is not None:
            self._release()
            return
        if type(answer) is Failure:
            response = stream_error(answer.message, read_id(message))
        else:
            response = stream_response(answer)
        http2 = self._owner.http2
        http2.send(exchange, _pack_prefix(0, len(response)) + response)
        self._answered(len(message) + _PREFIX_BYTES)
        if self._waiting:
            self._owner.start(self)
        else:
            self._busy = False
            http2.widen(exchange)
            if exchange.ended:
                self._finish()
            else:
                self._await_message()
        self._owner.answered()

    def _take(self, size: int) -> bool:
        try:
            self._owner.budget.take(size)
        except BadRequest as error:
            self.fail(status.failure(error))
            return False
        self._taken += size
        # a client that sends faster than is answered waits; a large message does not
        if not self._waiting:
            self._owner.http2.widen(self._exchange)
        return True

    def _answered(self, size: int) -> None:
        size = min(size, self._taken)
        self._taken -= size
        self._owner.budget.give_back(size)
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.release()

    def _finish(self) -> None:
        self._release()
        self._count(status.OK)
        self._owner.http2.finish(self._exchange, GOOD)
        self._expect_sent()

    def _expect_sent(self) -> None:
        if self._exchange.open:
            self.expires = self._owner.write_deadline(self._exchange.queued)

    def _await_message(self) -> None:
        self.expires = self._within(STREAM_IDLE_S)
