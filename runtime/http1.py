"""Strict HTTP/1.1 without I/O: heads, chunked bodies, answers (RFC 9110 and RFC 9112)."""

from __future__ import annotations

import re
from typing import Dict, List, NamedTuple, Optional, Tuple

from .errors import BadRequest

MAX_HEAD_BYTES = 16384
MAX_FIELDS = 100

PHRASES = {
    100: "Continue",
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    421: "Misdirected Request",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON_TYPE = b"Content-Type: application/json\r\n"
# A proxy that gathers an answer before it passes it on would make a stream of one piece.
EVENTS_TYPE = b"Content-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n"

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD_NAME = re.compile(_TOKEN + rb"+")
_FIELD_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_DIGITS = re.compile(r"[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LONGEST_CHUNK_LINE = 8
# fields whose meaning would be in doubt if they came twice
_SINGLE = frozenset(
    (
        "host", "origin", "content-length", "transfer-encoding", "content-type", "expect",
        "content-encoding", "inference-header-content-length", "authorization",
    )
)  # fmt: skip


class Head(NamedTuple):
    """A request's first line and fields, checked.

    Attributes:
        path: Without the query, as it was sent (still percent-encoded).
        authority: The `Host` field, or the authority of an absolute target; None in HTTP/1.0.
        fields: By lower-case name.
        length: Bytes of the body; None where it comes in chunks.
        keep_alive: The client wants to send another request afterwards.
        minor: 0 or 1, of the HTTP version.
        expects_continue: The client waits for `100 Continue` before it sends the body.
    """

    method: str
    path: str
    authority: Optional[str]
    fields: Dict[str, str]
    length: Optional[int]
    keep_alive: bool
    minor: int
    expects_continue: bool


class Answer(NamedTuple):
    """What to send back; `fields` are whole header lines, each with its line end."""

    status: int
    body: bytes
    fields: bytes = JSON_TYPE


def parse_head(block: bytes) -> Head:
    """Return the head that `block` holds, without the empty line that ends it.

    Raises:
        BadRequest: anything a strict reader could understand in another way than we do.
    """
    if _BARE_LINE_END.search(block):
        raise BadRequest("a line of the request's head ends without CR LF")
    lines = block.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise BadRequest("the request's first line is not HTTP")
    method, target, major, minor_text = (part.decode("ascii") for part in match.groups())
    if major != "1" or minor_text not in ("0", "1"):
        # 505 would count as a fault of the server in every dashboard
        raise BadRequest("only HTTP/1.0 and HTTP/1.1 are served")
    minor = int(minor_text)
    fields = _parse_fields(lines[1:])
    path, authority = _split_target(target, fields, minor)
    connection = fields.get("connection", "").lower().replace(" ", "").split(",")
    expects = fields.get("expect", "").lower()
    if expects not in ("", "100-continue"):
        raise BadRequest("the expectation `%s` cannot be met" % expects[:64], 417)
    return Head(
        method=method,
        path=path,
        authority=authority,
        fields=fields,
        length=_body_length(fields, minor),
        keep_alive="close" not in connection and (minor == 1 or "keep-alive" in connection),
        minor=minor,
        expects_continue=bool(expects) and minor == 1,
    )


def _parse_fields(lines: List[bytes]) -> Dict[str, str]:
    if len(lines) > MAX_FIELDS:
        raise BadRequest("more than %d header fields" % MAX_FIELDS, 431)
    fields: Dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        # refuses folded lines, blanks before the colon and empty names alike
        if not colon or _FIELD_NAME.fullmatch(raw_name) is None:
            raise BadRequest("a header field's name is not a token")
        raw_value = raw_value.strip(b" \t")
        if _FIELD_VALUE.fullmatch(raw_value) is None:
            raise BadRequest("a header field holds a control character")
        name = raw_name.decode("ascii").lower()
        value = raw_value.decode("latin-1")
        if name in fields:
            if name in _SINGLE:
                raise BadRequest("the header field `%s` came twice" % name)
            value = fields[name] + ", " + value
        fields[name] = value
    return fields


def _split_target(target: str, fields: Dict[str, str], minor: int) -> Tuple[str, Optional[str]]:
    """Return path and authority of the origin form, the absolute form or `*`."""
    authority = fields.get("host")
    if authority is None and minor == 1:
        raise BadRequest("an HTTP/1.1 request needs a `Host` field")
    if target[0] != "/" and target != "*":
        scheme, separator, rest = target.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise BadRequest("the request's target is neither a path nor a URL")
        authority, slash, path = rest.partition("/")
        target = slash + path or "/"
    return target.partition("#")[0].partition("?")[0], authority


def _body_length(fields: Dict[str, str], minor: int) -> Optional[int]:
    """Return the body's bytes, None for chunks; two framings at once are refused, not chosen."""
    length = fields.get("content-length")
    coding = fields.get("transfer-encoding")
    if coding is None:
        if length is None:
            return 0
        if _DIGITS.fullmatch(length) is None:
            raise BadRequest("`Content-Length` is not a number of bytes")
        return int(length)
    if length is not None:
        raise BadRequest("`Content-Length` and `Transfer-Encoding` exclude each other")
    if minor == 0 or coding.lower() != "chunked":
        raise BadRequest("the only transfer coding served is `chunked`, in HTTP/1.1")
    return None


class ChunkedBody:
    """Decodes a chunked body as it comes; extensions and trailers are refused.

    Args:
        limit: The most bytes that the decoded body may have.
        advice: What a client is told whose body has more.
    """

    def __init__(self, limit: int, advice: str = "") -> None:
        self.data = bytearray()
        self._limit = limit
        self._advice = advice
        self._pending = b""
        self._missing = 0  # bytes of the current chunk, its CR LF included
        self._last = False

    def feed(self, data: bytes) -> Optional[bytes]:
        """Take more bytes; return what follows the body once it is complete, else None.

        Raises:
            BadRequest: not the chunked coding, or a body past the limit (413).
        """
        data = self._pending + data if self._pending else data
        at = 0
        while True:
            if self._missing:
                at = self._take(data, at)
                if self._missing:
                    break
            end = data.find(b"\r\n", at, at + _LONGEST_CHUNK_LINE + 2)
            if end < 0:
                # someone who ends lines another way would wait for us for ever
                if len(data) - at >= _LONGEST_CHUNK_LINE + 2 or b"\n" in data[at:]:
                    raise BadRequest("a chunk's size is not up to eight hexadecimal digits")
                break
            if self._last:
                if end != at:
                    raise BadRequest("trailers after a chunked body are not served")
                return data[end + 2 :]
            self._start_chunk(data[at:end])
            at = end + 2
        self._pending = data[at:]
        return None

    def _start_chunk(self, line: bytes) -> None:
        if _CHUNK_SIZE.fullmatch(line) is None:
            raise BadRequest("a chunk's size is not up to eight hexadecimal digits")
        size = int(line, 16)
        if len(self.data) + size > self._limit:
            message = "the body is larger than %d bytes" % self._limit
            raise BadRequest(message, 413, self._advice)
        if size:
            self._missing = size + 2
        else:
            self._last = True

    def _take(self, data: bytes, at: int) -> int:
        """Move bytes of the current chunk to the body; return where the rest begins."""
        wanted = self._missing - 2
        if wanted > 0:
            piece = data[at : at + wanted]
            self.data += piece
            self._missing -= len(piece)
            at += len(piece)
            wanted -= len(piece)
        if wanted <= 0 and len(data) - at >= 2:
            if data[at : at + 2] != b"\r\n":
                raise BadRequest("a chunk is longer than its size says")
            self._missing = 0
            at += 2
        return at


# Said with every answer: a browser must not guess another type, nor a proxy keep an answer.
_ALWAYS = b"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
_START = {
    status: ("HTTP/1.1 %d %s\r\n" % (status, phrase)).encode("ascii") + _ALWAYS
    for status, phrase in PHRASES.items()
}
_OK_JSON = _START[200] + JSON_TYPE + b"Content-Length: %d\r\n\r\n"


def stream_head(fields: bytes, *, keep_alive: bool, minor: int) -> bytes:
    """Return the head of an answer of unknown length: in chunks, to the end in HTTP/1.0."""
    framing = b"Transfer-Encoding: chunked\r\n" if minor == 1 else b""
    if not keep_alive or minor == 0:
        framing += b"Connection: close\r\n"
    return b"%s%s%s\r\n" % (_START[200], fields, framing)


def wire(answer: Answer, *, keep_alive: bool, minor: int, with_body: bool) -> bytes:
    """Return an answer's bytes; `with_body` is false for HEAD."""
    status, body, fields = answer
    if keep_alive and minor == 1 and with_body and status == 200 and fields is JSON_TYPE:
        return _OK_JSON % len(body) + body
    connection = b""
    if not keep_alive:
        connection = b"Connection: close\r\n"
    elif minor == 0:
        connection = b"Connection: keep-alive\r\n"
    if status == 204:  # has no length (RFC 9110, section 8.6)
        return b"%s%s%s\r\n" % (_START[status], fields, connection)
    head = b"%s%s%sContent-Length: %d\r\n\r\n" % (_START[status], fields, connection, len(body))
    return head + body if with_body else head
