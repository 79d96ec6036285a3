"""Cuts what arrives on a connection into requests, within limits; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, NamedTuple, Optional, Tuple, Union

from .errors import BadRequest
from .http1 import MAX_HEAD_BYTES, Answer, ChunkedBody, Head, parse_head

if TYPE_CHECKING:
    from .jobs import Task

# An unwanted body up to this size is read and dropped, so that the connection lives on.
MAX_DROPPED_BYTES = 65536
_MEMO_ENTRIES = 256
_MEMO_HEAD_BYTES = 2048
_HEAD_END = b"\r\n\r\n"

IDLE, IN_HEAD, IN_BODY = range(3)

Body = Union[bytes, bytearray]


class Admission(NamedTuple):
    """What is decided from a request's head alone, before a byte of its body is kept.

    Attributes:
        route: The name that metrics count it under.
        act: Makes the answer from the body.
        max_body_bytes: The most that the body may have.
        refusal: The answer to a request that is not admitted, None otherwise.
        task: The same in parts, where it asks the model and may take time worth a thread.
        stream: A task whose answers are sent one by one, each an event.
        scope: What a caller's key must allow; empty where none is needed.
        fields: Header lines for the answer, whichever it will be.
        advice: What a client is told whose body turns out to be larger.
    """

    head: Head
    route: str
    act: Callable[[Body], Answer]
    max_body_bytes: int
    refusal: Optional[Answer] = None
    task: Optional[Task] = None
    stream: Any = None
    scope: str = ""
    fields: bytes = b""
    advice: str = ""


class BodyBudget:
    """Bytes of bodies arriving or waiting for their answer that all connections may hold."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, count: int) -> None:
        """Account for `count` more bytes.

        Raises:
            BadRequest: with status 503, when the server holds enough already.
        """
        if count > self._left:
            raise BadRequest("too many requests are arriving at once", 503)
        self._left -= count

    def give_back(self, count: int) -> None:
        """Account for `count` bytes that are gone."""
        self._left += count


class Admissions:
    """Admits heads, remembering those that keep-alive clients repeat byte for byte.

    Args:
        admit: Decides on a parsed head; returns refusals rather than raising them.
    """

    def __init__(self, admit: Callable[[Head], Admission]) -> None:
        self._admit = admit
        self._memo: Dict[bytes, Admission] = {}
        self.get = self._memo.get

    def admit(self, head: Head) -> Admission:
        """Return the admission of a head that came in another form than HTTP/1.1's."""
        return self._admit(head)

    def forget(self) -> None:
        """Decide anew from now on: what is admitted has changed."""
        self._memo.clear()

    def decide(self, block: bytes) -> Admission:
        """Return the admission of a head, which still has its final empty line.

        Raises:
            BadRequest: the head is malformed; the connection cannot go on.
        """
        admission = self._admit(parse_head(block[:-4]))
        if admission.refusal is None and len(block) <= _MEMO_HEAD_BYTES:
            if len(self._memo) >= _MEMO_ENTRIES:
                self._memo.clear()
            self._memo[block] = admission
        return admission


