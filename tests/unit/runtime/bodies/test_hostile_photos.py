"""No photo, however broken, does more than being refused: no crash, no hang, no memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bodies import jpeg, png
from runtime.errors import BadRequest
from tests.unit.runtime.bodies import photos

ROOT = Path(__file__).resolve().parents[4]
JPEG, PNG = "image/jpeg", "image/png"
END = photos.chunk(b"IEND", b"")

FLIPS = """
import random, sys
sys.path.insert(0, sys.argv[1])
from runtime.bodies.images import open_decoder
from runtime.errors import BadRequest
from runtime.signature import Signature
side = {"name": None, "min": 1, "max": 4096, "opt": 1}
spec = {"name": "x", "dtype": "uint8", "shape": [1, side, side, 3]}
signature = Signature({"inputs": [spec], "outputs": []})
kind, library, path = sys.argv[2:5]
decode = open_decoder(kind, library, signature, {"images": {"x": {}}}, 1 << 24)
whole = open(path, "rb").read()
counted = {"decoded": 0, "refused": 0}
for seed in range(int(sys.argv[5])):
    chance = random.Random(seed)
    data = bytearray(whole)
    # the header as often as the pixels, which are most of a file
    reach = len(data) if seed % 2 else min(len(data), 700)
    for _ in range(chance.choice((1, 1, 2, 8, 40))):
        data[chance.randrange(reach)] = chance.randrange(256)
    if seed % 5 == 0:
        del data[chance.randrange(len(data)):]
    if kind == "image/png" and seed % 3:
        data = bytearray(mended(bytes(data)))
    try:
        decode(data)
        counted["decoded"] += 1
    except BadRequest as fault:
        assert fault.status in (400, 413) and fault.message, fault
        counted["refused"] += 1
print(counted["decoded"], counted["refused"])
"""
# So that flips reach libpng, which sees nothing of a chunk whose checksum is wrong.
MENDED = """
import struct, zlib
def mended(data):
    at, parts = 8, [data[:8]]
    while at + 12 <= len(data):
        size = min(struct.unpack_from(">L", data, at)[0], len(data) - at - 12)
        body = data[at + 4 : at + 8 + size]
        parts += [struct.pack(">L", size), body, struct.pack(">L", zlib.crc32(body))]
        at += 12 + size
    return b"".join(parts)
