"""Finds a request again elsewhere: W3C trace context, and `X-Request-ID`.

https://www.w3.org/TR/trace-context/: a value that breaks its rules counts as absent.
"""

from __future__ import annotations

import os
import re
from typing import Mapping, NamedTuple, Optional

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,64}")
_MAX_CHARACTERS = 512


class TraceContext(NamedTuple):
    """Where a request belongs.

    Attributes:
        trace_id: Of the whole trace, 32 hexadecimal digits.
        parent_id: Of the caller's span, 16 hexadecimal digits.
        sampled: Whether the caller keeps it.
    """

    trace_id: str
    parent_id: str
    sampled: bool


def parse_traceparent(text: Optional[str]) -> Optional[TraceContext]:
    """Return what a `traceparent` says; None without one, or for one that breaks the rules."""
    if text is None or len(text) > _MAX_CHARACTERS:
        return None
    match = _TRACEPARENT.fullmatch(text)
    if match is None or (text.startswith("00") and match.group(4)):
        return None  # only versions to come may have more fields
    return TraceContext(match.group(1), match.group(2), bool(int(match.group(3), 16) & 1))


def answer_traceparent(context: TraceContext, span_id: str) -> str:
    """Return what the answer says: the same trace, and the span that answered."""
    return "00-%s-%s-%02x" % (context.trace_id, span_id, context.sampled)


def new_span_id() -> str:
    """Return a random id of 16 hexadecimal digits, never zero."""
    return "%016x" % (int.from_bytes(os.urandom(8), "big") or 1)


def request_id(fields: Mapping[str, str]) -> str:
    """Return the id that a client gave its request, or a new one.

    Args:
        fields: A request's header fields or metadata, by names in lower case.
    """
    given = fields.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(8).hex()
