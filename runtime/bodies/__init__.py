"""Decodes photos, sounds, tables and texts, as they come, into a model's inputs; no I/O."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from ..errors import BadRequest
from ..signature import Signature
from ..tensor import Tensor

Body = Union[bytes, bytearray]

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
    ".jpg": JPEG, ".jpeg": JPEG, ".png": PNG, ".wav": WAV, ".csv": CSV, ".txt": TEXT,
}  # fmt: skip
# Beside the pixels themselves: Exif, previews, colour profiles, chunks of other programs.
_OVERHEAD_BYTES = 1 << 20


class Bodies:
    """The kinds of bodies that a release decodes beside JSON.

    Args:
        manifest: The release's; its `bodies` names the kinds and their libraries.
        release: Has `.path`.
        signature: The model's.
        tokenize: Turns texts into inputs, for a model that takes text.
        most_bytes: The most that the inputs of one request may have.

    Attributes:
        kinds: Media types, as they are served.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        release: Any,
        signature: Signature,
        *,
        most_bytes: int,
        tokenize: Optional[Callable[[List[str]], Dict[str, Tensor]]] = None,
    ) -> None:
        self._table: Mapping[str, Any] = manifest.get("bodies", {})
        self._model = manifest["model"]
        self._release = release
        self._signature = signature
        self._tokenize = tokenize
        self._most_bytes = most_bytes
        self._decoders: Dict[str, Callable[[Body], Dict[str, Tensor]]] = {}
        self.kinds: Tuple[str, ...] = tuple(sorted(self._table))

    def find(self, content_type: str) -> Optional[str]:
        """Return the kind of a body by its `Content-Type`; None for JSON.

        Raises:
            BadRequest: with status 415: it is not served, or not in this character set.
        """
        name, _, rest = content_type.partition(";")
        name = name.strip().lower()
        if name in _JSON or name.endswith("+json"):
            return None
        kind = _ALIASES.get(name, name)
        if kind not in self._table:
            served = ", ".join("`%s`" % known for known in ("application/json", *self.kinds))
            raise BadRequest("`%s` is not served here" % _shown(name), 415, "send " + served)
        if kind in (CSV, TEXT):
            charset = _charset(rest)
            if charset not in ("utf-8", "utf8", "us-ascii", "ascii"):
                message = "`charset=%s` is not served here" % _shown(charset)
                raise BadRequest(message, 415, "send UTF-8")
        return kind

    def find_by_name(self, path: str) -> Optional[str]:
        """Return the kind of a file by its name's end; None for one that no body has."""
        at = path.rfind(".")
        return _SUFFIXES.get(path[at:].lower()) if at >= 0 else None

    def most_body_bytes(self, kind: str) -> int:
        """Return the most bytes that a body of a kind may have."""
        if kind == WAV:
            from .wav import most_body_bytes

            return most_body_bytes(self._signature, self._model["audio"], self._most_bytes)
        if kind in (CSV, TEXT):
            # digits, commas and quotes: a cell takes more than the number it stands for
            return min(8 * self._most_bytes, 16 << 20) + _OVERHEAD_BYTES
        return self._most_bytes + _OVERHEAD_BYTES

    def decode(self, kind: str, body: Body) -> Dict[str, Tensor]:
        """Return the inputs that a body holds, checked against the signature.

        Raises:
            BadRequest: says what is wrong with it.
            ModelFault: a library of the release cannot be used.
        """
        decoder = self._decoders.get(kind)
        if decoder is None:
            # two threads may do this at once: both make the same
            decoder = self._decoders[kind] = self._open(kind)
        feeds = decoder(body)
        self._signature.check(feeds)
        return feeds

    def _open(self, kind: str) -> Callable[[Body], Dict[str, Tensor]]:
        if kind in (JPEG, PNG):
            from .images import open_decoder

            library = self._release.path(self._table[kind]["library"])
            return open_decoder(kind, library, self._signature, self._model, self._most_bytes)
        if kind == WAV:
            from .wav import SoundDecoder

            return SoundDecoder(self._signature, self._model["audio"]).decode
        if kind == CSV:
            from .csvrows import TableDecoder

            return TableDecoder(self._signature, self._model.get("columns") or {}).decode
        from .texts import TextDecoder

        if self._tokenize is None:
            raise BadRequest("the model takes no text", 415)
        return TextDecoder(self._signature, self._tokenize).decode


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return "utf-8"


def _shown(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
