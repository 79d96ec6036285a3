"""What a client is told of a request that failed, and what is told of it only here."""

from __future__ import annotations

from .errors import BadRequest, ModelFault
from .http1 import JSON_TYPE, Answer
from .jsontext import dumps
from .logs import log


def error_answer(error: BadRequest, fields: bytes = JSON_TYPE) -> Answer:
    """Return the answer that tells a client what was wrong."""
    document = {"error": _with_hint(error) if error.hint else error.message}
    return Answer(error.status, dumps(document).encode("ascii"), fields + error.fields)


def fault_answer(error: Exception) -> Answer:
    """Return the answer to whatever work on a request raised; a fault of ours is reported."""
    return error_answer(blame(error))


def blame(error: Exception) -> BadRequest:
    """Return what a client is told of a failure, with its status; a fault of ours is reported."""
    if isinstance(error, BadRequest):
        return error
    if isinstance(error, MemoryError):
        return BadRequest("there is not enough memory for this request", 503)
    log.failure(error)
    return BadRequest(
        "the model failed" if isinstance(error, ModelFault) else "internal error", 500
    )


def _with_hint(error: BadRequest) -> str:
    return "%s (%s)" % (error.message, error.hint)
