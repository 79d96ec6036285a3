"""Tells ONNX bytes from text, archives and cut-off files by their protobuf envelope alone."""

from __future__ import annotations

from typing import Final

from packager.errors import ModelUnsupported

_KNOWN: Final = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself", "git lfs pull"),
    (b"PK\x03\x04", "a zip archive, not an ONNX model", None),
    (b"\x1f\x8b", "gzip-compressed, not an ONNX model", None),
    (b"\xfd7zXZ\x00", "xz-compressed, not an ONNX model", None),
    (b"\x89HDF", "an HDF5 file, not an ONNX model", None),
    (b"\x89PNG", "an image, not an ONNX model", None),
    (b"\xff\xd8\xff", "an image, not an ONNX model", None),
    (b"\x7fELF", "a program or library, not an ONNX model", None),
    (b"ORTM", "an ORT-format file, not an ONNX model", None),
)
# Field numbers of onnx.ModelProto: 1 to 8, 14, 20, 25, 26.
_MODEL_FIELDS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_envelope(content: bytes, *, source: str) -> None:
    """Refuse bytes that are no ONNX protobuf, naming what they are where that shows.

    Only the outermost fields are read, so the cost is a few bytes however large the file.

    Raises:
        ModelUnsupported: empty, text, another format, or cut off.
    """
    if not content:
        raise ModelUnsupported(f"`{source}` is empty")
    magic = content[4:8] if content[4:8] == b"ORTM" else content[:24]
    for prefix, words, hint in _KNOWN:
        if magic.startswith(prefix):
            raise ModelUnsupported(f"`{source}` is {words}", hint=hint)
    if _is_text(content[:512]):
        raise ModelUnsupported(f"`{source}` is a text file, not an ONNX model")
    position, seen = 0, 0
    while position < len(content):
        start = position
        key, position = _varint(content, position)
        field, kind = key >> 3, key & 7
        if field not in _MODEL_FIELDS or kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            if seen and start > 0 and field != 0:
                raise ModelUnsupported(f"`{source}` is damaged at byte {start}")
            raise ModelUnsupported(f"`{source}` is not an ONNX model")
        if kind == _VARINT:
            _, position = _varint(content, position)
        elif kind == _BYTES:
            length, position = _varint(content, position)
            position += length
        else:
            position += 8 if kind == _FIXED64 else 4
        if position > len(content):
            if not seen and field != 7:
                raise ModelUnsupported(f"`{source}` is not an ONNX model")
            raise ModelUnsupported(
                f"`{source}` is cut off: {position - len(content)} bytes are missing at its end"
            )
        seen += 1


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the number at `position` and where it ends; past the end where it is cut off."""
    value = shift = 0
    while position < len(content) and shift < 64:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    return value, len(content) + 1


def _is_text(head: bytes) -> bool:
    """Return whether every byte is printable or a blank, as no protobuf's first bytes are."""
    return all(byte in b"\t\n\r\f" or byte >= 0x20 for byte in head) and b"\x7f" not in head