class RequestReader:
    """One connection's incoming side: `feed` bytes, then `next` until it returns None.

    Args:
        admissions: Shared with other connections.
        budget: Shared with other connections.
        gate: Asked once for every request, when its head is there; may refuse it.

    Attributes:
        stage: IDLE between requests, IN_HEAD or IN_BODY; what a timeout depends on.
        wants_continue: The client waits for `100 Continue`; whoever sends it resets this.
        dead: No further request can be read: the body of a refused one was left unread.
    """

    __slots__ = (
        "_admission",
        "_admissions",
        "_budget",
        "_buffer",
        "_chunks",
        "_gate",
        "_parts",
        "_taken",
        "dead",
        "stage",
        "wants_continue",
    )  # fmt: skip

    def __init__(
        self,
        admissions: Admissions,
        budget: BodyBudget,
        gate: Optional[Callable[[Admission], Admission]] = None,
    ) -> None:
        self._admissions = admissions
        self._gate = gate
        self._budget = budget
        self._buffer = b""  # bytes not yet understood; never longer than one head and one read
        self._admission: Optional[Admission] = None
        self._parts: Optional[bytearray] = None  # a body of known length that came in pieces
        self._chunks: Optional[ChunkedBody] = None
        self._taken = 0
        self.stage = IDLE
        self.wants_continue = False
        self.dead = False

    @property
    def buffered(self) -> int:
        """Bytes that wait behind the current request."""
        return len(self._buffer)

    @property
    def expected_bytes(self) -> int:
        """The size that the body has, or at most has."""
        admission = self._admission
        if admission is None:
            return 0
        length = admission.head.length
        return admission.max_body_bytes if length is None else length

    def feed(self, data: bytes) -> None:
        """Take what arrived.

        Raises:
            BadRequest: with status 503, past the budget of the server.
        """
        if self._admission is None or not (self._parts is not None or self._chunks is not None):
            self._buffer = self._buffer + data if self._buffer else data
            return
        self._budget.take(len(data))
        self._taken += len(data)
        if self._parts is not None:
            self._parts += data
        else:
            self._buffer = data

    def next(self) -> Optional[Tuple[Admission, Body]]:
        """Return the next whole request and its body, None where more has to arrive.

        Raises:
            BadRequest: the stream makes no sense from here on.
        """
        if self._admission is None:
            buffer = self._buffer
            end = buffer.find(_HEAD_END)
            if end < 0 or end > MAX_HEAD_BYTES:
                self._wait_for_head(end)
                return None
            end += 4
            block = buffer[:end]
            admission = self._admissions.get(block) or self._admissions.decide(block)
            if self._gate is not None:
                admission = self._gate(admission)
            length = admission.head.length
            if length is not None and len(buffer) - end >= length and not self._refuses(admission):
                # the usual case: head and body came together
                stop = end + length
                self._buffer = buffer[stop:]
                self.stage = IDLE
                return admission, buffer[end:stop]
            self._buffer = buffer[end:]
            self._begin_body(admission)
        return self._go_on_with_body()

    def _wait_for_head(self, end: int) -> None:
        size = len(self._buffer)
        if end > MAX_HEAD_BYTES or size > MAX_HEAD_BYTES + 4:
            raise BadRequest("the request's head is larger than %d bytes" % MAX_HEAD_BYTES, 431)
        if size:
            # someone who ends lines another way would wait for us for ever
            if self._buffer.count(b"\n") != self._buffer.count(b"\r\n"):
                raise BadRequest("a line of the request's head ends without CR LF")
            self.stage = IN_HEAD

    def _refuses(self, admission: Admission) -> bool:
        """Say whether the body of a refused request is too large to read and drop."""
        head = admission.head
        return admission.refusal is not None and (
            head.length is None or head.expects_continue or head.length > MAX_DROPPED_BYTES
        )

    def _begin_body(self, admission: Admission) -> None:
        self._admission = admission
        head = admission.head
        self.stage = IN_BODY
        if self._refuses(admission):
            return
        self.wants_continue = head.expects_continue and not self._buffer
        self._budget.take(len(self._buffer))
        self._taken = len(self._buffer)
        if head.length is None:
            self._chunks = ChunkedBody(admission.max_body_bytes, admission.advice)
        else:
            self._parts = bytearray(self._buffer)
            self._buffer = b""

    def _go_on_with_body(self) -> Optional[Tuple[Admission, Body]]:
        admission = self._admission
        if admission is None:
            return None
        if self._refuses(admission):
            self._buffer = b""
            self.dead = True
            return self._finish(admission, b"", b"")
        if self._parts is not None:
            length = admission.head.length or 0
            if len(self._parts) < length:
                return None
            body = self._parts
            rest = bytes(body[length:])
            if rest:
                del body[length:]
            return self._finish(admission, body, rest)
        if self._chunks is not None:
            data, self._buffer = self._buffer, b""
            remaining = self._chunks.feed(data)
            if remaining is not None:
                return self._finish(admission, self._chunks.data, remaining)
        return None

    def _finish(self, admission: Admission, body: Body, rest: bytes) -> Tuple[Admission, Body]:
        self._admission = None
        self._parts = None
        self._chunks = None
        self._buffer = rest
        self.wants_continue = False
        self.stage = IDLE
        return admission, body

    def release(self) -> None:
        """Give back this connection's part of the budget: its body was answered or is lost."""
        self._budget.give_back(self._taken)
        self._taken = 0