"""


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        (JPEG, "RGB", {"quality": 80}),
        (JPEG, "RGB", {"quality": 80, "progressive": True}),
        (JPEG, "RGB", {"restart_marker_rows": 1}),
        (JPEG, "L", {}),
        (JPEG, "CMYK", {"progressive": True}),
        (PNG, "RGB", {}),
        (PNG, "L", {}),
        (PNG, "RGBA", {}),
    ],
)
def test_flipped_bytes_crash_nothing(
    tmp_path: Path, kind: str, mode: str, options: dict[str, object]
) -> None:
    path = tmp_path / "photo"
    exif = photos.with_orientation(6)
    path.write_bytes(photos.saved(photos.picture(mode), kind[6:].upper(), exif=exif, **options))
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", MENDED + FLIPS, ROOT, kind,
         photos.library(kind), path, "250"],
        capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    decoded, refused = map(int, done.stdout.split())
    assert decoded + refused == 250
    assert decoded > 0, "the flips reached no decoder"
    assert refused > 0, "nothing was refused"


@pytest.mark.parametrize("kind", [JPEG, PNG])
def test_every_truncation_is_refused(kind: str) -> None:
    whole = photos.saved(photos.picture(width=24, height=16), kind[6:].upper())
    decode = photos.photo_decoder(kind)
    decode(whole)
    for size in range(len(whole)):
        with pytest.raises(BadRequest):
            decode(whole[:size])


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    for start, read in (
        (b"\xff\xd8\xff", jpeg.read_header),
        (b"\x89PNG\r\n\x1a\n", png.read_header),
    ):
        for content in (data, start + data):
            with pytest.raises(BadRequest):
                read(content)


def huge(kind: str, width: int, height: int) -> bytes:
    """Return a file of a few hundred bytes that says it has so many pixels."""
    if kind == PNG:
        data = zlib.compress(bytes(1 << 16))
        return photos.png_file(photos.ihdr(width, height), photos.chunk(b"IDAT", data), END)
    whole = bytearray(photos.saved(photos.picture(width=8, height=8), "JPEG"))
    at = whole.index(b"\xff\xc0")
    whole[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(whole)


@pytest.mark.parametrize("kind", [JPEG, PNG])
@pytest.mark.parametrize(
    ("width", "height"), [(65535, 65535), (65535, 1), (1, 65535), (4000, 4000)]
)
def test_a_declared_size_is_refused_before_memory_is_taken(
    kind: str, width: int, height: int
) -> None:
    signature = photos.photo_signature(photos.side("height"), photos.side("width"))
    decode = photos.photo_decoder(kind, signature, 1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadRequest) as caught:
        decode(huge(kind, width, height))
    assert caught.value.status == (413 if width * height * 3 > 1 << 20 else 400)
    assert str(width) in caught.value.message or "size" in caught.value.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_png_files_may_not_say_more_than_32_bits() -> None:
    decode = photos.photo_decoder(PNG)
    with pytest.raises(BadRequest, match="4294967295 × 4294967295"):
        decode(huge(PNG, 0xFFFFFFFF, 0xFFFFFFFF))


@pytest.mark.parametrize("kind", [JPEG, PNG])
@pytest.mark.parametrize(("width", "height"), [(0, 8), (8, 0), (0, 0)])
def test_photos_without_pixels_are_refused(kind: str, width: int, height: int) -> None:
    with pytest.raises(BadRequest, match=f"no pixels: {width} × {height}"):
        photos.photo_decoder(kind)(huge(kind, width, height))


def test_the_model_says_which_sizes_it_takes_once_the_photo_is_turned() -> None:
    signature = photos.photo_signature(32, 48)
    decode = photos.photo_decoder(PNG, signature)
    upright = photos.saved(photos.picture(width=48, height=32), "PNG")
    assert decode(upright)["x"].shape == (1, 32, 48, 3)
    lying = photos.picture(width=32, height=48)
    turned = photos.saved(lying, "PNG", exif=photos.with_orientation(6))
    assert decode(turned)["x"].shape == (1, 32, 48, 3)
    with pytest.raises(BadRequest, match="input `x` has size 48 in dimension 1"):
        decode(photos.saved(lying, "PNG"))


def test_compressed_text_behind_a_photo_is_never_blown_up() -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    plain = photos.saved(photos.picture(), "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in (
        (b"zTXt", b"Comment\0\0" + bomb),
        (b"zTXt", b"Raw profile type exif\0\0" + bomb),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        (b"iCCP", b"profile\0\0" + bomb),
    ):
        tampered = photos.with_chunks(plain, *[photos.chunk(name, content)] * 3)
        assert photos.photo_decoder(PNG)(tampered)["x"].shape == (1, 61, 83, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_pixels_beyond_the_declared_ones_are_never_blown_up() -> None:
    data = zlib.compress(bytes(100 << 20), 9)
    content = photos.png_file(photos.ihdr(4, 4), photos.chunk(b"IDAT", data), END)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert photos.photo_decoder(PNG)(content)["x"].shape == (1, 4, 4, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_chunks_without_number_are_refused() -> None:
    crowd = photos.chunk(b"tEXt", b"") * 70_000
    content = photos.with_chunks(photos.saved(photos.picture(), "PNG"), crowd)
    with pytest.raises(BadRequest, match="more than 65536 chunks"):
        photos.photo_decoder(PNG)(content)


def test_scans_without_number_are_refused() -> None:
    whole = photos.saved(photos.picture(), "JPEG", progressive=True)
    at = whole.rindex(b"\xff\xda")
    last = whole[at:-2]
    decode = photos.photo_decoder(JPEG)
    assert decode(whole[:-2] + last * 5 + whole[-2:])["x"].shape == (1, 61, 83, 3)
    with pytest.raises(BadRequest, match="more than 100 scans"):
        decode(whole[:-2] + last * 200 + whole[-2:])


@pytest.mark.parametrize(
    ("marker", "what"),
    [(0xC3, "lossless"), (0xC9, "arithmetically coded"), (0xC5, "differential")],
)
def test_jpeg_files_of_rare_kinds_are_named(marker: int, what: str) -> None:
    whole = photos.saved(photos.picture(), "JPEG").replace(b"\xff\xc0", bytes([0xFF, marker]), 1)
    with pytest.raises(BadRequest, match=f"{what} JPEG file") as caught:
        photos.photo_decoder(JPEG)(whole)
    assert "baseline" in str(caught.value.hint)


def test_twelve_bits_and_two_channels_are_refused() -> None:
    whole = bytearray(photos.saved(photos.picture(), "JPEG"))
    at = whole.index(b"\xff\xc0")
    whole[at + 4] = 12
    with pytest.raises(BadRequest, match="12 bits per channel"):
        photos.photo_decoder(JPEG)(bytes(whole))
    frame = photos.segment(0xC0, bytes([8, 0, 8, 0, 8, 2, 1, 0x11, 0, 2, 0x11, 0]))
    with pytest.raises(BadRequest, match="2 channels"):
        photos.photo_decoder(JPEG)(
            b"\xff\xd8" + frame + photos.segment(0xDA, b"\x01\x01\0\0\x3f\0")
        )


def test_two_frames_and_two_sizes_are_refused() -> None:
    whole = photos.saved(photos.picture(), "JPEG")
    at = whole.index(b"\xff\xc0")
    frame = whole[at : at + 19]
    with pytest.raises(BadRequest, match="header is not whole"):
        photos.photo_decoder(JPEG)(whole[:at] + frame + whole[at:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no PNG file"),
        (photos.png_file(END), "does not begin with its PNG header"),
        (photos.png_file(photos.ihdr(4, 4), END), "no pixels"),
        (photos.png_file(photos.ihdr(4, 4, 3), END), "header cannot be"),
        (photos.png_file(photos.ihdr(4, 4, 8, 3), photos.chunk(b"IDAT", b"x"), END), "palette"),
        (photos.png_file(photos.ihdr(4, 4), photos.chunk(b"NoNE", b"")), "no known kind"),
        (photos.png_file(photos.ihdr(4, 4), photos.chunk(b"IDAT", b"no data"), END), "broken"),
        (photos.png_file(photos.ihdr(4, 4), photos.chunk(b"IDAT", b""),
                         photos.chunk(b"tEXt", b""), photos.chunk(b"IDAT", b""), END), "one place"),
        (photos.png_file(photos.ihdr(4, 4))[:-1] + b"!" + END, "checksum does not match"),
        (photos.with_chunks(photos.png_file(photos.ihdr(4, 4), photos.chunk(b"IDAT", b"x"), END),
                            photos.chunk(b"eXIf", b"no structure")), "Exif data cannot be read"),
    ],
)  # fmt: skip
def test_broken_png_files_are_told_apart(content: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        photos.photo_decoder(PNG)(content)
    assert caught.value.status == 400


def test_a_jpeg_file_without_end_of_fill_bytes_is_refused_soon() -> None:
    with pytest.raises(BadRequest, match="header is not whole"):
        photos.photo_decoder(JPEG)(b"\xff\xd8" + b"\xff" * (4 << 20))
    with pytest.raises(BadRequest, match="header is not whole"):
        photos.photo_decoder(JPEG)(b"\xff\xd8\xff" + photos.segment(0xFE, b"")[1:] * 60_000)
