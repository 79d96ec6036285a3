"""Reads `.wav` files: PCM of 8, 16, 24 and 32 bits, and floating point.

The standard library's `wave` knows neither floating point nor, before CPython 3.12, the extensible
header, which is what most programs write for 24 bits.
Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF WAVE), and `ksmedia.h`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.data._files import SOUND_BYTES, read_bytes
from packager.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_OTHERS: Final = {2: "ADPCM", 6: "A-law", 7: "µ-law", 0x11: "ADPCM", 0x50: "MPEG", 0x55: "MP3"}
_ACCEPTED: Final = "PCM of 8, 16, 24 or 32 bits, or floating point of 32 or 64 bits"
# A recorder that did not know the length when it began writes this, or 0.
_UNKNOWN_LENGTH: Final = 0xFFFFFFFF
_RATES: Final = (1_000, 768_000)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A decoded sound.

    Attributes:
        values: float64 [samples], mono, in -1..1 for PCM.
        rate: Samples per second.
        channels: Before they were averaged.
    """

    values: NDArray[Any]
    rate: int
    channels: int


def read_wav(path: Path) -> Sound:
    """Return a sound with its channels averaged.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it is no `.wav` file, compressed, cut short, empty, or holds NaN or infinity.
    """
    import numpy as np

    content = read_bytes(path, most=SOUND_BYTES)
    if content[:4] == b"RF64":
        raise UsageError(f"`{path}` is an RF64 file", accepted="RIFF WAVE below 4 GiB")
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise UsageError(f"`{path}` is not a `.wav` file", accepted=_ACCEPTED)
    form: tuple[int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(content):
        name, length = content[at : at + 4], struct.unpack_from("<I", content, at + 4)[0]
        at += 8
        if name == b"data":
            break
        if name == b"fmt ":
            form = _form(content[at : at + length], path)
        at += length + length % 2
    else:
        raise UsageError(f"`{path}` holds no sound")
    if form is None:
        raise UsageError(f"`{path}` does not say its format before its sound")
    kind, channels, rate, bits = form
    frame = channels * bits // 8
    if length == _UNKNOWN_LENGTH:
        length = (len(content) - at) // frame * frame
    if at + length > len(content):
        raise UsageError(
            f"`{path}` is cut short: {len(content) - at} of {length} bytes of sound are there"
        )
    count = length // frame
    if not count:
        raise UsageError(f"`{path}` holds no sound")
    data = memoryview(content)[at : at + count * frame]
    values = _decoded(data, kind, bits)
    if not np.isfinite(values).all():
        raise UsageError(f"`{path}` holds NaN or infinity", accepted="finite numbers")
    if channels > 1:
        values = values.reshape(count, channels).mean(axis=1)
    return Sound(values=values, rate=rate, channels=channels)


def _form(chunk: bytes, path: Path) -> tuple[int, int, int, int]:
    """Return (kind, channels, rate, bits)."""
    if len(chunk) < 16:
        raise UsageError(f"`{path}` is not a readable `.wav` file: its header is cut short")
    kind, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 40:
        # The first two bytes of the sub-format's GUID are the kind.
        kind = struct.unpack_from("<H", chunk, 24)[0]
    known = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
    if kind not in known or bits not in known[kind]:
        name = _OTHERS.get(kind, f"format {kind}")
        what = f"{bits}-bit {'PCM' if kind == _PCM else 'float'}" if kind in known else name
        raise UsageError(
            f"`{path}` is {what}", accepted=_ACCEPTED, hint="convert it: `ffmpeg -i IN OUT.wav`"
        )
    if not 1 <= channels <= 64 or frame != channels * bits // 8:
        raise UsageError(f"`{path}` is not a readable `.wav` file: {channels} channels of {frame}")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UsageError(f"`{path}` has {rate} samples per second", accepted="1000 to 768000")
    return kind, channels, rate, bits


def _decoded(data: memoryview, kind: int, bits: int) -> NDArray[Any]:
    import numpy as np

    if kind == _FLOAT:
        return np.frombuffer(data, "<f4" if bits == 32 else "<f8").astype(np.float64)
    if bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128.0) / 128.0
    if bits == 24:
        # Three bytes become the upper three of four: the sign is in place, the scale 2^31.
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view("<i4").astype(np.float64) / 2.0**31
    return np.frombuffer(data, f"<i{bits // 8}").astype(np.float64) / 2.0 ** (bits - 1)
