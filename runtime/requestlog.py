"""Tells of one HTTP request: a line in the access log, its trace in the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, Optional, Tuple

from .logs import log
from .trace import answer_traceparent, new_span_id, parse_traceparent, request_id

if TYPE_CHECKING:
    from .framing import Admission
    from .http1 import Answer

Times = Tuple[float, float]


def tell(
    admission: Admission,
    answer: Answer,
    *,
    seconds: float,
    caller: str,
    times: Optional[Times],
    protocol: str = "HTTP/1.1",
) -> Answer:
    """Write a request's line, if anybody wants one, and return its answer with the trace.

    Args:
        admission: What was decided on its head.
        answer: What it is answered.
        seconds: From the whole request read to its answer made.
        caller: The name of the key that it came with, empty where there is none.
        times: Seconds in the queue and in the model; None where it asked for neither.
        protocol: What it came over.
    """
    fields = admission.head.fields
    context = parse_traceparent(fields.get("traceparent"))
    span_id = ""
    lines = b""
    if context is not None:
        span_id = new_span_id()
        lines = b"traceparent: %s\r\n" % answer_traceparent(context, span_id).encode("ascii")
    if log.has_access:
        ident = request_id(fields)
        lines += b"X-Request-ID: %s\r\n" % ident.encode("ascii")
        log.access(
            request_id=ident,
            trace_id=None if context is None else context.trace_id,
            span_id=span_id,
            key=caller,
            protocol=protocol,
            route=admission.route,
            status=answer.status,
            bytes=len(answer.body),
            **_milliseconds(seconds, times),
        )
    return answer._replace(fields=answer.fields + lines) if lines else answer


def tell_call(
    fields: Mapping[str, str],
    method: str,
    code: int,
    *,
    seconds: float,
    caller: str,
    times: Optional[Times],
) -> None:
    """Write the line of one gRPC call.

    Args:
        fields: Its metadata.
        method: One of a service that there is.
        code: The status code that it ended with.
        seconds: From its header to its trailers.
        caller: The name of the key that it came with, empty where there is none.
        times: As for `tell`; of a stream's last message.
    """
    context = parse_traceparent(fields.get("traceparent"))
    log.access(
        request_id=request_id(fields),
        trace_id=None if context is None else context.trace_id,
        span_id="" if context is None else new_span_id(),
        key=caller,
        protocol="gRPC",
        route=method,
        status=code,
        **_milliseconds(seconds, times),
    )


def _milliseconds(seconds: float, times: Optional[Times]) -> Mapping[str, float]:
    found = {"ms": round(seconds * 1e3, 3)}
    if times is not None:
        found["queue_ms"] = round(times[0] * 1e3, 3)
        if times[1] >= 0:
            found["compute_ms"] = round(times[1] * 1e3, 3)
    return found
