"""Requests to the HTTP routes that come over HTTP/2; answered as over HTTP/1.1."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from ..errors import BadRequest
from ..failing import error_answer, fault_answer
from ..http1 import Answer
from ..logs import log
from .calls import BODY_TIMEOUT_S, SLOWEST_BYTES_PER_S
from .frames import PROTOCOL_ERROR
from .hpack import Field, encode
from .outgoing import Exchange

if TYPE_CHECKING:
    from ..framing import Admission
    from ..jobs import Job
    from .connection import GrpcConnection

LATE = "the request did not arrive in time"
_NEVER = float("inf")
# as every answer of HTTP/1.1 has them
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_OF_CONNECTION = frozenset((b"connection", b"keep-alive", b"transfer-encoding"))
_MAX_REMEMBERED = 64


class Rest:
    """One request.

    Args:
        owner: The connection.
        exchange: Its stream.
        admission: What was decided from its head.
        caller: Who asks; None where everyone may.

    Attributes:
        expires: When the next part of the request, or the client's patience, is overdue.
    """

    __slots__ = (
        "_admission", "_body", "_caller", "_exchange", "_job", "_owner", "_started", "_taken",
        "expires",
    )  # fmt: skip

    def __init__(
        self, owner: GrpcConnection, exchange: Exchange, admission: Admission, caller: Any
    ) -> None:
        self._owner = owner
        self._exchange = exchange
        self._admission = admission
        self._caller = caller
        self._body = bytearray()
        self._taken = 0
        self._job: Optional[Job] = None
        self._started = time.perf_counter()
        expected = admission.head.length or 0
        patience_s = BODY_TIMEOUT_S + expected / SLOWEST_BYTES_PER_S
        self.expires = _NEVER if exchange.ended else owner.now() + patience_s

    def data(self, piece: bytes) -> None:
        """Take bytes of the body."""
        if self._exchange.last is not None:
            return  # it is answered already
        limit = self._admission.max_body_bytes
        size = len(self._body) + len(piece)
        length = self._admission.head.length
        if length is not None and size > length:
            self._owner.give_up(self._exchange, PROTOCOL_ERROR)
            return
        if size > limit:
            message = "the body is larger than %d bytes" % limit
            self._send(error_answer(BadRequest(message, 413, self._admission.advice)))
            return
        try:
            self._owner.budget.take(len(piece))
        except BadRequest as error:
            self._send(error_answer(error))
            return
        self._taken += len(piece)
        self._body += piece
        self._owner.http2.widen(self._exchange)

    def end(self) -> None:
        """The request is complete."""
        length = self._admission.head.length
        if self._exchange.last is not None:
            return
        if length is not None and len(self._body) != length:
            error = BadRequest("the body has another size than `content-length` says")
            self._send(error_answer(error))
            return
        self.expires = _NEVER
        self._owner.start(self)

    def work(self) -> None:
        """Answer; the connection calls this when there is room for the answer."""
        admission = self._admission
        if not self._exchange.open or self._exchange.last is not None:
            return  # given up meanwhile
        if admission.task is None:
            try:
                answer = admission.act(self._body)
            except Exception as error:  # noqa: BLE001 - one request must not stop the server
                answer = fault_answer(error)
            self._done(answer)
            return
        self.expires = _NEVER
        self._job = self._owner.submit(
            admission.task, self._body, admission.route, self._done, caller=self._caller
        )

    def lost(self) -> None:
        """Nobody waits for the answer any more."""
        if self._job is not None:
            self._owner.drop(self._job)
            self._job = None
        if self._taken:
            self._owner.budget.give_back(self._taken)
            self._taken = 0
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.release()

    def expire(self) -> None:
        """What has to happen before `expires` did not."""
        if self._exchange.last is not None:
            self._owner.give_up(self._exchange)
        elif self._exchange.open:
            late = "earlier answers were not taken" if self._exchange.ended else LATE
            self._send(error_answer(BadRequest(late, 408)))

    def _done(self, answer: Answer) -> None:
        self._job = None
        self._send(answer)
        self._owner.answered()

    def _send(self, answer: Answer) -> None:
        exchange, admission = self._exchange, self._admission
        if exchange.open and exchange.last is None:
            answer = self._settle(answer)
            send_answer(self._owner, exchange, answer, with_body=admission.head.method != "HEAD")
            if exchange.open:
                self.expires = self._owner.write_deadline()
        self.lost()

    def _settle(self, answer: Answer) -> Answer:
        """Count and tell of an answer, and return it with all its fields."""
        seconds = time.perf_counter() - self._started
        return _settle(self._owner, self._admission, answer, seconds=seconds, caller=self._caller)


class Refused:
    """A request that was answered from its header; what still comes of it is dropped.

    Attributes:
        expires: When the client has to have taken the answer.
    """

    __slots__ = ("_exchange", "_owner", "expires")

    def __init__(self, owner: GrpcConnection, exchange: Exchange) -> None:
        self._owner = owner
        self._exchange = exchange
        self.expires = owner.write_deadline()

    def data(self, piece: bytes) -> None:
        """Drop it."""

    def end(self) -> None:
        """There is nothing to do."""

    def lost(self) -> None:
        """There is nothing to give back."""

    def expire(self) -> None:
        """The client has not taken the answer."""
        self._owner.give_up(self._exchange)


def refuse(
    owner: GrpcConnection,
    exchange: Exchange,
    answer: Answer,
    admission: Optional[Admission] = None,
    caller: Any = None,
) -> None:
    """Answer a request from its header.

    Args:
        owner: The connection.
        exchange: The request's stream.
        answer: What refuses it.
        admission: What was decided from its head; None where that is malformed.
        caller: Who asks; None where everyone may, and where nobody knows.
    """
    if admission is None:
        owner.metrics.observe("malformed", answer.status, 0.0)
        if log.has_access:
            log.access(protocol="HTTP/2", route="malformed", status=answer.status)
    else:
        admission = admission._replace(task=None)  # it came to neither queue nor model
        answer = _settle(owner, admission, answer, seconds=0.0, caller=caller)
    with_body = admission is None or admission.head.method != "HEAD"
    send_answer(owner, exchange, answer, with_body=with_body)
    if exchange.open:
        exchange.call = Refused(owner, exchange)  # the client's window is closed


def _settle(
    owner: GrpcConnection,
    admission: Admission,
    answer: Answer,
    *,
    seconds: float,
    caller: Any,
) -> Answer:
    owner.metrics.observe(admission.route, answer.status, seconds, admission.head.method)
    if admission.fields:
        answer = answer._replace(fields=answer.fields + admission.fields)
    if log.has_access or "traceparent" in admission.head.fields:
        from ..requestlog import tell

        answer = tell(
            admission, answer, seconds=seconds, protocol="HTTP/2", caller=owner.name_of(caller),
            times=None if admission.task is None else owner.times,
        )  # fmt: skip
    return answer


def send_answer(
    owner: GrpcConnection, exchange: Exchange, answer: Answer, *, with_body: bool = True
) -> None:
    """Send an answer of the HTTP routes."""
    length = encode(((b"content-length", b"%d" % len(answer.body)),))
    head = answer_head(owner.heads, answer.status, answer.fields) + length
    owner.http2.respond(exchange, head, answer.body if with_body else b"", None)


def answer_head(known: Dict[Tuple[int, bytes], bytes], status: int, lines: bytes) -> bytes:
    """Return the block of an answer's header, but for its length.

    Args:
        known: Blocks made before.
        status: The answer's.
        lines: Whole header lines, as HTTP/1.1 has them.
    """
    found = known.get((status, lines))
    if found is None:
        fields: List[Field] = [(b":status", b"%d" % status), *_ALWAYS]
        for line in lines.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name and name.lower() not in _OF_CONNECTION:
                fields.append((name.lower(), value.strip()))
        found = encode(fields)
        if len(known) >= _MAX_REMEMBERED:
            known.clear()
        known[status, lines] = found
    return found
