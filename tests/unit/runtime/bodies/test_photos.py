"""A photo decoded on a device is, bit for bit, the photo that the build host decodes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from packager.data import decode_image
from packager.errors import UsageError
from runtime.errors import BadRequest, ModelFault
from tests.unit.runtime.bodies import photos

ROOT = Path(__file__).resolve().parents[4]
FOLDERS = (".cache/photos/evaluation", ".cache/photos/unpacked/usr/share/backgrounds")
JPEG, PNG = "image/jpeg", "image/png"


def host(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "photo"
    path.write_bytes(content)
    return decode_image(path)


def same(tmp_path: Path, kind: str, content: bytes) -> bool:
    wanted = host(tmp_path, content)
    found = photos.pixels_of(photos.photo_decoder(kind)(content))
    assert found.shape == wanted.shape
    return bool((found == wanted).all())


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [20, 95])
def test_jpeg_files_have_the_same_pixels(
    tmp_path: Path, quality: int, subsampling: int, progressive: bool
) -> None:
    content = photos.saved(
        photos.picture(), "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
    )
    assert same(tmp_path, JPEG, content)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_files_of_other_colours_become_the_same_rgb(tmp_path: Path, mode: str) -> None:
    assert same(tmp_path, JPEG, photos.saved(photos.picture(mode), "JPEG"))


def test_jpeg_files_that_keep_rgb_and_sizes_of_one_pixel_are_the_same(tmp_path: Path) -> None:
    assert same(tmp_path, JPEG, photos.saved(photos.picture(), "JPEG", keep_rgb=True))
    assert same(tmp_path, JPEG, photos.saved(photos.picture(width=1, height=1), "JPEG"))
    assert same(tmp_path, PNG, photos.saved(photos.picture(width=1, height=1), "PNG"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_files_of_every_colour_are_the_same(tmp_path: Path, mode: str) -> None:
    image = photos.picture("RGBA").convert(mode)
    image.info.pop("transparency", None)
    content = photos.saved(image, "PNG")
    assert same(tmp_path, PNG, content)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_files_of_few_colours_are_the_same(tmp_path: Path, bits: int) -> None:
    few = photos.picture().quantize(2**bits)
    assert same(tmp_path, PNG, photos.saved(few, "PNG", bits=bits))
    # more pixels than colours: what the palette does not name is black
    palette = photos.ihdr(2, 1, bits, 3) + photos.chunk(b"PLTE", b"\xff\x80\x40")
    row = zlib.compress(b"\0" + bytes([0b01000000 if bits == 1 else 1 << (8 - 2 * bits)]))
    content = photos.png_file(palette, photos.chunk(b"IDAT", row), photos.chunk(b"IEND", b""))
    assert same(tmp_path, PNG, content)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_png_files_of_few_bits_are_the_same(tmp_path: Path, bits: int) -> None:
    row = zlib.compress(b"\0\x1b\xe4\x6f\0")
    content = photos.png_file(
        photos.ihdr(32 // bits, 1, bits, 0), photos.chunk(b"IDAT", row), photos.chunk(b"IEND", b"")
    )
    assert same(tmp_path, PNG, content)


def test_interlaced_png_files_are_the_same(tmp_path: Path) -> None:
    # Adam7 of 2 × 2 pixels: the first, the one to its right, then the lower row
    rows = b"\0" + b"abc" + b"\0" + b"def" + b"\0" + b"ghijkl"
    content = photos.png_file(
        photos.ihdr(2, 2, 8, 2, 0, 0, 1),
        photos.chunk(b"IDAT", zlib.compress(rows)),
        photos.chunk(b"IEND", b""),
    )
    assert same(tmp_path, PNG, content)


def test_gamma_profiles_background_and_transparency_change_nothing(tmp_path: Path) -> None:
    plain = photos.saved(photos.picture(), "PNG")
    dressed = photos.with_chunks(
        plain,
        photos.chunk(b"gAMA", (100_000).to_bytes(4, "big")),
        photos.chunk(b"cHRM", bytes(32)),
        photos.chunk(b"sBIT", b"\x05\x06\x05"),
        photos.chunk(b"bKGD", bytes(6)),
        photos.chunk(b"tRNS", bytes(6)),
    )
    assert same(tmp_path, PNG, dressed)
    decode = photos.photo_decoder(PNG)
    assert decode(dressed)["x"] == decode(plain)["x"]


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", [JPEG, PNG])
def test_photos_are_turned_as_their_exif_tag_says(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    form = kind[6:].upper()
    exif = photos.with_orientation(orientation)
    assert same(tmp_path, kind, photos.saved(photos.picture(), form, exif=exif))


def test_exif_of_the_other_byte_order_and_behind_the_pixels_counts(tmp_path: Path) -> None:
    tiff = b"MM\0*\0\0\0\x08\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4)
    plain = photos.saved(photos.picture(), "PNG")
    assert same(tmp_path, PNG, photos.with_chunks(plain, photos.chunk(b"eXIf", tiff)))
    behind = plain[:-12] + photos.chunk(b"eXIf", tiff) + plain[-12:]
    assert same(tmp_path, PNG, behind)
    assert photos.photo_decoder(PNG)(behind)["x"].shape == (1, 83, 61, 3)
    jpeg = photos.saved(photos.picture(), "JPEG")
    tagged = jpeg[:2] + photos.segment(0xE1, b"Exif\0\0" + tiff) + jpeg[2:]
    assert same(tmp_path, JPEG, tagged)


def test_the_orientation_of_xmp_and_of_imagemagick_counts_where_exif_says_none(
    tmp_path: Path,
) -> None:
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    jpeg = photos.saved(photos.picture(), "JPEG")
    marked = photos.segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)
    assert same(tmp_path, JPEG, jpeg[:2] + marked + jpeg[2:])
    plain = photos.saved(photos.picture(), "PNG")
    for flag, text in ((b"\0\0", packet), (b"\1\0", zlib.compress(packet))):
        content = b"XML:com.adobe.xmp\0" + flag + b"\0\0" + text
        assert same(tmp_path, PNG, photos.with_chunks(plain, photos.chunk(b"iTXt", content)))
    exif = photos.with_orientation(6).tobytes()
    profile = b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())
    for name, text in ((b"tEXt", profile), (b"zTXt", b"\0" + zlib.compress(profile))):
        content = b"Raw profile type exif\0" + text
        changed = photos.with_chunks(plain, photos.chunk(name, content))
        assert same(tmp_path, PNG, changed)
        assert photos.photo_decoder(PNG)(changed)["x"].shape == (1, 83, 61, 3)


def test_garbage_behind_a_photo_is_passed_over(tmp_path: Path) -> None:
    for kind in (JPEG, PNG):
        content = photos.saved(photos.picture(), kind[6:].upper())
        assert same(tmp_path, kind, content + b"garbage" * 100)


@pytest.mark.parametrize("mode", ["I;16", "RGB", "RGBA", "LA"])
def test_sixteen_bits_are_refused(tmp_path: Path, mode: str) -> None:
    kind, channels = {"I;16": (0, 1), "RGB": (2, 3), "LA": (4, 2), "RGBA": (6, 4)}[mode]
    row = zlib.compress(b"\0" + bytes(2 * channels))
    content = photos.png_file(
        photos.ihdr(1, 1, 16, kind), photos.chunk(b"IDAT", row), photos.chunk(b"IEND", b"")
    )
    if mode == "I;16":  # of colour, the build host drops the lower half
        with pytest.raises(UsageError, match="more than 8 bits"):
            host(tmp_path, content)
    with pytest.raises(BadRequest, match="16 bits per channel"):
        photos.photo_decoder(PNG)(content)


def test_photos_found_here_are_the_same(tmp_path: Path) -> None:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*"))[:3]]
    if not found:
        pytest.skip("no photos were fetched here; the benchmarks do that")
    for path in found:
        content = path.read_bytes()
        kind = JPEG if content[:2] == b"\xff\xd8" else PNG
        decode = photos.photo_decoder(kind, most_bytes=1 << 28)
        assert (photos.pixels_of(decode(content)) == decode_image(path)).all(), path.name


def test_a_library_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    from runtime.bodies.jpeg import TurboJpeg
    from runtime.bodies.png import LibPng

    wrong = tmp_path / "lib.so"
    wrong.write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(ModelFault, match="libturbojpeg cannot be loaded"):
        TurboJpeg(str(wrong))
    with pytest.raises(ModelFault, match="libpng cannot be loaded") as caught:
        LibPng(str(wrong))
    assert "zlib" in str(caught.value.hint)
    # the one for the other: loaded, but without the functions
    with pytest.raises(ModelFault, match="libpng cannot be loaded"):
        LibPng(str(photos.library(JPEG)))


def test_every_cpython_decodes_the_same(old_python: Path, tmp_path: Path) -> None:
    cases = []
    for kind, image in (
        (JPEG, photos.picture()), (JPEG, photos.picture("CMYK")), (PNG, photos.picture("RGBA")),
    ):  # fmt: skip
        exif = photos.with_orientation(7)
        content = photos.saved(image, kind[6:].upper(), exif=exif)
        name = tmp_path / str(len(cases))
        name.write_bytes(content)
        pixels = photos.pixels_of(photos.photo_decoder(kind)(content))
        cases.append([kind, str(photos.library(kind)), str(name), zlib.crc32(pixels.tobytes())])
    script = (
        "import json, sys, zlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from runtime.bodies.images import open_decoder\n"
        "from runtime.signature import Signature\n"
        "side = {'name': None, 'min': 1, 'max': 999, 'opt': 1}\n"
        "spec = {'name': 'x', 'dtype': 'uint8', 'shape': [1, side, side, 3]}\n"
        "signature = Signature({'inputs': [spec], 'outputs': []})\n"
        "for kind, library, path, digest in json.loads(sys.argv[2]):\n"
        "    decode = open_decoder(kind, library, signature, {'images': {'x': {}}}, 1 << 24)\n"
        "    found = decode(open(path, 'rb').read())['x']\n"
        "    assert zlib.crc32(bytes(found.data)) == digest, path\n"
        "    assert tuple(found.shape) == (1, 83, 61, 3)\n"
    )
    done = subprocess.run(
        [old_python, "-c", script, ROOT, json.dumps(cases)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_structure_of_libpng_is_the_same_on_every_64_bit_machine() -> None:
    from runtime.bodies.png import Image as Structure

    # png.h of 1.6: a pointer, seven numbers of 32 bits, 64 characters, then up to a pointer's size
    assert [(name, getattr(Structure, name).offset) for name, _ in Structure._fields_] == [
        ("opaque", 0), ("version", 8), ("width", 12), ("height", 16), ("format", 20),
        ("flags", 24), ("colormap_entries", 28), ("warning_or_error", 32), ("message", 36),
    ]  # fmt: skip
    assert sys.maxsize > 2**32


def test_turning_is_what_pillow_does(tmp_path: Path) -> None:
    from PIL import ImageOps

    from runtime.bodies.exif import turn

    image = photos.picture(width=5, height=3)
    flat = np.asarray(image).tobytes()
    for orientation in range(1, 9):
        tagged = Image.open(
            io.BytesIO(photos.saved(image, "PNG", exif=photos.with_orientation(orientation)))
        )
        wanted = np.asarray(ImageOps.exif_transpose(tagged)).tobytes()
        assert bytes(turn(bytearray(flat), 5, 3, orientation)) == wanted
