"""Listens, keeps the time limits, and drains: the server of one app."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Callable, Iterator, Optional, Tuple

from .access import Access, check_exposure
from .app import PAGE_ROUTES, App, error_answer
from .connection import Connection, Shared
from .errors import BadRequest, InputOutputFault, UsageFault
from .framing import Admission, Admissions, BodyBudget
from .http1 import Head
from .logs import log
from .loop import Listener, Loop, Stream
from .options import ServeOptions
from .scheduling import Scheduler

if TYPE_CHECKING:
    from .closed.door import Door
    from .systemd import Notifier

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
    options = options or ServeOptions()
    log.configure(form=options.log, access=options.access_log)
    server = Server(app, options)
    # What was made until now lives as long as the process: no collection has to walk over it.
    gc.collect()
    gc.freeze()
    server.run(ready or _announce)


def _announce(url: str) -> None:
    log.event("ready", url=url)


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
        handed = _handed_socket()
        if handed is not None:
            host, port = handed.getsockname()[:2]
            options = options._replace(host=host, port=port)
        host = options.host
        self._app = app
        if not options.page:
            app.leave_out(PAGE_ROUTES)
        check_exposure(options)
        self._options = options
        self._door = open_door(app, options)
        self._access = make_access(options, self._door)
        self._socket = handed or listen(host, options.port)
        address = self._socket.getsockname()
        name = "[%s]" % host if ":" in host else host
        has_tls = self._door is not None and self._door.has_tls
        self.url = "%s://%s:%d" % ("https" if has_tls else "http", name, address[1])
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
            http2=_serve_http2 if _has_grpc(app) else None,
            guard=None if self._door is None else self._door.guard,
        )
        if self._door is not None and has_tls:
            self._shared.open_stream = partial(self._door.wrap, loop)
        self._shared.check = self._access.check
        app.metrics.pending = lambda: self._scheduler.pending
        self._notifier = _notifier()
        self._stopping = False
        self._give_up_at = 0.0

    def run(self, ready: Callable[[str], None]) -> None:
        """Serve until `stop` or, in the main thread, a signal."""
        loop, shared = self._loop, self._shared
        listener = Listener(loop, self._socket, self._accept)
        try:
            with self._signals():
                self._app.ready = True
                ready(self.url)
                if self._notifier is not None:
                    self._notifier.ready("serving %s on %s" % (self._app.name, self.url))
                loop.run(lambda: self._stopping, lambda: self._tick(listener), TICK_S)
                self._app.ready = False
                log.event("drain")
                if self._notifier is not None:
                    self._notifier.stopping()
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

    def _accept(self, connected: socket.socket) -> None:
        try:
            Connection(self._shared, connected)
        except OSError:
            connected.close()  # the client has gone before TLS began

    def _reload(self) -> None:
        if self._notifier is not None:
            self._notifier.reloading()
        if self._door is not None:
            self._door.reload()
        if self._notifier is not None:
            self._notifier.ready()

    def _begin_stop(self) -> None:
        if self._stopping:
            self._give_up_at = 0.0
        self._stopping = True

    def _is_drained(self) -> bool:
        return not self._shared.connections or self._loop.time() >= self._give_up_at

    def _tick(self, listener: Listener) -> None:
        """End connections whose time is up."""
        now = self._loop.time()
        if self._notifier is not None:
            self._notifier.feed(now)  # from here, so that a loop that hangs is found out
        for connection in [item for item in self._shared.connections if item.deadline <= now]:
            connection.expire()
        if self._app.inference.sequences is not None:
            self._app.inference.sequences.sweep()
        if not self._stopping:
            listener.resume()
        if self._door is not None:
            before = self._door.names
            self._door.look()
            if self._door.names != before:
                self._access = make_access(self._options, self._door)
                self._shared.check = self._access.check

    def _admit(self, head: Head) -> Admission:
        try:
            self._access.check(head)
        except BadRequest as error:
            answer = error_answer(error)
            return Admission(head, "refused", lambda _: answer, 0, answer)
        preflight = self._access.answer_preflight(head)
        if preflight is None:
            admission = self._app.admit(head)
        else:
            allowed = preflight
            admission = Admission(head, "preflight", lambda _: allowed, 0)
        fields = self._access.cors_fields(head)
        return admission._replace(fields=fields) if fields else admission

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, read files again on SIGHUP.

        Only a process's main thread can hear them.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers: Tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, lambda *_: self.stop()) for number in numbers]
        if self._door is not None:
            numbers += (signal.SIGHUP,)
            again = signal.signal(signal.SIGHUP, lambda *_: self._loop.from_thread(self._reload))
            before.append(again)
        try:
            yield
        finally:
            for number, handler in zip(numbers, before):  # noqa: B905 - not in CPython 3.8
                signal.signal(number, handler)


def open_door(app: App, options: ServeOptions) -> Optional[Door]:
    """Return what closes the server as the options ask; None where it is open."""
    if not (options.tls_cert or options.tls_key or options.tls_client_ca or options.keys):
        return None
    from .closed.door import Door  # a server on loopback alone needs neither it nor `ssl`

    return Door(options, app.metrics, http2=_has_grpc(app))


def make_access(options: ServeOptions, door: Optional[Door]) -> Access:
    """Return the checks of `Host` and `Origin`."""
    names = options.names + (door.names if door is not None else ())
    secure = door is not None and door.has_tls
    return Access(options.host, names=names, origins=options.allow_origins, secure=secure)


def _handed_socket() -> Optional[socket.socket]:
    """Return the listening socket that a service manager made for us, if it did."""
    if "LISTEN_FDS" not in os.environ:
        return None
    from .systemd import take_sockets

    found = take_sockets()
    if len(found) > 1:
        raise UsageFault("%d sockets were handed over where one is served" % len(found))
    return found[0] if found else None


def _notifier() -> Optional[Notifier]:
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    from .systemd import Notifier

    return Notifier()


def _has_grpc(app: App) -> bool:
    return bool(app.manifest.get("server", {}).get("grpc"))


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
