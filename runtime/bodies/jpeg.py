"""Decodes JPEG photos through the bundle's libturbojpeg, whose function calls survive broken files.

libjpeg's own interface leaves errors to a function that must not return, which no Python function
can do; TurboJPEG's returns them. Source: libjpeg-turbo, turbojpeg.h, API version 2.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, List, NamedTuple, Optional

from ..errors import BadRequest, ModelFault

# More scans than any program writes let a small file take minutes. Source: libjpeg-turbo, "Two
# issues with the JPEG standard", 2015.
MOST_SCANS = 100
_MOST_SEGMENTS = 10_000
_RGB, _CMYK = 0, 11
_ACCURATE_DCT, _LIMIT_SCANS = 4096, 32768
_TRUNCATED = b"Premature end of JPEG file"
_FRAMES = {0xC0, 0xC1, 0xC2}
_OTHER_FRAMES = {
    0xC3: "lossless", 0xC5: "differential", 0xC6: "differential", 0xC7: "lossless",
    0xC9: "arithmetically coded", 0xCA: "arithmetically coded", 0xCB: "lossless",
    0xCD: "differential", 0xCE: "differential", 0xCF: "lossless", 0xDE: "hierarchical",
}  # fmt: skip
_BARE = {0x01, *range(0xD0, 0xD8)}
_PIXELS_AT_ONCE = 1 << 16


class Header(NamedTuple):
    """What a JPEG file says of itself in front of its first scan."""

    width: int
    height: int
    channels: int
    exif: Optional[bytes]
    xmp: Optional[bytes]


def read_header(data: bytes) -> Header:
    """Return what stands in front of the pixels; takes no memory for them.

    Raises:
        BadRequest: it is no JPEG file, broken, or of a form that is not decoded.
    """
    if data[:3] != b"\xff\xd8\xff":
        raise BadRequest("the body is no JPEG file")
    frame: Optional[bytes] = None
    exif: Optional[bytes] = None
    xmp: Optional[bytes] = None
    at = 2
    for _ in range(_MOST_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0:
            break
        marker = data[at + 1] if at + 1 < len(data) else 0xD9
        at += 1 if marker == 0xFF else 2
        if marker in (0x00, 0xFF) or marker in _BARE:
            continue
        if marker in (0xD8, 0xD9) or at + 2 > len(data):
            break
        (size,) = struct.unpack_from(">H", data, at)
        segment = data[at + 2 : at + size]
        if size < 2 or at + size > len(data):
            break
        at += size
        if marker in _OTHER_FRAMES:
            raise BadRequest(
                "the photo is a %s JPEG file" % _OTHER_FRAMES[marker],
                hint="baseline and progressive ones are decoded",
            )
        if marker in _FRAMES:
            if frame is not None:
                break
            frame = segment
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif = segment if exif is None else exif + segment[6:]
        elif marker == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = segment[29:]
        elif marker == 0xDA:
            if frame is None:
                break
            if data.count(b"\xff\xda", at) + 1 > MOST_SCANS:
                raise BadRequest("the photo has more than %d scans" % MOST_SCANS)
            return _header(frame, exif, xmp)
    raise BadRequest("the photo is broken: its JPEG header is not whole")


def _header(frame: bytes, exif: Optional[bytes], xmp: Optional[bytes]) -> Header:
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        raise BadRequest("the photo is broken: its JPEG header is not whole")
    bits, height, width, channels = struct.unpack_from(">BHHB", frame)
    if bits != 8:
        raise BadRequest("the photo has %d bits per channel" % bits, hint="send one with 8")
    if channels not in (1, 3, 4):
        raise BadRequest("the photo has %d channels" % channels, hint="send grey, RGB or CMYK")
    if not width or not height:
        raise BadRequest("the photo has no pixels: %d × %d" % (width, height))
    return Header(width, height, channels, exif, xmp)


class TurboJpeg:
    """The library of a release.

    Args:
        path: Where it lies.

    Raises:
        ModelFault: it cannot be loaded here.
    """

    def __init__(self, path: str) -> None:
        try:
            library = ctypes.CDLL(path)
            self._open: Any = library.tjInitDecompress
            self._decode: Any = library.tjDecompress2
            self._header: Any = library.tjDecompressHeader3
            self._message: Any = library.tjGetErrorStr2
            self._close: Any = library.tjDestroy
        except (OSError, AttributeError) as fault:
            raise ModelFault("libturbojpeg cannot be loaded: %s" % fault) from fault
        pointer, number = ctypes.c_void_p, ctypes.c_int
        numbers = ctypes.POINTER(number)
        self._inks = b""  # seldom needed
        self._open.restype, self._open.argtypes = pointer, []
        self._close.restype, self._close.argtypes = number, [pointer]
        self._message.restype, self._message.argtypes = ctypes.c_char_p, [pointer]
        self._header.restype = self._decode.restype = number
        source: List[Any] = [pointer, ctypes.c_char_p, ctypes.c_ulong]
        self._header.argtypes = [*source, numbers, numbers, numbers, numbers]
        self._decode.argtypes = [*source, pointer, number, number, number, number, number]

    def decode(self, data: bytes, header: Header) -> bytearray:
        """Return the pixels as RGB, row by row, not turned.

        Raises:
            BadRequest: the file is broken or cut short.
        """
        handle = self._open()
        if not handle:
            raise MemoryError
        try:
            self._check_size(handle, data, header)
            channels, form = (4, _CMYK) if header.channels == 4 else (3, _RGB)
            pixels = bytearray(header.width * header.height * channels)
            room = (ctypes.c_char * len(pixels)).from_buffer(pixels)
            failed = self._decode(
                handle, data, len(data), ctypes.addressof(room),
                header.width, header.width * channels, header.height, form,
                _ACCURATE_DCT | _LIMIT_SCANS,
            )  # fmt: skip
            if failed:
                self._judge(handle)
        finally:
            self._close(handle)
        if channels == 3:
            return pixels
        self._inks = self._inks or _ink_table()
        return _from_cmyk(pixels, self._inks)

    def _check_size(self, handle: int, data: bytes, header: Header) -> None:
        """Have the library read the same size that was checked, whatever tricks the file plays."""
        found = [ctypes.c_int() for _ in range(4)]
        if self._header(handle, data, len(data), *map(ctypes.byref, found)):
            message = self._message(handle)
            if b"subsampling" not in message:
                raise BadRequest("the photo is broken: " + _in_words(message))
        elif (found[0].value, found[1].value) != (header.width, header.height):
            raise BadRequest("the photo is broken: it tells two sizes")

    def _judge(self, handle: int) -> None:
        """Pass over what any viewer passes over; refuse what has no pixels.

        Errors and warnings come by the same way. Warnings leave pixels behind, which Pillow shows
        too, but for a file that ends too early.
        """
        message = self._message(handle)
        if message.startswith(_TRUNCATED):
            raise BadRequest("the photo is cut short")
        if not message.startswith((b"Corrupt JPEG data", b"Invalid SOS parameters")) and not (
            message.startswith(b"Inconsistent progression sequence")
        ):
            raise BadRequest("the photo is broken: " + _in_words(message))


def _in_words(message: bytes) -> str:
    # of the library alone: it quotes numbers of the file, never its content
    text = message.decode("ascii", "replace").strip()
    return text[:1].lower() + text[1:120]


def _ink_table() -> bytes:
    """Return by ink and key what is left of a colour, of inverted CMYK as Adobe writes it.

    Source: Pillow, libImaging/Convert.c, `cmyk2rgb`: R = K - C·K/255, rounded.
    """
    table = bytearray(1 << 16)
    for key in range(256):
        for ink in range(256):
            product = (255 - ink) * key + 128
            table[key << 8 | ink] = key - ((product + (product >> 8)) >> 8)
    return bytes(table)


def _from_cmyk(pixels: bytearray, table: bytes) -> bytearray:
    """Return RGB: looked up, as Python computes slowly, and in parts, as others wait meanwhile."""
    look_up = table.__getitem__
    result = bytearray(len(pixels) // 4 * 3)
    for start in range(0, len(pixels) // 4, _PIXELS_AT_ONCE):
        part = pixels[4 * start : 4 * (start + _PIXELS_AT_ONCE)]
        pairs = bytearray(len(part) // 2)
        pairs[1::2] = part[3::4]
        stop = start + len(part) // 4
        for channel in range(3):
            pairs[0::2] = part[channel::4]
            found = bytes(map(look_up, memoryview(pairs).cast("H")))
            result[3 * start + channel : 3 * stop : 3] = found
    return result
