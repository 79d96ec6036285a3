"""Speaks with the service manager: readiness, watchdog, sockets handed over. No library.

sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3) say how.
"""

from __future__ import annotations

import os
import socket
import time
from typing import List, MutableMapping, Optional

FIRST_DESCRIPTOR = 3
_MAX_STATUS_CHARACTERS = 200
# A datagram that does not go out within this is lost: the manager must not stop the loop.
_SEND_TIMEOUT_S = 0.2


class Notifier:
    """Tells the service manager how a server is; does nothing without one.

    `WATCHDOG_PID` is removed, so that a process which takes over from this one, and was not there
    when the manager set it, feeds the watchdog too.

    Args:
        environment: None for this process's.

    Attributes:
        watchdog_s: How often `feed` has something to say; None without a watchdog.
    """

    def __init__(self, environment: Optional[MutableMapping[str, str]] = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environment) if self._address else None
        self._feed_at = 0.0

    def ready(self, status: str = "") -> None:
        """Tell that requests are answered from now on; also after a reload."""
        self._send("READY=1", *_status(status))
        self._feed_at = 0.0

    def status(self, text: str) -> None:
        """Tell people, in `systemctl status`, what is going on."""
        self._send(*_status(text))

    def reloading(self) -> None:
        """Tell that certificates or keys are being read again; `ready` ends it."""
        clock = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._send("RELOADING=1", "MONOTONIC_USEC=%d" % (clock // 1000))

    def stopping(self) -> None:
        """Tell that what was begun is answered, and nothing else."""
        self._send("STOPPING=1", *_status("answering what was begun"))

    def hand_over(self, pid: int) -> None:
        """Tell that another process is the service from now on, and is ready; ends a reload.

        In one message, for the manager may listen to nobody but the main process: whatever the
        other one says arrives after this, and the watchdog waits for it from now on.
        """
        self._send("MAINPID=%d" % pid, "READY=1", "WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for more time to start, to stop or to reload, from now on."""
        self._send("EXTEND_TIMEOUT_USEC=%d" % (seconds * 1e6))

    def feed(self, now: float) -> None:
        """Tell the watchdog that the loop turns; the loop alone may call this, often.

        Args:
            now: The loop's time, in seconds.
        """
        if self.watchdog_s is not None and now >= self._feed_at:
            self._feed_at = now + self.watchdog_s
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not (self._address and lines):
            return
        message = "\n".join(lines).encode("utf-8", "replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(_SEND_TIMEOUT_S)
                channel.sendto(message, self._address)
        except OSError:
            pass  # a manager that does not listen has decided so


def take_sockets(environment: Optional[MutableMapping[str, str]] = None) -> List[socket.socket]:
    """Return the listening sockets that the service manager handed to this process.

    The variables are removed, so that no child takes them for its own.

    Args:
        environment: None for this process's.
    """
    environment = os.environ if environment is None else environment
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit() and len(count) < 4):
        return []
    found = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        try:
            handed = socket.socket(fileno=descriptor)
        except OSError:
            continue  # not a socket: none of ours
        handed.set_inheritable(False)
        if _listens(handed):
            found.append(handed)
        else:
            handed.close()
    return found


def _listens(handed: socket.socket) -> bool:
    """Say whether a socket accepts connections over TCP."""
    return (
        handed.family in (socket.AF_INET, socket.AF_INET6)
        and handed.type == socket.SOCK_STREAM
        and bool(handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )


def _address(text: str) -> str:
    """Return where to send to; the first byte of an abstract name is a zero, not `@`."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _watchdog_s(environment: MutableMapping[str, str]) -> Optional[float]:
    """Return half of the watchdog's time, as sd_watchdog_enabled(3) advises."""
    text = environment.get("WATCHDOG_USEC", "")
    pid = environment.pop("WATCHDOG_PID", None)
    if not (text.isascii() and text.isdigit()) or pid not in (None, str(os.getpid())):
        return None
    return int(text) / 2e6 or None


def _status(text: str) -> List[str]:
    line = " ".join(text.split())[:_MAX_STATUS_CHARACTERS]
    return ["STATUS=" + line] if line else []
