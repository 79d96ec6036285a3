"""Hands a listening socket to the release that has taken this one's place, without a lost request.

The successor is a process of its own: it verifies its release, passes its golden samples, runs once
to warm up, and says that it is ready before this process stops accepting. Where any of that fails
it ends, and this process goes on as if nothing had been.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Callable, List, MutableMapping, NamedTuple, Optional

from .errors import DeviceError
from .options import SUCCEEDS

if TYPE_CHECKING:
    from .loop import Loop

# Unpacking, verifying and loading gigabytes takes its time; nobody waits for it.
START_S = 600.0
_READY = b"1"


class Succession(NamedTuple):
    """What a process was given by the one that it takes over from.

    Attributes:
        listening: The socket, which goes on listening all the while.
        announce: Where to say that this process is ready.
    """

    listening: socket.socket
    announce: int

    def ready(self, loop: Loop, taken_over: Callable[[], None]) -> None:
        """Tell the other process that it may stop accepting.

        Args:
            loop: Where its answer is heard.
            taken_over: Called in the loop once it has told the service manager who serves now,
                which listens to no other process until then, or once it has gone.
        """
        try:
            os.write(self.announce, _READY)
        except OSError:
            pass  # it has gone, so there is nobody to take over from
        # nothing is waited for but the other end's being closed, which is always told
        loop.watch(self.announce, 0, lambda _: self._close(loop, taken_over))

    def _close(self, loop: Loop, taken_over: Callable[[], None]) -> None:
        loop.unwatch(self.announce)
        os.close(self.announce)
        taken_over()


def inherited(environment: Optional[MutableMapping[str, str]] = None) -> Optional[Succession]:
    """Return what another process handed over, None where there is none; it is asked once.

    Args:
        environment: None for this process's; the variable is taken out of it.
    """
    environment = os.environ if environment is None else environment
    numbers = environment.pop(SUCCEEDS, "").split(",")
    try:
        descriptor, announce = (int(number) for number in numbers)
        handed = socket.socket(fileno=descriptor)
    except (ValueError, OSError):
        return None
    os.set_inheritable(descriptor, False)
    os.set_inheritable(announce, False)
    return Succession(handed, announce)


class Handover:
    """Starts the release that lies at a path now, if it is another one.

    Args:
        path: As this process was started with it: perhaps a link that points elsewhere by now.
        digest: What this process serves.
        argv: How to start the successor; None for the way in which this process was started.
    """

    def __init__(self, path: str, digest: str, argv: Optional[List[str]] = None) -> None:
        self._path = path
        self._digest = digest
        self._argv = argv
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._successor: Optional[subprocess.Popen[bytes]] = None
        self._heard = -1
        self._give_up_at = 0.0

    @property
    def under_way(self) -> bool:
        """Whether a successor has been started and has not answered yet."""
        return self._child is not None

    def is_due(self) -> bool:
        """Say whether another release lies there.

        Raises:
            DeviceError: what lies there is no release.
            OSError: nothing can be read there.
        """
        return not self.under_way and read_digest(self._path) != self._digest

    def begin(
        self, loop: Loop, listening: socket.socket, done: Callable[[Optional[int], str], None]
    ) -> None:
        """Start the successor.

        Args:
            loop: Where its answer is heard.
            listening: Goes to the successor as well; this process keeps its own.
            done: Called in the loop with the successor's process id once it is ready, else with
                None and what went wrong.

        Raises:
            OSError: it cannot be started.
        """
        heard, announce = os.pipe()
        try:
            # not started in a session of its own: whoever ends this process group means it too
            self._child = subprocess.Popen(
                self._argv or own_command(),
                pass_fds=(listening.fileno(), announce),
                env={**os.environ, SUCCEEDS: "%d,%d" % (listening.fileno(), announce)},
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            os.close(heard)
            raise
        finally:
            os.close(announce)
        self._heard = heard
        self._give_up_at = loop.time() + START_S
        loop.watch(heard, select.EPOLLIN, lambda _: self._hear(loop, done))

    @property
    def is_lost(self) -> bool:
        """Whether the successor was ready and has ended since.

        Its exit status is left for the service manager, which inherits it when this process ends
        and hears of it no earlier.
        """
        if self._successor is None:
            return False
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._successor.pid, how) is not None

    def look(self, loop: Loop) -> None:
        """End a successor that takes too long; its silence is then heard as a failure."""
        if self._child is not None and loop.time() > self._give_up_at:
            self._child.kill()

    def close(self, loop: Loop) -> None:
        """End a successor that is not ready."""
        if self._child is None:
            return
        loop.unwatch(self._heard)
        os.close(self._heard)
        self._child.terminate()
        self._child.wait()
        self._child = None

    def _hear(self, loop: Loop, done: Callable[[Optional[int], str], None]) -> None:
        word = os.read(self._heard, 1)
        loop.unwatch(self._heard)
        child, self._child = self._child, None
        assert child is not None  # noqa: S101 - for the type checker: it is what was heard
        if word == _READY:
            self._successor = child
            done(child.pid, "")
            os.close(self._heard)  # no earlier: it tells the successor that `done` is through
            return
        os.close(self._heard)
        status = child.wait()  # it has closed its end: it is ending, or has ended
        if status < 0:
            done(None, "it was ended by %s" % signal.Signals(-status).name)
        else:
            done(None, "it ended with status %d" % status)


def read_digest(path: str) -> str:
    """Return the identity of the bundle file or release folder at a path.

    Raises:
        DeviceError: what lies there is no release.
        OSError: nothing can be read there.
    """
    if not os.path.isdir(path):
        from .archive import read_manifest

        return read_manifest(path).digest
    from .manifest import parse_manifest

    with open(os.path.join(path, "manifest.json"), "rb") as stream:
        return parse_manifest(stream.read()).digest


def own_command() -> List[str]:
    """Return the words that this process was started with, the interpreter's own included.

    Raises:
        DeviceError: the system does not tell.
    """
    try:
        with open("/proc/self/cmdline", "rb") as stream:
            words = stream.read().split(b"\0")[:-1]
    except OSError as error:
        raise DeviceError("this system does not tell how this process was started") from error
    return [os.fsdecode(word) for word in words]
