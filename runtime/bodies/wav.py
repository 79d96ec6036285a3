"""Turns a WAV file into a model's input: mono, at the model's rate, cut into windows.

Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF WAVE), and `ksmedia.h`.
The standard library's `wave` knows neither floating point nor, before CPython 3.12, the extensible
header.
"""

from __future__ import annotations

import math
import struct
from array import array
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from ..errors import BadRequest
from ..signature import Dimension, Signature, TensorSpec
from ..tensor import Tensor
from .resample import Resampler

Body = Union[bytes, bytearray]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_OTHERS = {2: "ADPCM", 6: "A-law", 7: "µ-law", 0x11: "ADPCM", 0x50: "MPEG", 0x55: "MP3"}
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
_ACCEPTED = "PCM of 8, 16, 24 or 32 bits, or floating point of 32 or 64 bits"
# A recorder that did not know the length when it began writes this.
_UNKNOWN_LENGTH = 0xFFFFFFFF
_RATES = (1_000, 768_000)
_MOST_CHANNELS = 64
_MOST_CHUNKS = 10_000
_OVERHEAD_BYTES = 1 << 20
_MOST_BODY_BYTES = 64 << 20
# A frame that is sent against a sample that the model takes: two channels of 32 bits, and a rate
# three times as high.
_BYTES_PER_SAMPLE = 2 * 4 * 3


class Sound(NamedTuple):
    """Where the samples of a file lie, and what they are."""

    kind: int
    channels: int
    rate: int
    bits: int
    start: int
    frames: int


def read_header(data: bytes) -> Sound:
    """Return what a file says of its sound; takes no memory for it.

    Raises:
        BadRequest: it is no WAV file, of a form that is not decoded, cut short or empty.
    """
    if data[:4] == b"RF64":
        raise BadRequest("the sound is an RF64 file", hint="send RIFF WAVE")
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadRequest("the body is no WAV file", hint="send " + _ACCEPTED)
    form: Optional[Tuple[int, int, int, int]] = None
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sL", data, at)
        at += 8
        if name == b"data":
            return _sound(data, form, at, length)
        if name == b"fmt ":
            form = _form(data[at : at + length])
        at += length + length % 2
    raise BadRequest("the file holds no sound")


def most_body_bytes(signature: Signature, audio: Mapping[str, Any], most_bytes: int) -> int:
    """Return the most bytes that a sound for this model may have.

    Args:
        signature: The model's.
        audio: The manifest's, by input.
        most_bytes: The most that the inputs of one request may have.
    """
    name = next(iter(audio))
    spec = signature.inputs[name]
    window = audio[name].get("window")
    sizes = [window] if window else [_most(dim) for dim in spec.dims[1:]]
    sizes.append(_most(spec.dims[0]))
    samples = most_bytes // 4
    if None not in sizes:
        samples = min(samples, math.prod(size for size in sizes if size is not None))
    return min(samples * _BYTES_PER_SAMPLE, _MOST_BODY_BYTES) + _OVERHEAD_BYTES


