"""Listens, keeps the time limits, and drains: the server of one app."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Callable, Iterator, Optional, Tuple

from . import codecache
from .access import Access, check_exposure
from .app import PAGE_ROUTES, App
from .connection import IDLE_TIMEOUT_S, Connection, Shared
from .errors import BadRequest, DeviceError
from .failing import error_answer
from .framing import Admission, Admissions, BodyBudget
from .http1 import Head
from .listening import handed_socket, listen
from .logs import log
from .loop import Listener, Loop, Stream
from .options import ServeOptions
from .scheduling import Scheduler

if TYPE_CHECKING:
    from .closed.door import Door
    from .handover import Handover, Succession
    from .systemd import Notifier

TICK_S = 0.5
DRAIN_S = 30.0
WORKERS_END_S = 5.0
# What a service manager grants a successor that is starting, from every tick on.
STILL_STARTING_S = 60.0
# Two, so that the next request is decoded while the engine, which takes all cores, still runs.
WORKERS = 2
QUEUE = 64
_MIN_BODY_BUDGET_BYTES = 64 << 20


def serve(
    app: App,
    options: Optional[ServeOptions] = None,
    *,
    ready: Optional[Callable[[str], None]] = None,
    handover: Optional[Callable[[], Handover]] = None,
    succession: Optional[Succession] = None,
    look: Optional[Callable[[], None]] = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was begun and return.

    Args:
        app: What to serve.
        options: Where and how; None for the defaults.
        ready: Called with the server's URL once it listens; by default one line on standard error.
        handover: Makes what SIGHUP leaves the socket to, if another release lies there by then.
        succession: What an earlier process has handed over.
        look: Called about twice a second; may not wait for anything.

    Raises:
        UsageFault: an address or port that cannot be.
        InputOutputFault: the port is in use or not allowed.
    """
    options = options or ServeOptions()
    log.configure(form=options.log, access=options.access_log)
    server = Server(app, options, handover=handover, succession=succession, look=look)
    codecache.keep()  # the release was verified before there was an app of it
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

    def __init__(
        self,
        app: App,
        options: Optional[ServeOptions] = None,
        *,
        handover: Optional[Callable[[], Handover]] = None,
        succession: Optional[Succession] = None,
        look: Optional[Callable[[], None]] = None,
    ) -> None:
        options = options or ServeOptions()
        handed = handed_socket() if succession is None else succession.listening
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
        self._names = () if self._door is None else self._door.names
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
        # A successor speaks with the service manager once the process before it has named it.
        self._notifier = None if succession is not None else _notifier()
        self._make_handover = handover
        self._handover: Optional[Handover] = None
        self._succession = succession
        self._look = look
        self._stopping = False
        self._succeeded = False
        self._trouble = ""
        self._give_up_at = 0.0

    def run(self, ready: Callable[[str], None]) -> None:
        """Serve until `stop` or, in the main thread, a signal."""
        loop, shared = self._loop, self._shared
        listener = Listener(loop, self._socket, self._accept)
        try:
            with self._signals():
                self._app.ready = True
                if self._succession is not None:
                    self._succession.ready(loop, self._take_over)
                ready(self.url)
                self._tell_ready()
                over = lambda: self._stopping or self._succeeded  # noqa: E731 - asked every turn
                loop.run(over, lambda: self._tick(listener), TICK_S)
                listener.close()
                shared.draining = True
                if self._succeeded:
                    self._outlive(listener)
                self._app.ready = False
                log.event("drain")
                if self._notifier is not None:
                    self._notifier.stopping()
                for connection in list(shared.connections):
                    connection.drain()
                self._give_up_at = loop.time() + DRAIN_S
                loop.run(self._is_drained, lambda: self._tick(listener), TICK_S)
        finally:
            listener.close()
            if self._handover is not None:
                self._handover.close(loop)
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

    def _outlive(self, listener: Listener) -> None:
        """Answer who is still connected once more, telling them to connect anew.

        Clients keep connections open and send on them without asking: to close one that is idle
        now could cost the request that is on its way.
        """
        self._give_up_at = self._loop.time() + IDLE_TIMEOUT_S

        def is_over() -> bool:
            if self._stopping or self._is_drained():
                return True
            return self._handover is not None and self._handover.is_lost

        self._loop.run(is_over, lambda: self._tick(listener), TICK_S)

    def _reload(self) -> None:
        if self._notifier is not None:
            self._notifier.reloading()
        if self._door is not None:
            self._door.reload()
            self._follow_names()
        self._trouble = ""
        self._look_for_successor()
        self._tell_ready()

    def _take_over(self) -> None:
        """Speak with the service manager from now on, as its main process."""
        self._notifier = _notifier()
        self._tell_ready()

    def _tell_ready(self) -> None:
        """Tell the service manager that this process serves, unless a successor is starting."""
        if self._notifier is None or (self._handover is not None and self._handover.under_way):
            return
        status = "serving %s %s on %s" % (self._app.name, self._app.version, self.url)
        if self._trouble:
            status += "; another release does not start: %s" % self._trouble
        self._notifier.ready(status)

    def _follow_names(self) -> None:
        """Answer for the names of a new certificate, and no more for those of the old one."""
        if self._door is not None and self._door.names != self._names:
            self._names = self._door.names
            self._access = make_access(self._options, self._door)
            self._shared.check = self._access.check
            self._shared.admissions.forget()

    def _look_for_successor(self) -> None:
        """Start the release that lies in this one's place, if it is another."""
        if self._make_handover is None or self._succeeded:
            return
        if self._handover is None:
            self._handover = self._make_handover()
        try:
            if self._handover.is_due():
                self._handover.begin(self._loop, self._socket, self._succeed)
        except (DeviceError, OSError) as error:
            self._succeed(None, str(error))

    def _succeed(self, pid: Optional[int], reason: str) -> None:
        if pid is None:
            log.event("not_succeeded", level="error", reason=reason)
            self._trouble = reason
            self._tell_ready()
            return
        self._succeeded = True
        log.event("succeeded", pid=pid)
        if self._notifier is not None:
            self._notifier.hand_over(pid)
            self._notifier = None  # the watchdog is the successor's to feed

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
        if not self._stopping and not self._succeeded:
            listener.resume()
        if self._look is not None:
            self._look()
        if self._handover is not None:
            self._handover.look(self._loop)
            if self._notifier is not None and self._handover.under_way:
                self._notifier.extend(STILL_STARTING_S)  # else the reload is called a failure
        if self._door is not None:
            self._door.look()
            self._follow_names()

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
        if self._door is not None or self._make_handover is not None:
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
    if not _is_closed(options):
        return None
    from .closed.door import Door  # a server on loopback alone needs neither it nor `ssl`

    return Door(options, app.metrics, http2=_has_grpc(app))


def import_door(options: ServeOptions) -> None:
    """Import now what `open_door` would: 35 ms of a start, while something else is waited for."""
    if _is_closed(options):
        from .closed import door

        door.import_all(options)


def _is_closed(options: ServeOptions) -> bool:
    return bool(options.tls_cert or options.tls_key or options.tls_client_ca or options.keys)


def make_access(options: ServeOptions, door: Optional[Door]) -> Access:
    """Return the checks of `Host` and `Origin`."""
    names = options.names + (door.names if door is not None else ())
    secure = door is not None and door.has_tls
    return Access(options.host, names=names, origins=options.allow_origins, secure=secure)


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


def _serve_http2(shared: Shared, stream: Stream, data: bytes, name: str) -> None:
    from .grpc.connection import GrpcConnection

    GrpcConnection(shared, stream, data, name)
