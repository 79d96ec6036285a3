"""Requests' header fields as HTTP/2 brings them: what may stand there, and what it means."""

from __future__ import annotations

import re
from typing import Dict, List, NamedTuple, Optional

from ..errors import BadRequest
from ..http1 import MAX_FIELDS, Head
from .hpack import MAX_LIST_BYTES, Field
from .service import SERVICES
from .status import timeout_s

# upper case is refused too: RFC 9113, section 8.2.1
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
# no control character, no blank at either end
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_TARGET = re.compile(rb"/[\x21-\x7e]*|\*")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
# They speak of one connection, of which HTTP/2 has its own words.
_OF_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
# fields whose meaning would be in doubt if they came twice
_SINGLE = frozenset(
    (
        b"host", b"origin", b"content-length", b"content-type", b"expect", b"content-encoding",
        b"inference-header-content-length", b"authorization", b"te", b"grpc-timeout",
        b"grpc-encoding",
    )
)  # fmt: skip
_GRPC_TYPES = frozenset(("application/grpc", "application/grpc+proto"))


class Request(NamedTuple):
    """A request's header, checked.

    Attributes:
        head: As of HTTP/1.1; None where the header is malformed.
        is_grpc: The answer has to be gRPC's.
        timeout_s: How long the client waits for it; None for no limit.
        error: Why it is not answered.
    """

    head: Optional[Head]
    is_grpc: bool = False
    timeout_s: Optional[float] = None
    error: Optional[BadRequest] = None


def read_request(fields: List[Field], *, oversized: bool) -> Request:
    """Return what a header asks for, or why it is refused."""
    if oversized:
        return _refused("the header is larger than %d bytes" % MAX_LIST_BYTES, 431)
    try:
        head = _read_head(fields)
    except BadRequest as error:
        return Request(None, error=error)
    if head.method == "CONNECT":
        return _refused("`CONNECT` is not served here", 405)
    kind = head.fields.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("application/grpc"):
        if head.path.startswith(SERVICES):
            return _refused("gRPC methods need a `content-type` of `application/grpc`", 415)
        return Request(head)
    if kind not in _GRPC_TYPES:
        return _refused("`%s` is not served, only `application/grpc`" % kind[:64], 415)
    if head.method != "POST":
        return _refused("gRPC needs the method `POST`", 405)
    try:
        return Request(head, is_grpc=True, timeout_s=_read_grpc(head))
    except BadRequest as error:
        return Request(head, is_grpc=True, error=error)


def _refused(message: str, status: int) -> Request:
    return Request(None, error=BadRequest(message, status))


def _read_head(fields: List[Field]) -> Head:
    """Return the head.

    Raises:
        BadRequest: anything that RFC 9113, section 8, calls malformed.
    """
    if len(fields) > MAX_FIELDS + len(_PSEUDO):
        raise BadRequest("more than %d header fields" % MAX_FIELDS, 431)
    pseudo: Dict[bytes, bytes] = {}
    found: Dict[bytes, bytes] = {}
    for name, text in fields:
        value = text
        if _VALUE.fullmatch(value) is None:
            raise BadRequest("a header field holds a control character, or a blank at its end")
        if name[:1] == b":":
            if found:
                raise BadRequest("a pseudo header field follows another field")
            if name not in _PSEUDO or name in pseudo:
                raise BadRequest("a pseudo header field is unknown, or came twice")
            pseudo[name] = value
            continue
        if _NAME.fullmatch(name) is None:
            raise BadRequest("a header field's name is not a token in lower case")
        if name in _OF_CONNECTION:
            raise BadRequest("HTTP/2 has no header field `%s`" % name.decode("ascii"))
        if name in found:
            if name in _SINGLE:
                raise BadRequest("the header field `%s` came twice" % name.decode("ascii"))
            value = found[name] + (b"; " if name == b"cookie" else b", ") + value
        found[name] = value
    if found.get(b"te", b"trailers") != b"trailers":
        raise BadRequest("the header field `te` can only be `trailers`")
    return _make_head(pseudo, found)


def _make_head(pseudo: Dict[bytes, bytes], found: Dict[bytes, bytes]) -> Head:
    method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if _METHOD.fullmatch(method) is None:
        raise BadRequest("the request has no `:method`")
    if method == b"CONNECT":
        target = b"*"
    elif _TARGET.fullmatch(target) is None or pseudo.get(b":scheme") not in (b"http", b"https"):
        raise BadRequest("the request needs a `:path` and a `:scheme` of http or https")
    authority, host = pseudo.get(b":authority"), found.get(b"host")
    if authority is None:
        authority = host
    if not authority:
        raise BadRequest("the request has no `:authority`")
    if host is not None and host.lower() != authority.lower():
        raise BadRequest("`host` and `:authority` are not the same")
    length = found.get(b"content-length")
    if length is not None and _LENGTH.fullmatch(length) is None:
        raise BadRequest("`content-length` is not a number of bytes")
    path = target.partition(b"#")[0].partition(b"?")[0]
    return Head(
        method=method.decode("ascii"),
        path=path.decode("ascii"),
        authority=authority.decode("latin-1"),
        fields={key.decode("ascii"): value.decode("latin-1") for key, value in found.items()},
        length=None if length is None else int(length),
        keep_alive=True,
        minor=1,
        expects_continue=False,
    )


def _read_grpc(head: Head) -> Optional[float]:
    """Return the time limit of a call.

    Raises:
        BadRequest: it cannot be a call, or is compressed (501).
    """
    fields = head.fields
    if "te" not in fields:
        raise BadRequest(
            "the header field `te: trailers` is missing",
            hint="a proxy on the way may not know HTTP/2's trailers",
        )
    coding = fields.get("grpc-encoding", "identity")
    if coding != "identity":
        raise BadRequest(
            "`grpc-encoding: %s` is not served; send messages as they are" % coding[:64], 501
        )
    text = fields.get("grpc-timeout")
    return None if text is None else timeout_s(text.encode("latin-1"))
