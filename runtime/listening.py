"""Where a server listens: a socket of its own, or the one that a service manager made."""

from __future__ import annotations

import errno
import os
import socket
from typing import Optional

from .errors import InputOutputFault, UsageFault

BACKLOG = 128


def handed_socket() -> Optional[socket.socket]:
    """Return the listening socket that a service manager made for us, if it did."""
    if "LISTEN_FDS" not in os.environ:
        return None
    from .systemd import take_sockets

    found = take_sockets()
    if len(found) > 1:
        raise UsageFault("%d sockets were handed over where one is served" % len(found))
    return found[0] if found else None


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
