"""Tells what kind of body a request or a file has, by its media type or its name."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Union

from .core import InferRequest
from .errors import BadRequest
from .signature import Signature
from .tensor import Tensor

Body = Union[bytes, bytearray]
Tokenize = Callable[[List[str]], Dict[str, Tensor]]

JPEG, PNG, WAV, CSV, TEXT = "image/jpeg", "image/png", "audio/wav", "text/csv", "text/plain"
# What programs call the same kinds.
_ALIASES = {
    "image/jpg": JPEG,
    "image/pjpeg": JPEG,
    "image/x-png": PNG,
    "audio/x-wav": WAV,
    "audio/wave": WAV,
    "audio/vnd.wave": WAV,
    "application/csv": CSV,
}
# The last is what curl says where nobody told it.
_JSON = ("", "application/json", "text/json", "application/x-www-form-urlencoded")
_SUFFIXES = {
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".png": PNG,
    ".wav": WAV,
    ".csv": CSV,
    ".txt": TEXT,
}
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")


class BodyForm(NamedTuple):
    """How a body of one kind is read.

    Attributes:
        most_bytes: The most that it may have.
        decode: Returns the request that it is.
    """

    most_bytes: int
    decode: Callable[[Body], InferRequest]


class BodyForms:
    """What `/predict` of one model takes beside JSON.

    Args:
        release: Has `.manifest` and `.path`.
        signature: As clients see it.
        tokenize: Turns texts into inputs, for a model that takes text.
        most_bytes: The most that the inputs of one request may have.
        most_text_bytes: The most that its texts may have.
    """

    def __init__(
        self,
        release: Any,
        signature: Signature,
        tokenize: Optional[Tokenize],
        *,
        most_bytes: int,
        most_text_bytes: int,
    ) -> None:
        self._served = tuple(release.manifest.get("bodies", {}))
        self._arguments = {
            "release": release,
            "signature": signature,
            "tokenize": tokenize,
            "most_bytes": most_bytes,
            "most_text_bytes": most_text_bytes,
        }
        self._bodies: Any = None

    def choose(self, content_type: str) -> Optional[BodyForm]:
        """Return how a body is read; None for JSON.

        Raises:
            BadRequest: with status 415: it is not served.
        """
        kind = kind_of_type(content_type, self._served)
        if kind is None:
            return None
        if self._bodies is None:
            from .bodies import Bodies  # carried only where there are kinds

            self._bodies = Bodies(**self._arguments)
        bodies = self._bodies
        return BodyForm(
            bodies.most_body_bytes(kind), lambda body: InferRequest(bodies.decode(kind, body))
        )


def kind_of_type(content_type: str, served: Iterable[str]) -> Optional[str]:
    """Return the kind of a body by its `Content-Type`; None for JSON.

    Args:
        content_type: The field's value.
        served: The media types that are served beside JSON.

    Raises:
        BadRequest: with status 415: it is not served, or not in this character set.
    """
    name, _, parameters = content_type.partition(";")
    name = name.strip().lower()
    if name in _JSON or name.endswith("+json"):
        return None
    kind = _ALIASES.get(name, name)
    known = ("application/json", *sorted(served))
    if kind not in known:
        message = "`Content-Type: %s` is not served here" % _shown(name)
        raise BadRequest(message, 415, "send " + " or ".join("`%s`" % one for one in known))
    if kind in (CSV, TEXT):
        charset = _charset(parameters)
        if charset not in _CHARSETS:
            message = "`charset=%s` is not served here" % _shown(charset)
            raise BadRequest(message, 415, "send UTF-8")
    return kind


def kind_of_file(path: str) -> Optional[str]:
    """Return the kind of a file by its name's end; None for one that no body has."""
    at = path.rfind(".")
    return _SUFFIXES.get(path[at:].lower()) if at >= 0 else None


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return "utf-8"


def _shown(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
