"""Decodes PNG photos through the bundle's libpng, of which it is shown nothing but pixels.

Of libpng's interfaces only the simplified one returns errors: the other leaves them to a function
that must not return. The simplified one also applies gamma and mixes transparency with a
background, which Pillow, whose pixels models are made for, does not. So the file is taken apart
here, and libpng gets one of header, palette and data alone, which is also all of a hostile file
that it gets to see. Source: Portable Network Graphics (PNG) Specification, third edition; png.h of
libpng 1.6.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from typing import Any, List, NamedTuple, Optional

from ..errors import BadRequest, ModelFault

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 65_536
_MOST_TEXT_BYTES = 1 << 20
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GREY_ALPHA: (8, 16),
    _RGB_ALPHA: (8, 16),
}  # fmt: skip
_VERSION, _FORMAT_RGB, _FORMAT_RGBA = 1, 2, 3
_PROFILE = b"Raw profile type exif"
_XMP = b"XML:com.adobe.xmp"


class Image(ctypes.Structure):
    """`png_image`: the same layout wherever pointers have eight bytes."""

    _fields_ = (
        ("opaque", ctypes.c_void_p),
        ("version", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("format", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("colormap_entries", ctypes.c_uint32),
        ("warning_or_error", ctypes.c_uint32),
        ("message", ctypes.c_char * 64),
    )


class Header(NamedTuple):
    """A PNG file taken apart.

    Attributes:
        ihdr: The content of its header chunk.
        palette: The content of `PLTE`; empty where there is none.
        data: The contents of its `IDAT` chunks.
    """

    width: int
    height: int
    ihdr: bytes
    palette: bytes
    data: List[bytes]
    exif: Optional[bytes]
    xmp: Optional[bytes]


def read_header(data: bytes) -> Header:
    """Return a file's parts; nothing is decompressed but an Exif profile of limited size.

    Raises:
        BadRequest: it is no PNG file, broken, cut short, or of a form that is not decoded.
    """
    if data[:8] != _SIGNATURE:
        raise BadRequest("the body is no PNG file")
    ihdr = palette = b""
    parts: List[bytes] = []
    exif = profile = xmp = None
    behind = False
    at = 8
    for _ in range(_MOST_CHUNKS):
        if at + 12 > len(data):
            raise BadRequest("the photo is cut short")
        size, name = struct.unpack_from(">L4s", data, at)
        content = data[at + 8 : at + 8 + size]
        if len(content) != size or at + 12 + size > len(data):
            raise BadRequest("the photo is cut short")
        critical = not name[0] & 0x20
        if (
            critical
            and zlib.crc32(data[at + 4 : at + 8 + size])
            != struct.unpack_from(">L", data, at + 8 + size)[0]
        ):
            raise BadRequest("the photo is broken: a checksum does not match")
        at += 12 + size
        if not ihdr:
            ihdr = _checked_ihdr(name, content)
        elif name == b"IDAT":
            if behind:
                raise BadRequest("the photo is broken: its pixels are not in one place")
            parts.append(content)
            continue
        elif name == b"IEND":
            break
        elif name == b"PLTE":
            palette = content if not parts else palette
        elif name == b"eXIf":
            exif = content
        elif name == b"iTXt":
            xmp = _xmp(content) or xmp
        elif name in (b"tEXt", b"zTXt"):
            profile = _profile(name, content) or profile
        elif critical:
            raise BadRequest("the photo is broken: it has a chunk of no known kind")
        behind = bool(parts)
    else:
        raise BadRequest("the photo is broken: it has more than %d chunks" % _MOST_CHUNKS)
    if not parts:
        raise BadRequest("the photo is broken: it has no pixels")
    width, height = struct.unpack_from(">LL", ihdr)
    return Header(width, height, ihdr, palette, parts, profile if exif is None else exif, xmp)


def _checked_ihdr(name: bytes, content: bytes) -> bytes:
    if name != b"IHDR" or len(content) != 13:
        raise BadRequest("the photo is broken: it does not begin with its PNG header")
    width, height, depth, kind, compression, filters, interlace = struct.unpack(">LLBBBBB", content)
    if depth not in _DEPTHS.get(kind, ()) or compression or filters or interlace > 1:
        raise BadRequest("the photo is broken: its PNG header cannot be")
    if not width or not height:
        raise BadRequest("the photo has no pixels: %d × %d" % (width, height))
    if depth == 16:
        raise BadRequest("the photo has 16 bits per channel", hint="send one with 8")
    return content


class LibPng:
    """The library of a release.

    Args:
        path: Where it lies.

    Raises:
        ModelFault: it cannot be loaded here.
    """

    def __init__(self, path: str) -> None:
        try:
            library = ctypes.CDLL(path)
            self._begin: Any = library.png_image_begin_read_from_memory
            self._finish: Any = library.png_image_finish_read
            self._free: Any = library.png_image_free
        except (OSError, AttributeError) as fault:
            raise ModelFault(
                "libpng cannot be loaded: %s" % fault, "the system has to have libz.so.1 (zlib)"
            ) from fault
        image, pointer = ctypes.POINTER(Image), ctypes.c_void_p
        self._begin.restype = self._finish.restype = ctypes.c_int
        self._begin.argtypes = [image, ctypes.c_char_p, ctypes.c_size_t]
        self._finish.argtypes = [image, pointer, pointer, ctypes.c_int32, pointer]
        self._free.restype, self._free.argtypes = None, [image]

    def decode(self, _: bytes, header: Header) -> bytearray:
        """Return the pixels as RGB, row by row, not turned; transparency is left out.

        Raises:
            BadRequest: the file is broken or cut short.
        """
        plain = _plain_file(header)
        image = Image(version=_VERSION)
        try:
            if not self._begin(ctypes.byref(image), plain, len(plain)):
                raise BadRequest("the photo is broken: " + _in_words(image))
            if (image.width, image.height) != (header.width, header.height):
                raise BadRequest("the photo is broken: it tells two sizes")
            alpha = header.ihdr[9] in (_GREY_ALPHA, _RGB_ALPHA)
            channels = 4 if alpha else 3
            image.format = _FORMAT_RGBA if alpha else _FORMAT_RGB
            pixels = bytearray(header.width * header.height * channels)
            room = (ctypes.c_char * len(pixels)).from_buffer(pixels)
            stride = header.width * channels
            if not self._finish(ctypes.byref(image), None, ctypes.addressof(room), stride, None):
                raise BadRequest("the photo is broken: " + _in_words(image))
        finally:
            self._free(ctypes.byref(image))
        return _without_alpha(pixels) if alpha else pixels


def _plain_file(header: Header) -> bytes:
    """Return the same pixels as the plainest PNG file."""
    chunks = [(b"IHDR", header.ihdr)]
    if header.ihdr[9] == _PALETTE:
        chunks.append((b"PLTE", _whole_palette(header)))
    chunks += [(b"IDAT", b"".join(header.data)), (b"IEND", b"")]
    parts = [_SIGNATURE]
    for name, content in chunks:
        checksum = zlib.crc32(content, zlib.crc32(name))
        parts += [struct.pack(">L", len(content)), name, content, struct.pack(">L", checksum)]
    return b"".join(parts)


def _whole_palette(header: Header) -> bytes:
    """Return a palette with every entry that a pixel can name: black beyond the file's own."""
    if not header.palette or len(header.palette) % 3:
        raise BadRequest("the photo is broken: it has no whole palette")
    size = 3 << header.ihdr[8]
    return header.palette[:size].ljust(size, b"\0")


def _without_alpha(pixels: bytearray) -> bytearray:
    result = bytearray(len(pixels) // 4 * 3)
    for channel in range(3):
        result[channel::3] = pixels[channel::4]
    return result


def _in_words(image: Image) -> str:
    return bytes(image.message).decode("ascii", "replace")[:64]


def _xmp(content: bytes) -> Optional[bytes]:
    """Return the XMP packet of an `iTXt` chunk; None where it holds another text."""
    name, _, rest = content.partition(b"\0")
    if name != _XMP or len(rest) < 2:
        return None
    text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    return _inflated(text) if rest[0] else text


def _profile(name: bytes, content: bytes) -> Optional[bytes]:
    """Return Exif data that ImageMagick keeps as hexadecimal text; None for another text."""
    key, _, text = content.partition(b"\0")
    if key != _PROFILE:
        return None
    if name == b"zTXt":
        text = _inflated(text[1:])
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except ValueError:
        raise BadRequest("the photo's Exif data cannot be read") from None


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_TEXT_BYTES)
    except zlib.error:
        return b""
