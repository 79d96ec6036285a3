"""Who may ask: the `Host` and `Origin` of a request, against web pages that reach for loopback.

A page can make a browser send requests to 127.0.0.1, and with DNS rebinding even read the answers
under its own name. Loopback alone is therefore no protection.
"""

from __future__ import annotations

import re
import socket
from typing import Optional

from .errors import BadRequest
from .http1 import Head

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._-]{1,253})(?::[0-9]{1,5})?")
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))
_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to


class Access:
    """Checks requests to a server bound to one address.

    Args:
        address: What the server was asked to listen on: a name or an IP address.
    """

    def __init__(self, address: str) -> None:
        names = set(_LOOPBACK)
        # Any numeric address is ours then, and a number cannot be rebound by a name server.
        self._any_number = address in _WILDCARDS
        if self._any_number:
            host = socket.gethostname().lower()
            names.update((host, host.partition(".")[0], host.partition(".")[0] + ".local"))
        else:
            names.add("[%s]" % address.lower() if ":" in address else address.lower())
        self._names = frozenset(names)

    def check(self, head: Head) -> None:
        """Check one request.

        Raises:
            BadRequest: the request was meant for another host (421) or a foreign page sent it
                (403).
        """
        if head.authority is not None and not self._is_ours(head.authority):
            raise BadRequest("this server does not answer for `%s`" % head.authority[:80], 421)
        origin: Optional[str] = head.fields.get("origin")
        if origin is not None:
            scheme, _, authority = origin.partition("://")
            if (
                scheme not in ("http", "https")
                or authority.lower() != (head.authority or "").lower()
            ):
                raise BadRequest("pages of `%s` may not use this server" % origin[:80], 403)

    def _is_ours(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        host = match.group(1).lower()
        if host in self._names:
            return True
        return self._any_number and _is_number(host)


def _is_number(host: str) -> bool:
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        socket.inet_pton(family, host.strip("[]"))
    except OSError:
        return False
    return True
