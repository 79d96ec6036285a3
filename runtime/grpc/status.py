"""gRPC's status codes and metadata: which code an error has, and how both are written."""

from __future__ import annotations

import re
from typing import Dict, NamedTuple

from ..errors import BadRequest
from .hpack import encode

OK = 0
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
ABORTED = 10
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

_BY_HTTP = {
    400: INVALID_ARGUMENT,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: NOT_FOUND,
    405: UNIMPLEMENTED,
    408: DEADLINE_EXCEEDED,
    409: ABORTED,
    413: RESOURCE_EXHAUSTED,
    415: INVALID_ARGUMENT,
    421: PERMISSION_DENIED,
    429: RESOURCE_EXHAUSTED,
    431: RESOURCE_EXHAUSTED,
    500: INTERNAL,
    501: UNIMPLEMENTED,
    503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_MESSAGE_BYTES = 1024
_ESCAPED = {byte: b"%%%02X" % byte for byte in range(256) if not 32 <= byte < 127}
_ESCAPED[ord("%")] = b"%25"


class Failure(NamedTuple):
    """What ends a call that has no answer.

    Attributes:
        code: gRPC's.
        message: For people.
    """

    code: int
    message: str


def failure(error: BadRequest) -> Failure:
    """Return what a client is told of an error, its hint included."""
    message = error.message if error.hint is None else "%s (%s)" % (error.message, error.hint)
    return Failure(_BY_HTTP.get(error.status, UNKNOWN), message)


# The header of every answer, and the fields after a good one.
HEAD = encode(
    (
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity"),
    )
)
GOOD = encode(((b"grpc-status", b"0"),))


def trailers(failed: Failure) -> bytes:
    """Return the block of fields that ends a call after its header was sent."""
    return encode(_fields(failed).items())


def only_trailers(failed: Failure) -> bytes:
    """Return the block that is all of an answer."""
    return HEAD + trailers(failed)


def timeout_s(value: bytes) -> float:
    """Return the seconds that `grpc-timeout` gives.

    Raises:
        BadRequest: it is not of the form that the specification has.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise BadRequest("`grpc-timeout` has to be up to eight digits and a unit of HMSmun")
    return int(match.group(1)) * _UNIT_S[match.group(2)]


def _fields(failed: Failure) -> Dict[bytes, bytes]:
    # cut before it is escaped, and never within a character
    text = failed.message.encode("utf-8", "replace")[:_MAX_MESSAGE_BYTES]
    text = text.decode("utf-8", "ignore").encode("utf-8")
    escaped = b"".join([_ESCAPED.get(byte) or bytes((byte,)) for byte in text])
    return {b"grpc-status": b"%d" % failed.code, b"grpc-message": escaped}