class SoundDecoder:
    """Decodes sounds for one input.

    Args:
        signature: The model's.
        audio: The manifest's: by input its `sample_rate`, and `window` where sounds are cut.
    """

    def __init__(self, signature: Signature, audio: Mapping[str, Any]) -> None:
        self._name = next(iter(audio))
        self._signature = signature
        self._spec = signature.inputs[self._name]
        self._window = _window_of(self._spec, audio[self._name].get("window"))
        self._resampler = Resampler(int(audio[self._name]["sample_rate"]))

    def decode(self, body: Body) -> Dict[str, Tensor]:
        """Return the input that a sound is: one row, or one for each whole window.

        Raises:
            BadRequest: it is broken, or of a length that the model does not take.
        """
        data = bytes(body)
        sound = read_header(data)
        samples = self._resampler.count(sound.frames, sound.rate)
        rows = 1
        wanted = samples
        if self._window is not None:
            rows = max(1, samples // self._window)
            wanted = self._window
        shape = self._shape(rows, wanted)
        # before the samples take any memory
        self._signature.check_shape(self._name, shape)
        values = self._resampler.resample(_mono(data, sound), sound.rate)
        floats = array("f", values[: rows * wanted])
        if not all(map(math.isfinite, floats)):
            raise BadRequest("the sound holds NaN or infinity")
        floats.extend([0.0] * (rows * wanted - len(floats)))
        return {self._name: Tensor("float32", shape, floats.tobytes())}

    def _shape(self, rows: int, samples: int) -> Tuple[int, ...]:
        """Return the shape: the samples along the one axis that is not of size 1."""
        inner = [1 if dim == 1 else samples for dim in self._spec.dims[1:]]
        return (rows, *inner)


def _window_of(spec: TensorSpec, window: Optional[int]) -> Optional[int]:
    """Return how many samples one row takes; None for any number."""
    if window is not None:
        return window
    sizes = [dim for dim in spec.dims[1:] if isinstance(dim, int) and dim != 1]
    return sizes[0] if len(sizes) == 1 else None


def _most(dim: Union[int, Dimension]) -> Optional[int]:
    return dim if isinstance(dim, int) else dim.max


def _sound(data: bytes, form: Optional[Tuple[int, int, int, int]], at: int, length: int) -> Sound:
    if form is None:
        raise BadRequest("the file does not say its format before its sound")
    kind, channels, rate, bits = form
    frame = channels * bits // 8
    there = len(data) - at
    if length == _UNKNOWN_LENGTH:
        length = there // frame * frame
    if length > there:
        raise BadRequest("the sound is cut short: %d of %d bytes are there" % (there, length))
    if length < frame:
        raise BadRequest("the file holds no sound")
    return Sound(kind, channels, rate, bits, at, length // frame)


def _form(chunk: bytes) -> Tuple[int, int, int, int]:
    """Return (kind, channels, rate, bits)."""
    if len(chunk) < 16:
        raise BadRequest("the sound is broken: its header is cut short")
    kind, channels, rate, _, frame, bits = struct.unpack_from("<HHLLHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 40:
        # the first two bytes of the sub-format's GUID are the kind
        (kind,) = struct.unpack_from("<H", chunk, 24)
    if bits not in _BITS.get(kind, ()):
        name = _OTHERS.get(kind, "format %d" % kind)
        if kind in _BITS:
            name = "%d-bit %s" % (bits, "PCM" if kind == _PCM else "float")
        raise BadRequest("the sound is %s" % name, hint="send " + _ACCEPTED)
    if not 1 <= channels <= _MOST_CHANNELS or frame != channels * bits // 8:
        raise BadRequest("the sound is broken: %d channels in %d bytes" % (channels, frame))
    if not _RATES[0] <= rate <= _RATES[1]:
        raise BadRequest("the sound has %d samples per second" % rate, hint="1000 to 768000")
    return kind, channels, rate, bits


def _mono(data: bytes, sound: Sound) -> Sequence[float]:
    """Return the samples, in -1..1 for PCM, the channels averaged."""
    size = sound.frames * sound.channels * sound.bits // 8
    values = _samples(data[sound.start : sound.start + size], sound)
    if sound.kind == _FLOAT and not all(map(math.isfinite, values)):
        raise BadRequest("the sound holds NaN or infinity")
    count = sound.channels
    if count == 1:
        return values
    parts = [values[channel::count] for channel in range(count)]
    if count == 2:
        return [(left + right) / 2 for left, right in zip(*parts)]  # noqa: B905 - CPython 3.8
    return [math.fsum(frame) / count for frame in zip(*parts)]  # noqa: B905 - CPython 3.8


def _samples(data: bytes, sound: Sound) -> Sequence[float]:
    if sound.kind == _FLOAT:
        found = array("f" if sound.bits == 32 else "d")
        found.frombytes(data)
        return found
    if sound.bits == 8:
        table = [(byte - 128) / 128 for byte in range(256)]
        return [table[byte] for byte in data]
    if sound.bits == 24:
        # Three bytes become the upper three of four: the sign is in place, the scale 2^31.
        wide = bytearray(len(data) // 3 * 4)
        for byte in range(3):
            wide[byte + 1 :: 4] = data[byte::3]
        data = bytes(wide)
    whole = array("h" if sound.bits == 16 else "i")
    whole.frombytes(data)
    scale = 2.0 ** -(8 * whole.itemsize - 1)
    return [value * scale for value in whole]
