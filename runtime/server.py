"""Listens, keeps the time limits, and drains: the server of one app."""

from __future__ import annotations

import contextlib
import errno
import gc
import signal
import socket
import sys
import threading
from typing import Callable, Iterator, Optional

from .access import Access
from .app import PAGE_ROUTES, App, error_answer
from .connection import Connection, Shared
from .errors import BadRequest, InputOutputFault, UsageFault
from .framing import Admission, Admissions, BodyBudget
from .http1 import Head
from .loop import Listener, Loop, Stream
from .options import ServeOptions
from .scheduling import Scheduler

TICK_S = 0.5
DRAIN_S = 30.0
WORKERS_END_S = 5.0
BACKLOG = 128
# Two, so that the next request is decoded while the engine, which takes all cores, still runs.
WORKERS = 2
QUEUE = 64
_MIN_BODY_BUDGET_BYTES = 64 << 20


def serve(
    app: App,
    options: Optional[ServeOptions] = None,
    *,
    ready: Optional[Callable[[str], None]] = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was begun and return.

    Args:
        app: What to serve.
        options: Where and how; None for the defaults.
        ready: Called with the server's URL once it listens; by default one line on standard error.

    Raises:
        UsageFault: an address or port that cannot be.
        InputOutputFault: the port is in use or not allowed.
    """
    server = Server(app, options)
    # What was made until now lives as long as the process: no collection has to walk over it.
    gc.collect()
    gc.freeze()
    server.run(ready or _announce)


def _announce(url: str) -> None:
    print("ready on %s" % url, file=sys.stderr, flush=True)


class Server:
    """A listening socket and the loop behind it.

    Args:
        app: What to serve.
        options: Where and how; None for the defaults.

    Attributes:
        url: Where it listens.
    """

    def __init__(self, app: App, options: Optional[ServeOptions] = None) -> None:
        options = options or ServeOptions()
        host = options.host
        self._app = app
        if not options.page:
            app.leave_out(PAGE_ROUTES)
        self._access = Access(host)
        self._socket = listen(host, options.port)
        address = self._socket.getsockname()
        name = "[%s]" % host if ":" in host else host
        self.url = "http://%s:%d" % (name, address[1])
        limits = app.limits
        budget = max(_MIN_BODY_BUDGET_BYTES, 4 * (limits.json_bytes + limits.binary_bytes))
        self._loop = loop = Loop()
        self._scheduler = make_scheduler(app, loop, options)
        self._shared = Shared(
            app=app,
            loop=loop,
            admissions=Admissions(self._admit),
            budget=BodyBudget(budget),
            scheduler=self._scheduler,
            max_connections=limits.connections,
            http2=_serve_http2 if app.manifest.get("server", {}).get("grpc") else None,
        )
        self._stopping = False
        self._give_up_at = 0.0

    def run(self, ready: Callable[[str], None]) -> None:
        """Serve until `stop` or, in the main thread, a signal."""
        loop, shared = self._loop, self._shared
        listener = Listener(loop, self._socket, lambda connected: Connection(shared, connected))
        try:
            with self._signals():
                self._app.ready = True
                ready(self.url)
                loop.run(lambda: self._stopping, lambda: self._tick(listener), TICK_S)
                self._app.ready = False
                listener.close()
                shared.draining = True
                for connection in list(shared.connections):
                    connection.drain()
                self._give_up_at = loop.time() + DRAIN_S
                loop.run(self._is_drained, lambda: self._tick(listener), TICK_S)
        finally:
            listener.close()
            for connection in list(shared.connections):
                connection.abort()
            self._scheduler.close(WORKERS_END_S)
            loop.close()

    def stop(self) -> None:
        """Begin to drain; asked a second time, wait no longer. May be called by any thread."""
        self._loop.from_thread(self._begin_stop)

    def _begin_stop(self) -> None:
        if self._stopping:
            self._give_up_at = 0.0
        self._stopping = True

    def _is_drained(self) -> bool:
        return not self._shared.connections or self._loop.time() >= self._give_up_at

    def _tick(self, listener: Listener) -> None:
        """End connections whose time is up."""
        now = self._loop.time()
        for connection in [item for item in self._shared.connections if item.deadline <= now]:
            connection.expire()
        if self._app.inference.sequences is not None:
            self._app.inference.sequences.sweep()
        if not self._stopping:
            listener.resume()

    def _admit(self, head: Head) -> Admission:
        try:
            self._access.check(head)
        except BadRequest as error:
            answer = error_answer(error)
            return Admission(head, "refused", lambda _: answer, 0, answer)
        return self._app.admit(head)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT; only a process's main thread can hear them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, lambda *_: self.stop()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before):  # noqa: B905 - not in CPython 3.8
                signal.signal(number, handler)


def make_scheduler(app: App, loop: Loop, options: ServeOptions) -> Scheduler:
    """Return what decides on an app's requests, as the manifest and the options ask."""
    server = app.manifest.get("server", {})
    asked = server.get("batching")
    batching = None
    if asked and app.inference.sequences is None:
        from .batching import Batching

        batching = Batching(app.inference, int(asked["rows"]))
    workers = options.workers or server.get("workers") or (1 if batching else WORKERS)
    return Scheduler(
        loop,
        workers=workers,
        queue=options.queue or server.get("queue") or QUEUE,
        metrics=app.metrics,
        batching=batching,
        deadline_s=options.deadline_s or server.get("deadline_s") or None,
    )


def _serve_http2(shared: Shared, stream: Stream, data: bytes) -> None:
    from .grpc.connection import GrpcConnection

    GrpcConnection(shared, stream, data)


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        UsageFault: an address or port that cannot be.
        InputOutputFault: the port is in use or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UsageFault("`%d` is no port" % port, hint="ports are 0 to 65535; 0 takes a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise _explain(error, host, port) from error


def _explain(error: OSError, host: str, port: int) -> InputOutputFault:
    other = "choose another with `--port`; 0 takes a free one"
    if error.errno == errno.EADDRINUSE:
        return InputOutputFault("port %d is in use" % port, hint=other)
    if error.errno == errno.EACCES:
        return InputOutputFault(
            "port %d needs more rights than this process has" % port, hint=other
        )
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return InputOutputFault(
            "this machine has no address `%s`" % host, hint="127.0.0.1 serves this machine alone"
        )
    return InputOutputFault("cannot listen on `%s` port %d: %s" % (host, port, error.strerror))
