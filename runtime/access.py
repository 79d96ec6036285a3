"""Who may ask: the `Host` and `Origin` of a request, against web pages that reach for loopback.

A page can make a browser send requests to 127.0.0.1, and with DNS rebinding even read the answers
under its own name. Loopback alone is therefore no protection. An address that others reach needs
TLS, or to be asked for in so many words.
"""

from __future__ import annotations

import re
import socket
from typing import Optional, Sequence

from .errors import BadRequest, UsageFault
from .http1 import Answer, Head
from .options import ServeOptions

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._-]{1,253})(?::[0-9]{1,5})?")
_NAME = re.compile(r"(?:\*\.)?[0-9a-z_-]{1,63}(?:\.[0-9a-z_-]{1,63})*\.?")
_ORIGIN = re.compile(
    r"https?://(?:\[[0-9a-f:.]{2,45}\]|[0-9a-z_-]{1,63}(?:\.[0-9a-z_-]{1,63})*)(?::([0-9]{1,5}))?"
)
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))
_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to
_VARY = b"Vary: Origin\r\n"
# What a page of an allowed origin may send and read, and no more.
_PREFLIGHT = (
    b"Access-Control-Allow-Methods: GET, HEAD, POST\r\n"
    b"Access-Control-Allow-Headers: Authorization, Content-Type, Inference-Header-Content-Length,"
    b" X-API-Key, traceparent, tracestate\r\n"
    b"Access-Control-Max-Age: 600\r\n"
)
_EXPOSED = (
    b"Access-Control-Expose-Headers: Inference-Header-Content-Length, Retry-After, X-Non-Finite\r\n"
)


class Access:
    """Checks requests to a server bound to one address.

    Args:
        address: What the server was asked to listen on: a name or an IP address.
        names: Further host names that it answers for; `*.` stands for one label.
        origins: Whose pages may use it, beside its own.
        secure: It speaks TLS, so its own pages come over https.

    Raises:
        UsageFault: a name or an origin that cannot be.
    """

    def __init__(
        self,
        address: str,
        *,
        names: Sequence[str] = (),
        origins: Sequence[str] = (),
        secure: bool = False,
    ) -> None:
        ours = set(_LOOPBACK)
        # Any numeric address is ours then, and a number cannot be rebound by a name server.
        self._any_number = address in _WILDCARDS
        if self._any_number:
            host = socket.gethostname().lower()
            ours.update((host, host.partition(".")[0], host.partition(".")[0] + ".local"))
        else:
            ours.add("[%s]" % address.lower() if ":" in address else address.lower())
        further = [_check_name(name) for name in names]
        ours.update(name for name in further if not name.startswith("*."))
        self._names = frozenset(ours)
        self._suffixes = frozenset(name[1:] for name in further if name.startswith("*."))
        self._origins = frozenset(_check_origin(origin) for origin in origins)
        self._schemes = ("https",) if secure else ("http", "https")

    def check(self, head: Head) -> None:
        """Check one request.

        Raises:
            BadRequest: the request was meant for another host (421) or a foreign page sent it
                (403).
        """
        if head.authority is not None and not self._is_ours(head.authority):
            raise BadRequest(
                "this server does not answer for `%s`" % head.authority[:80],
                421,
                "`--name HOST` adds a name",
            )
        origin: Optional[str] = head.fields.get("origin")
        if origin is not None and origin not in self._origins:
            scheme, _, authority = origin.partition("://")
            if scheme not in self._schemes or authority.lower() != (head.authority or "").lower():
                raise BadRequest(
                    "pages of `%s` may not use this server" % origin[:80],
                    403,
                    "`--allow-origin URL` lists those that may",
                )

    def answer_preflight(self, head: Head) -> Optional[Answer]:
        """Return the answer to a browser that asks before it lets an allowed page ask.

        None for every other request. It has been checked, and needs no key: browsers send none.
        """
        fields = head.fields
        if (
            head.method != "OPTIONS"
            or fields.get("origin") not in self._origins
            or "access-control-request-method" not in fields
        ):
            return None
        lines = _PREFLIGHT
        if fields.get("access-control-request-private-network") == "true":
            lines += b"Access-Control-Allow-Private-Network: true\r\n"
        return Answer(204, b"", lines)

    def cors_fields(self, head: Head) -> bytes:
        """Return the header lines that let an allowed page read the answer to this request.

        Empty where no origin is listed. Otherwise `Vary` goes with every answer (Fetch standard,
        CORS protocol and HTTP caches).
        """
        if not self._origins:
            return b""
        origin = head.fields.get("origin")
        if origin not in self._origins:
            return _VARY
        return b"Access-Control-Allow-Origin: %s\r\n%s%s" % (
            (origin or "").encode("latin-1"), _EXPOSED, _VARY,
        )  # fmt: skip

    def _is_ours(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        host = match.group(1).lower()
        if host in self._names:
            return True
        if self._suffixes and host[host.find(".") :] in self._suffixes and host[0] != ".":
            return True
        return self._any_number and _is_number(host)


def check_exposure(options: ServeOptions, address: Optional[str] = None) -> None:
    """Refuse to be reached from other machines by accident, or with keys in the clear.

    Args:
        options: How the server is run.
        address: Where it listens, if that is not `options.host`.

    Raises:
        UsageFault: with what to do about it.
    """
    address = options.host if address is None else address
    if options.tls_cert is not None or is_loopback(address):
        return
    where = "`%s` can be reached from other machines" % address
    if options.keys is not None:
        raise UsageFault(
            where + ", and without TLS they could read the keys on their way",
            "give `--tls-cert` and `--tls-key`, or listen on 127.0.0.1 behind a proxy with TLS",
        )
    if not options.insecure:
        raise UsageFault(
            where + ", and without TLS they could read and change everything on its way",
            "give `--tls-cert` and `--tls-key`, or `--insecure` on a network you trust",
        )


def is_loopback(address: str) -> bool:
    """Say whether only this machine reaches an address; a path is a socket in its file system."""
    if address.lower() in ("localhost", "::1") or address.startswith("/"):
        return True
    try:
        return socket.inet_pton(socket.AF_INET, address)[0] == 127
    except OSError:
        return False


def _check_name(name: str) -> str:
    lower = name.lower()
    if ":" in lower and not lower.startswith("["):
        lower = "[%s]" % lower
    if not (_is_number(lower) if lower.startswith("[") else _NAME.fullmatch(lower)):
        raise UsageFault("`%s` is no host name" % name[:80], "as in `--name camera-7.example.com`")
    return lower


def _check_origin(origin: str) -> str:
    matched = _ORIGIN.fullmatch(origin)
    if not matched or not 0 < int(matched[1] or 80) < 1 << 16:
        raise UsageFault(
            "`%s` is no origin" % origin[:80],
            "as in `--allow-origin https://app.example.com`: lower case, no path, each by itself",
        )
    scheme, _, authority = origin.partition("://")
    default = {"http": ":80", "https": ":443"}[scheme]
    # browsers leave the usual port out
    return origin[: -len(default)] if authority.endswith(default) else origin


def _is_number(host: str) -> bool:
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        socket.inet_pton(family, host.strip("[]"))
    except OSError:
        return False
    return True
