"""Waits for sockets with epoll, writes without blocking, hands long work to threads.

asyncio would do; importing it costs 40 ms of a start and 9 MB of memory, a request on it 6 us.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from functools import partial
from typing import Any, Callable, Deque, Dict, List, Protocol, Tuple

READ_BYTES = 65536
_MAX_EVENTS = 64
_MAX_ACCEPTS = 32
# Out of descriptors or memory: accepting again at once would spin.
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_READ = select.EPOLLIN | select.EPOLLRDHUP
_TROUBLE = select.EPOLLHUP | select.EPOLLERR


class StreamProtocol(Protocol):
    """What a stream tells about its connection."""

    def data_received(self, data: bytes) -> None:
        """Take bytes, never empty."""

    def eof_received(self) -> bool:
        """Take note that no more bytes come; return whether to keep the way back open."""

    def pause_writing(self) -> None:
        """Stop writing: the peer does not take what was written."""

    def resume_writing(self) -> None:
        """Go on: the peer has taken everything."""

    def connection_lost(self) -> None:
        """Take note that the stream is closed; called exactly once."""


class Loop:
    """Calls back when sockets are ready, when other threads ask, and now and then.

    Attributes:
        crowd: Descriptors that were ready at once when the loop last looked.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: Dict[int, Callable[[int], None]] = {}
        self._soon: Deque[Callable[[], None]] = deque()
        self._from_threads: Deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = os.pipe()
        for end in (self._wake_in, self._wake_out):
            os.set_blocking(end, False)
        self.watch(self._wake_in, select.EPOLLIN, self._on_wake)
        self.time = time.monotonic
        self.crowd = 0

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback` with the events that happen to a descriptor."""
        self._callbacks[descriptor] = callback
        self._epoll.register(descriptor, events)

    def rewatch(self, descriptor: int, events: int) -> None:
        """Change the events that are waited for."""
        self._epoll.modify(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor, before it is closed."""
        del self._callbacks[descriptor]
        self._epoll.unregister(descriptor)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back in the next round, after other connections had their turn."""
        self._soon.append(callback)

    def from_thread(self, callback: Callable[[], None]) -> None:
        """Call back in the loop; may be called by any thread and by a signal handler."""
        self._from_threads.append(callback)
        try:
            os.write(self._wake_out, b"\0")
        except BlockingIOError:
            pass  # the pipe is full of wake-ups already
        except OSError:
            pass  # the loop has ended

    def run(self, is_over: Callable[[], bool], tick: Callable[[], None], tick_s: float) -> None:
        """Turn until `is_over`, with a `tick` about every `tick_s` seconds."""
        poll, callbacks = self._epoll.poll, self._callbacks
        next_tick = self.time() + tick_s
        while not is_over():
            # copied: what is put off during this round belongs to the next one
            due, self._soon = self._soon, deque()
            for callback in due:
                callback()
            ready = poll(0 if self._soon else tick_s, _MAX_EVENTS)
            self.crowd = len(ready)
            for descriptor, events in ready:
                found = callbacks.get(descriptor)
                if found is not None:  # else closed by a callback of this very round
                    found(events)
            if self.time() >= next_tick:
                tick()
                next_tick = self.time() + tick_s

    def close(self) -> None:
        """Free the loop's own descriptors."""
        self._epoll.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def _on_wake(self, _: int) -> None:
        os.read(self._wake_in, 4096)
        while self._from_threads:
            self._from_threads.popleft()()


class Listener:
    """Accepts connections until it is closed."""

    def __init__(
        self, loop: Loop, listening: socket.socket, accepted: Callable[[socket.socket], object]
    ) -> None:
        self._loop = loop
        self._socket = listening
        self._accepted = accepted
        self._paused = False
        listening.setblocking(False)
        loop.watch(listening.fileno(), select.EPOLLIN, self._on_ready)

    def resume(self) -> None:
        """Accept again if accepting was given up for lack of descriptors or memory."""
        if self._paused:
            self._paused = False
            self._loop.rewatch(self._socket.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Stop listening."""
        if self._socket.fileno() >= 0:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()

    def _on_ready(self, _: int) -> None:
        for _turn in range(_MAX_ACCEPTS):
            try:
                connected, _address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._paused = True
                    self._loop.rewatch(self._socket.fileno(), 0)
                    return
                continue  # the client has gone before we looked
            self._accepted(connected)


class Stream:
    """A connected socket: what is read goes to a protocol, what is written never blocks."""

    __slots__ = (
        "_closing", "_descriptor", "_events", "_loop", "_lost", "_out", "_protocol", "_shut",
        "_socket",
    )  # fmt: skip

    def __init__(self, loop: Loop, connected: socket.socket, protocol: StreamProtocol) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = loop
        self._socket = connected
        self._descriptor = connected.fileno()
        self._protocol = protocol
        self._out = bytearray()  # written, not yet taken by the kernel
        self._events = _READ
        self._closing = False
        self._shut = False  # close our direction once all is sent
        self._lost = False
        loop.watch(self._descriptor, self._events, self._on_ready)

    def hand_over(self, protocol: StreamProtocol) -> None:
        """Tell another protocol of this connection from now on."""
        self._protocol = protocol

    @property
    def peer(self) -> str:
        """The other end's address; empty where it has none, or has gone."""
        try:
            name = self._socket.getpeername()
        except OSError:
            return ""
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def unsent(self) -> int:
        """Bytes that wait for the peer."""
        return len(self._out)

    @property
    def is_closing(self) -> bool:
        """Whether anything written now would be lost."""
        return self._closing or self._lost

    def write(self, data: bytes) -> None:
        """Send, or keep what the kernel does not take and say so to the protocol."""
        if self._closing or self._lost:
            return
        if self._out:
            self._out += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return
        if sent < len(data):
            self._out += memoryview(data)[sent:]
            self._listen(self._events | select.EPOLLOUT)
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        """Close our direction once everything is sent, and keep reading."""
        self._shut = True
        if not self._out:
            self._shutdown()

    def close(self) -> None:
        """Close once everything is sent."""
        self._closing = True
        if not self._out:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        if not self._lost:
            self._lost = True
            self._loop.unwatch(self._descriptor)
            self._socket.close()
            self._out = bytearray()
            self._loop.soon(self._protocol.connection_lost)

    def pause_reading(self) -> None:
        """Leave what comes in the kernel, which slows the peer down."""
        self._listen(self._events & ~_READ)

    def resume_reading(self) -> None:
        """Read again."""
        self._listen(self._events | _READ)

    def _listen(self, events: int) -> None:
        if events != self._events and not self._lost:
            self._events = events
            self._loop.rewatch(self._descriptor, events)

    def _on_ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & _READ and self._events & _READ and not self._lost:
            self._read()
        elif events & _TROUBLE:
            self.abort()

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if data:
            self._protocol.data_received(data)
            return
        self._listen(self._events & ~_READ)
        if not self._protocol.eof_received():
            self.close()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        del self._out[:sent]
        if self._out:
            return
        self._listen(self._events & ~select.EPOLLOUT)
        if self._closing:
            self.abort()
            return
        if self._shut:
            self._shutdown()
        self._protocol.resume_writing()

    def _shutdown(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()


class Workers:
    """A few threads, started when first needed, whose results come back into the loop.

    Args:
        loop: Where the results are heard.
        count: The most threads.
    """

    def __init__(self, loop: Loop, count: int) -> None:
        self._loop = loop
        self._count = count
        self._threads: List[threading.Thread] = []
        self._waiting: Deque[Tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._ready = threading.Semaphore(0)
        self._open = 0

    @property
    def waiting(self) -> int:
        """How much work no thread has begun."""
        return len(self._waiting)

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run `work` in a thread, then `done` with its result in the loop."""
        self._open += 1
        if self._open > len(self._threads) < self._count:
            thread = threading.Thread(target=self._run, name="edgepack-worker", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._waiting.append((work, done))
        self._ready.release()

    def close(self, timeout_s: float) -> None:
        """End the threads once they are idle; those that are not in time are left behind."""
        for _ in self._threads:
            self._ready.release()
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._ready.acquire()
            if not self._waiting:
                return
            work, done = self._waiting.popleft()
            result = work()
            self._loop.from_thread(partial(self._finish, done, result))
            del work, done, result  # a thread that waits must not keep a request alive

    def _finish(self, done: Callable[[Any], None], result: Any) -> None:
        self._open -= 1
        done(result)
