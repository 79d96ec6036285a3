"""Reads which way up a photo is meant to be, and turns it, as Pillow's `exif_transpose` does."""

from __future__ import annotations

import re
import struct
from typing import Optional, Tuple

from ..errors import BadRequest

_ORIENTATION = 0x0112
# Of the types that hold integers, the size and the letter that `struct` reads them by.
_INTEGERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_orientation(exif: Optional[bytes], xmp: Optional[bytes]) -> int:
    """Return the orientation, 1 to 8, that a photo's metadata tells; 1 where it tells none.

    Args:
        exif: The TIFF structure, perhaps behind `Exif` and two zero bytes.
        xmp: The XMP packet, asked where Exif says nothing.

    Raises:
        BadRequest: the Exif data is no TIFF structure.
    """
    found = None
    if exif is not None:
        for _ in range(2):
            exif = exif[6:] if exif.startswith(b"Exif\0\0") else exif
        if exif:
            found = _from_tiff(exif)
    if found is None and xmp is not None:
        match = _XMP.search(xmp)
        found = int(match.group(1)) if match is not None else None
    return found if found is not None and 1 <= found <= 8 else 1


def upright_size(width: int, height: int, orientation: int) -> Tuple[int, int]:
    """Return width and height of a photo once it is turned."""
    return (height, width) if orientation >= 5 else (width, height)


def turn(pixels: bytearray, width: int, height: int, orientation: int) -> bytearray:
    """Return RGB pixels as they are meant to be seen.

    Args:
        pixels: Three bytes each, row by row.
        width: Before turning.
        height: Before turning.
        orientation: 1 to 8, as Exif counts.
    """
    if orientation == 1:
        return pixels
    # Every orientation is a transposition or none, then a half turn, a mirrored order of rows, or
    # both: those two are copies of whole rows and of every third byte.
    transposed, half_turn, flipped = {
        2: (False, True, True),
        3: (False, True, False),
        4: (False, False, True),
        5: (True, False, False),
        6: (True, True, True),
        7: (True, True, False),
        8: (True, False, True),
    }[orientation]
    if transposed:
        pixels = _transposed(pixels, width)
        width, height = height, width
    if half_turn:
        for channel in range(3):
            pixels[channel::3] = pixels[channel::3][::-1]
    if flipped:
        stride = 3 * width
        rows = memoryview(pixels)
        pixels = bytearray().join(
            [rows[at : at + stride] for at in range(stride * (height - 1), -1, -stride)]
        )
    return pixels


def _transposed(pixels: bytearray, width: int) -> bytearray:
    turned = bytearray(len(pixels))
    for channel in range(3):
        plane = pixels[channel::3]
        turned[channel::3] = b"".join([plane[column::width] for column in range(width)])
    return turned


def _from_tiff(data: bytes) -> Optional[int]:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        raise BadRequest("the photo's Exif data cannot be read")
    (at,) = struct.unpack_from(order + "L", data, 4)
    if at + 2 > len(data):
        return None
    (count,) = struct.unpack_from(order + "H", data, at)
    found = None
    for entry in range(at + 2, min(at + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHL", data, entry)
        if tag != _ORIENTATION or kind not in _INTEGERS or values < 1:
            continue
        letter = order + _INTEGERS[kind]
        place = entry + 8
        if values * struct.calcsize(letter) > 4:
            (place,) = struct.unpack_from(order + "L", data, place)
            if place + values * struct.calcsize(letter) > len(data):
                continue
        (found,) = struct.unpack_from(letter, data, place)
    return found
