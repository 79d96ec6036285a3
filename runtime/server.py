"""Listens, keeps the time limits, and drains: the server of one app."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
import threading
from typing import Callable, Iterator, Optional

from .access import Access
from .app import App, error_answer
from .connection import Connection, Shared
from .errors import BadRequest, InputOutputFault, UsageFault
from .framing import Admission, Admissions, BodyBudget
from .http1 import Head

SWEEP_S = 0.5
DRAIN_S = 30.0
BACKLOG = 128
# Two, so that the next request is decoded while the engine, which takes all cores, still runs.
WORKERS = 2
_MIN_BODY_BUDGET_BYTES = 64 << 20


def serve(
    app: App,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Optional[Callable[[str], None]] = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was begun and return.

    Args:
        app: What to serve.
        host: The name or address to listen on.
        port: 0 takes a free one.
        ready: Called with the server's URL once it listens; by default one line on standard error.

    Raises:
        UsageFault: an address or port that cannot be.
        InputOutputFault: the port is in use or not allowed.
    """
    server = Server(app, host=host, port=port)
    server.run(ready or _announce)


def _announce(url: str) -> None:
    print("ready on %s" % url, file=sys.stderr, flush=True)


class Server:
    """A listening socket and the loop behind it.

    Args:
        app: What to serve.
        host: The name or address to listen on.
        port: 0 takes a free one.

    Attributes:
        url: Where it listens.
    """

    def __init__(self, app: App, *, host: str = "127.0.0.1", port: int = 8000) -> None:
        self._app = app
        self._access = Access(host)
        self._socket = listen(host, port)
        address = self._socket.getsockname()
        name = "[%s]" % host if ":" in host else host
        self.url = "http://%s:%d" % (name, address[1])
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._stopped: Optional[asyncio.Event] = None
        self._shared: Optional[Shared] = None

    def run(self, ready: Callable[[str], None]) -> None:
        """Serve until `stop` or, in the main thread, a signal."""
        try:
            asyncio.run(self._main(ready))
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Begin to drain; may be called from any thread once `ready` was called."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has already ended
                loop.call_soon_threadsafe(self._begin_stop)

    def _begin_stop(self) -> None:
        if self._stopped is not None:
            if self._stopped.is_set() and self._shared is not None:
                # asked a second time: whoever waits, waits no longer
                for connection in list(self._shared.connections):
                    connection.abort()
            self._stopped.set()

    async def _main(self, ready: Callable[[str], None]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        loop = self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        limits = self._app.limits
        budget = max(_MIN_BODY_BUDGET_BYTES, 4 * (limits.json_bytes + limits.binary_bytes))
        with ThreadPoolExecutor(WORKERS, "edgepack-worker") as executor, self._signals(loop):
            shared = self._shared = Shared(
                loop=loop,
                admissions=Admissions(self._admit),
                budget=BodyBudget(budget),
                metrics=self._app.metrics,
                executor=executor,
                max_connections=limits.connections,
            )
            listener = await loop.create_server(
                lambda: Connection(shared), sock=self._socket, backlog=BACKLOG
            )
            sweeper = loop.create_task(_sweep(shared))
            self._app.ready = True
            ready(self.url)
            await self._stopped.wait()
            self._app.ready = False
            listener.close()
            await _drain(shared)
            sweeper.cancel()

    def _admit(self, head: Head) -> Admission:
        try:
            self._access.check(head)
        except BadRequest as error:
            answer = error_answer(error)
            return Admission(head, "refused", lambda _: answer, 0, answer)
        return self._app.admit(head)

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT; only a process's main thread can hear them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


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


async def _sweep(shared: Shared) -> None:
    """End connections whose time is up."""
    while True:
        await asyncio.sleep(SWEEP_S)
        now = shared.loop.time()
        for connection in [item for item in shared.connections if item.deadline <= now]:
            connection.expire()


async def _drain(shared: Shared) -> None:
    """Wait for what was begun, for a bounded time."""
    shared.draining = True
    for connection in list(shared.connections):
        connection.drain()
    deadline = shared.loop.time() + DRAIN_S
    while shared.connections and shared.loop.time() < deadline:
        await asyncio.sleep(0.02)
    for connection in list(shared.connections):
        connection.abort()
