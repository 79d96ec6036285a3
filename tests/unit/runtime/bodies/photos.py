"""Photos of every form, and the bundle's libraries that decode them."""

from __future__ import annotations

import hashlib
import io
import platform
import struct
import zlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from packager.bundle.image_library import image_libraries
from runtime.bodies import jpeg, png
from runtime.bodies.images import PhotoDecoder
from runtime.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.tensor import Tensor

BATCH = {"name": "batch", "min": 1, "max": 4, "opt": 1}
MOST_BYTES = 1 << 24


def side(name: str, low: int = 1, high: int = 8192) -> dict[str, Any]:
    return {"name": name, "min": low, "max": high, "opt": low}


def photo_signature(height: Any, width: Any) -> Signature:
    shape = [BATCH, height, width, 3]
    return Signature({"inputs": [{"name": "x", "dtype": "uint8", "shape": shape}], "outputs": []})


ANY_SIZE = photo_signature(side("height"), side("width"))


def library(kind: str) -> Path:
    """Return the very library that a bundle for this machine carries, from the tests' packages."""
    for wanted in image_libraries(platform.machine()):
        if wanted.kind == kind:
            source = wanted.library
            try:
                path = Path(str(metadata.distribution(source.package).locate_file(source.member)))
            except metadata.PackageNotFoundError:
                pytest.skip(f"{source.package} is not installed")
            if not path.is_file():
                pytest.skip(f"another version of {source.package} is installed")
            assert hashlib.sha256(path.read_bytes()).hexdigest() == source.member_sha256
            return path
    pytest.skip(f"no library for {kind} on {platform.machine()}")


def photo_decoder(
    kind: str, signature: Signature = ANY_SIZE, most_bytes: int = MOST_BYTES
) -> Callable[[bytes], dict[str, Tensor]]:
    path = str(library(kind))
    if kind == "image/jpeg":
        header, decode = jpeg.read_header, jpeg.TurboJpeg(path).decode
    else:
        header, decode = png.read_header, png.LibPng(path).decode
    return PhotoDecoder(header, decode, signature, "x", most_bytes).decode


def pixels_of(feeds: dict[str, Tensor]) -> np.ndarray[Any, Any]:
    tensor = feeds["x"]
    return np.frombuffer(bytes(tensor.data), np.uint8).reshape(tensor.shape)


def picture(mode: str = "RGB", width: int = 83, height: int = 61) -> Image.Image:
    """Return a picture with soft shades and hard edges."""
    random = np.random.default_rng(7)
    channels = {"L": 1, "RGB": 3, "CMYK": 4, "RGBA": 4}[mode]
    coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, channels), np.uint8)
    planes = [
        np.asarray(Image.fromarray(coarse[..., index]).resize((width, height), Image.BICUBIC))
        for index in range(channels)
    ]
    planes[0] = np.where(np.arange(width) % 16 < 3, 255, planes[0]).astype(np.uint8)
    stacked = np.stack(planes, -1)
    return Image.fromarray(stacked[..., 0] if mode == "L" else stacked, mode)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">L", zlib.crc32(name + content))
    return struct.pack(">L", len(content)) + name + content + checksum


def png_file(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def ihdr(width: int, height: int, depth: int = 8, kind: int = 2, *rest: int) -> bytes:
    values = (*rest, 0, 0, 0)[:3]
    return chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, kind, *values))


def with_chunks(file: bytes, *chunks: bytes) -> bytes:
    """Return a PNG file with more chunks behind its header."""
    return file[:33] + b"".join(chunks) + file[33:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
