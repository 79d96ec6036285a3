"""Streams of events to clients of the HTTP routes that came over HTTP/2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..http1 import EVENTS_TYPE, Answer
from .outgoing import Exchange
from .rest import Rest, answer_head

if TYPE_CHECKING:
    from ..connection import Shared
    from ..framing import Admission
    from .connection import GrpcConnection


class Events(Rest):
    """One request whose answers are sent one by one; the outlet of its event stream.

    Args:
        owner: The connection.
        exchange: Its stream.
        admission: What was decided from its head.
        caller: Who asks; None where everyone may.
        shared: What connections share.
        name: What the caller is called.
    """

    __slots__ = ("_events", "_name", "_shared", "_take_until")

    def __init__(
        self,
        owner: GrpcConnection,
        exchange: Exchange,
        admission: Admission,
        caller: Any,
        *,
        shared: Shared,
        name: str,
    ) -> None:
        super().__init__(owner, exchange, admission, caller)
        self._shared = shared
        self._name = name
        self._events: Any = None
        self._take_until = 0.0

    def work(self) -> None:
        """Begin; the connection calls this when there is room for the answer."""
        if not self._exchange.open or self._exchange.last is not None:
            return  # given up meanwhile
        route = self._admission.stream
        self._events = route.over(self._body, self, shared=self._shared, caller=self._name)
        self._owner.listeners[self] = None
        self._events.beat()

    def lost(self) -> None:
        """Nobody waits for further events."""
        events, self._events = self._events, None
        if events is not None:
            self._owner.listeners.pop(self, None)
            events.lose()
        super().lost()

    def expire(self) -> None:
        """Show that the stream is alive, or give up a client that takes nothing."""
        if self._events is None:
            super().expire()
        elif not self.is_free() and self._owner.now() >= self._take_until:
            self._owner.give_up(self._exchange)
        else:
            self._events.beat()

    def resume(self) -> None:
        """The connection has written all that it could."""
        if self._events is not None and self.is_free():
            self._events.resume()

    # What the event stream asks

    def begin(self) -> None:
        """Send the answer's head."""
        answer = self._settle(Answer(200, b"", EVENTS_TYPE))
        head = answer_head(self._owner.heads, answer.status, answer.fields)
        self._owner.http2.send_head(self._exchange, head)

    def send(self, data: bytes) -> None:
        """Send one or more events."""
        if self._exchange.open:
            self._owner.http2.send(self._exchange, data)
            self._take_until = self._owner.write_deadline()
            self._owner.answered()

    def close(self) -> None:
        """End the answer."""
        if self._exchange.open:
            self._owner.http2.finish(self._exchange, b"")
            self.expires = self._owner.write_deadline()
        self.lost()
        self._owner.answered()

    def finish(self, answer: Answer) -> None:
        """Send one whole answer instead."""
        self._done(answer)

    def is_free(self) -> bool:
        """Whether the client has taken what was sent."""
        return not self._exchange.queued and not self._owner.is_blocked

    def wake_after(self, seconds: float) -> None:
        """Have `expire` called once."""
        self.expires = self._owner.now() + seconds
