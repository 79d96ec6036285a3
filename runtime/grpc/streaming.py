"""gRPC calls with many messages, answered one by one, in order."""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Union

from ..errors import BadRequest
from . import status
from .calls import NEVER, PREFIX_BYTES, Call, pack_prefix
from .messages import read_id, stream_error, stream_response
from .status import GOOD, HEAD, Failure

# A stream on which nothing happens; its client has to say something, or begin again.
STREAM_IDLE_S = 300.0


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
        if self._deadline != NEVER and self._deadline <= self._owner.now():
            self.expire()
            return
        message = self._current = self._waiting.popleft()
        caller = self._caller
        if caller is None:
            try:
                assert self._head is not None  # noqa: S101 - for the type checker: calls have one
                caller = self._caller = self._owner.admit(self._head, self._method.scope)
            except BadRequest as error:
                self._done(status.failure(error))
                return
        self.expires = NEVER
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

    @property
    def _is_waiting(self) -> bool:
        return self._busy

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
        http2.send(exchange, pack_prefix(0, len(response)) + response)
        self._answered(len(message) + PREFIX_BYTES)
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
            self.expires = self._owner.write_deadline()

    def _await_message(self) -> None:
        self.expires = self._within(STREAM_IDLE_S)
