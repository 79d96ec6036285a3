"""gRPC calls: messages cut out of a request's body, worked on, and answered in order."""

from __future__ import annotations

import time
from struct import Struct
from typing import TYPE_CHECKING, Any, Optional, Union

from ..errors import BadRequest, TooLate
from ..logs import log
from . import status
from .outgoing import Exchange
from .service import Method, fail
from .status import GOOD, HEAD, Failure

if TYPE_CHECKING:
    from ..jobs import Job
    from .connection import GrpcConnection
    from .heads import Request

BODY_TIMEOUT_S = 10.0
# The slowest message that is waited for, on top of the fixed time.
SLOWEST_BYTES_PER_S = 65536
# Messages of one stream that may wait for their turn.
MAX_WAITING_BYTES = 1 << 20
PREFIX = Struct(">BL")
PREFIX_BYTES = 5
NEVER = float("inf")
pack_prefix = PREFIX.pack


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
        self._deadline = NEVER if limit_s is None else owner.now() + limit_s
        self._buffer: Union[bytes, bytearray] = b""  # of the message that is arriving
        self._missing = -1  # bytes of it; -1 before its prefix is known
        self._message: Union[bytes, bytearray, None] = None
        self._taken = 0
        self._job: Optional[Job] = None
        self.expires = NEVER if exchange.ended else self._within(BODY_TIMEOUT_S)

    def data(self, piece: bytes) -> None:
        """Take bytes of the request."""
        if self._exchange.last is not None:
            return  # it is answered already
        if self._missing < 0 and not self._buffer and len(piece) >= PREFIX_BYTES:
            compressed, size = PREFIX.unpack_from(piece)
            if not compressed and size == len(piece) - PREFIX_BYTES and size <= self._limit:
                # the usual case: a whole message
                if self._take(len(piece)):
                    self._receive(piece[PREFIX_BYTES:])
                return
        if self._take(len(piece)):
            self._collect(piece)

    def end(self) -> None:
        """The request is complete."""
        is_cut_off = bool(self._buffer) or self._missing >= 0
        if self._message is None or is_cut_off:
            what = "is cut off" if is_cut_off else "is missing"
            self.fail(Failure(status.INVALID_ARGUMENT, "the request's message %s" % what))
            return
        self.expires = self._deadline
        self._owner.start(self)

    def work(self) -> None:
        """Answer; the connection calls this when there is room for the answer."""
        message, self._message = self._message, None
        if message is None:
            return  # given up meanwhile
        if self._deadline != NEVER and self._deadline <= self._owner.now():
            self.expire()
            return
        method = self._method
        if method.act is not None:
            try:
                answer: Any = method.act(message)
            except Exception as error:  # noqa: BLE001 - one request must not stop the server
                answer = fail(error)
            self._done(answer)
            return
        self.expires = NEVER
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
        elif self._is_waiting:
            self.fail(status.failure(TooLate("earlier answers were not taken in time")))
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
        return None if self._deadline == NEVER else self._deadline

    @property
    def _is_waiting(self) -> bool:
        """Whether there was no room for the answer until now."""
        return self._exchange.ended and self._message is not None

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
                if len(buffer) < PREFIX_BYTES:
                    return
                compressed, size = PREFIX.unpack_from(buffer)
                if not self._is_acceptable(compressed, size):
                    return
                del buffer[:PREFIX_BYTES]
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
            self._owner.http2.respond(exchange, HEAD, pack_prefix(0, size) + answer, GOOD)
            if exchange.open:
                self.expires = self._owner.write_deadline()
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

            name = self._owner.name_of(self._caller)
            times = None if self._method.task is None else self._owner.times
            tell_call(
                self._head.fields, self._method.name, code, seconds=seconds, caller=name,
                times=times,
            )  # fmt: skip
