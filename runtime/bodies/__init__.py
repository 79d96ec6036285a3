"""Decodes photos, sounds, tables and texts, as they come, into a model's inputs; no I/O."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Union

from ..errors import BadRequest
from ..mediatypes import CSV, JPEG, PNG, TEXT, WAV
from ..signature import Signature
from ..tensor import Tensor

Body = Union[bytes, bytearray]

# Beside the pixels themselves: Exif, previews, colour profiles, chunks of other programs.
_OVERHEAD_BYTES = 1 << 20
_TEXT_PER_BYTE = 8
_HEADER_BYTES = 1 << 16
_MOST_TABLE_BYTES = 16 << 20


class Bodies:
    """The kinds of bodies that a release decodes beside JSON.

    Args:
        release: Has `.path` and `.manifest`, whose `bodies` names the kinds and their libraries.
        signature: The model's.
        tokenize: Turns texts into inputs, for a model that takes text.
        most_bytes: The most that the inputs of one request may have.
        most_text_bytes: The most that its texts may have.
    """

    def __init__(
        self,
        release: Any,
        signature: Signature,
        *,
        most_bytes: int,
        most_text_bytes: int,
        tokenize: Optional[Callable[[List[str]], Dict[str, Tensor]]] = None,
    ) -> None:
        self._table: Mapping[str, Any] = release.manifest.get("bodies", {})
        self._model = release.manifest["model"]
        self._release = release
        self._signature = signature
        self._tokenize = tokenize
        self._most_bytes = most_bytes
        self._most_text_bytes = most_text_bytes
        self._decoders: Dict[str, Callable[[Body], Dict[str, Tensor]]] = {}

    def most_body_bytes(self, kind: str) -> int:
        """Return the most bytes that a body of a kind may have."""
        if kind == WAV:
            from .wav import most_body_bytes

            return most_body_bytes(self._signature, self._model["audio"], self._most_bytes)
        if kind == TEXT:
            return self._most_text_bytes
        if kind == CSV:
            # digits, commas and quotes: a cell takes more than the number it stands for
            return min(_TEXT_PER_BYTE * self._most_bytes + _HEADER_BYTES, _MOST_TABLE_BYTES)
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
        if kind != TEXT or self._tokenize is None:
            raise BadRequest("the model takes no `%s`" % kind, 415)
        from .texts import TextDecoder

        return TextDecoder(self._signature, self._tokenize).decode
