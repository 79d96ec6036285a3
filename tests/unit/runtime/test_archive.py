"""The device's reader accepts exactly the bytes the host writes, and names what differs."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import resource
import struct
import sys
import threading
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from packager.bundle import archive as host
from packager.bundle.archive import Entry, write_archive
from runtime import archive as device
from runtime import unpacking
from runtime.errors import InputOutputFault, IntegrityFault
from tests.unit.runtime.small_manifest import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def entries(*extra: Entry) -> list[Entry]:
    return [
        Entry(path="__main__.py", source=b"print('hello')\n"),
        Entry(path="lib/e.so", source=b"\x7fELF" + bytes(70_000), mode=0o755, compress=True),
        Entry(path="model/m.onnx", source=b"weights"),
        *extra,
    ]


@pytest.fixture(autouse=True, params=["in order", "at once"])
def unpacked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack compressed files one after the other, or each in a thread of its own."""
    if request.param == "at once":
        monkeypatch.setattr(unpacking, "ASIDE_BYTES", 0)
        monkeypatch.setattr(unpacking, "available_cores", lambda: 4)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "m.edgepack"
    write_archive(path, MANIFEST, entries())
    return path


def test_a_fresh_bundle_verifies_and_its_identity_is_the_digest_of_its_manifest(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.edgepack"
    digest = write_archive(path, MANIFEST, entries())
    manifest = device.verify_bundle(str(path))
    assert manifest.digest == digest == hashlib.sha256(manifest.data).hexdigest()
    assert device.read_manifest(str(path)) == manifest


def test_unpacking_gives_the_files_with_their_modes(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    manifest = device.unpack_into(str(bundle), str(folder))
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {"manifest.json", "manifest.sha256"} | {f.path for f in manifest.files}
    for record in manifest.files:
        data = (folder / record.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record.sha256
        assert (folder / record.path).stat().st_mode & 0o7777 == record.mode


def test_every_flipped_bit_is_detected(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    damaged = tmp_path / "damaged.edgepack"
    damaged.write_bytes(data)
    undetected = []
    with damaged.open("r+b", buffering=0) as stream:
        for index, byte in enumerate(data):
            for bit in range(8):
                stream.seek(index)
                stream.write(bytes([byte ^ 1 << bit]))
                try:
                    device.verify_bundle(str(damaged))
                except IntegrityFault:
                    pass
                else:
                    undetected.append((index, bit))
            stream.seek(index)
            stream.write(bytes([byte]))
    assert undetected == []
    device.verify_bundle(str(damaged))


def test_every_truncation_is_detected(bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    damaged = tmp_path / "damaged.edgepack"
    damaged.write_bytes(data)
    for size in reversed(range(len(data))):
        with damaged.open("r+b") as stream:
            stream.truncate(size)
        with pytest.raises(IntegrityFault):
            device.verify_bundle(str(damaged))


@pytest.mark.parametrize("tail", [b"\0", b"x", b"PK\5\6" + bytes(18), bytes(100_000)])
def test_appended_and_prepended_bytes_are_detected(
    bundle: Path, tmp_path: Path, tail: bytes
) -> None:
    data = bundle.read_bytes()
    for index, bad in enumerate((data + tail, tail + data, data + data)):
        damaged = tmp_path / f"{index}.edgepack"
        damaged.write_bytes(bad)
        with pytest.raises(IntegrityFault):
            device.verify_bundle(str(damaged))


def forge(path: Path, items: list[tuple[str, bytes, int]]) -> Path:
    """Write a canonical zip of any items, as an attacker who knows the format would."""
    offset, body, directory = 0, b"", b""
    for name, data, mode in items:
        crc = zlib.crc32(data)
        part = host.local_header(name, crc, len(data)) + data
        directory += host.central_entry(name, crc, len(data), mode, offset)
        body += part
        offset += len(part)
    path.write_bytes(body + directory + host.end_records(len(items), len(directory), offset))
    return path


def take_apart(path: Path) -> list[tuple[str, bytes, int]]:
    with zipfile.ZipFile(path) as archive:
        return [
            (info.filename, archive.read(info), info.external_attr >> 16 & 0o7777)
            for info in archive.infolist()
        ]


def test_a_forged_archive_of_the_same_items_is_the_same_file(bundle: Path, tmp_path: Path) -> None:
    assert forge(tmp_path / "x", take_apart(bundle)).read_bytes() == bundle.read_bytes()


@pytest.mark.parametrize("where", range(6))
def test_an_added_file_is_detected_at_every_place(bundle: Path, tmp_path: Path, where: int) -> None:
    items = take_apart(bundle)
    items.insert(where, ("evil.py", b"evil", 0o644))
    with pytest.raises(IntegrityFault):
        device.verify_bundle(str(forge(tmp_path / "x", items)))


@pytest.mark.parametrize("which", range(5))
def test_a_missing_renamed_remoded_moved_or_exchanged_file_is_detected(
    bundle: Path, tmp_path: Path, which: int
) -> None:
    items = take_apart(bundle)
    name, data, mode = items[which]
    rest = items[:which] + items[which + 1 :]
    forgeries = {
        "missing": rest,
        "renamed": [*items[:which], (name + "x", data, mode), *items[which + 1 :]],
        "re-moded": [*items[:which], (name, data, 0o777), *items[which + 1 :]],
        "exchanged": [*items[:which], (name, data[:-1] + b"!", mode), *items[which + 1 :]],
        "moved": [*rest, items[which]] if which < 4 else [items[which], *rest],
    }
    for kind, forged in forgeries.items():
        with pytest.raises(IntegrityFault):
            device.verify_bundle(str(forge(tmp_path / kind, forged)))


def with_manifest(bundle: Path, out: Path, change: dict[str, object], **stored: bytes) -> Path:
    """Forge a bundle whose record of lib/e.so, and stored bytes, are the attacker's."""
    items = take_apart(bundle)
    fields = json.loads(items[0][1])
    record = next(f for f in fields["files"] if f["path"] == "lib/e.so")
    record.update(change)
    body = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    line = hashlib.sha256(body).hexdigest().encode() + b"  manifest.json\n"
    items[0], items[1] = (items[0][0], body, 0o644), (items[1][0], line, 0o644)
    items[3] = (items[3][0], stored.get("data", items[3][1]), items[3][2])
    return forge(out, items)


def xz_record(data: bytes, stored: bytes) -> dict[str, object]:
    return {
        "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        "stored_size": len(stored), "stored_sha256": hashlib.sha256(stored).hexdigest(),
    }  # fmt: skip


def test_a_bomb_stops_at_the_declared_size(bundle: Path, tmp_path: Path) -> None:
    bomb = lzma.compress(bytes(20 << 20), preset=0)
    forged = with_manifest(bundle, tmp_path / "x", xz_record(b"small", bomb), data=bomb)
    with pytest.raises(IntegrityFault, match="does not unpack to what is listed"):
        device.verify_bundle(str(forged))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(IntegrityFault):
        device.unpack_into(str(forged), str(folder))
    assert (folder / "lib/e.so").stat().st_size <= 1 << 20


def _wide() -> bytes:
    # Made in the test alone: the encoder fills its gigabyte.
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    return lzma.compress(b"data" * 9, filters=filters)


@pytest.mark.parametrize(
    "stored",
    [
        lzma.compress(b"data" * 9) + b"\0\0\0\0",
        lzma.compress(b"data" * 5) + lzma.compress(b"data" * 4),
        lzma.compress(b"data" * 9)[:-1],
        lzma.compress(b"data" * 9, format=lzma.FORMAT_ALONE),
        _wide,
        lzma.compress(b"atad" * 9),
        b"",
    ],
    ids=["padding", "two streams", "cut off", "lzma1", "1 GiB dictionary", "other", "empty"],
)
def test_a_compressed_file_is_one_whole_xz_stream_of_the_listed_content(
    bundle: Path, tmp_path: Path, stored: bytes | Callable[[], bytes]
) -> None:
    stored = stored() if callable(stored) else stored
    change = xz_record(b"data" * 9, stored)
    forged = with_manifest(bundle, tmp_path / "x", change, data=stored)
    with pytest.raises(IntegrityFault, match="does not unpack to what is listed"):
        device.verify_bundle(str(forged))


def test_a_text_file_an_empty_file_a_folder_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello " * 50)
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "empty"):
        with pytest.raises(IntegrityFault, match="no edgepack bundle") as caught:
            device.verify_bundle(str(tmp_path / name))
        assert caught.value.exit_code == 8
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputOutputFault) as fault:
            device.verify_bundle(str(path))
        assert fault.value.exit_code == 10


def test_a_zip_of_the_standard_library_is_refused(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    with zipfile.ZipFile(out, "w") as archive:
        for name, data, _ in take_apart(bundle):
            archive.writestr(name, data)
    with pytest.raises(IntegrityFault):
        device.verify_bundle(str(out))


def test_both_sides_build_the_same_headers_on_either_side_of_the_zip64_limits() -> None:
    numbers = (0, 1, 0xFFFE, 0xFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 40)
    for size in numbers:
        assert host.local_header("näme", 7, size) == device.local_header("näme", 7, size)
        for other in numbers:
            args = ("name", 7, size, 0o755, other)
            assert host.central_entry(*args) == device.central_entry(*args)
            for third in numbers:
                assert host.end_records(size, other, third) == device.end_records(
                    size, other, third
                )


def test_zip64_records_are_read_by_the_standard_library_and_by_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(device, "ZIP64_LIMIT", 10)
    path = tmp_path / "big.edgepack"
    # The first entry's size is read from the plain field, which a real manifest always fits.
    original = device._Reader.peek_size

    def peek(reader: device._Reader) -> int:
        with path.open("rb") as stream:
            stream.seek(30 + len("manifest.json") + 4)
            real = struct.unpack("<Q", stream.read(8))[0]
        assert original.__name__ == "peek_size"
        return int(real)

    monkeypatch.setattr(device._Reader, "peek_size", peek)
    write_archive(path, MANIFEST, entries())
    device.verify_bundle(str(path))
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.testzip() is None
        assert archive.read("model/m.onnx") == b"weights"
        assert b"PK\6\6" in path.read_bytes()


@pytest.mark.slow
def test_a_bundle_past_four_gib_verifies(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as stream:
        stream.truncate((4 << 30) + 5)
    path = tmp_path / "m.edgepack"
    write_archive(path, MANIFEST, entries(Entry(path="model/a.bin", source=huge)))
    device.verify_bundle(str(path))


def test_a_python_without_lzma_is_told_what_it_lacks(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(InputOutputFault, match="without the `lzma` module") as caught:
        device.verify_bundle(str(bundle))
    assert "full python3" in str(caught.value.hint)
    device.verify_bundle(str(bundle), decompress=False)


def test_more_files_than_cores_and_than_the_reading_may_be_ahead_are_unpacked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "CHUNK_BYTES", 16)
    rng = np.random.default_rng(0)
    extra = [
        Entry(path=f"model/{n}.bin", source=rng.bytes(3000 + n), compress=True) for n in range(6)
    ]
    path, folder = tmp_path / "m.edgepack", tmp_path / "release"
    write_archive(path, MANIFEST, entries(*extra))
    folder.mkdir()
    threads = threading.active_count()
    device.unpack_into(str(path), str(folder))
    assert threading.active_count() == threads
    for entry in extra:
        assert (folder / entry.path).read_bytes() == entry.source


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("most", [10_000, 69_000])
def test_a_file_that_cannot_be_written_whole_is_told_of(
    most: int, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(InputOutputFault, match="cannot be unpacked: File too large"):
            device.unpack_into(str(bundle), str(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_fault_in_one_file_ends_the_threads_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "CHUNK_BYTES", 16)
    source = np.random.default_rng(0).bytes(5000)
    path = tmp_path / "m.edgepack"
    write_archive(path, MANIFEST, entries(Entry(path="a.bin", source=source, compress=True)))
    data = bytearray(path.read_bytes())
    at = data.index(b"weights")
    data[at] ^= 1
    path.write_bytes(data)
    threads = threading.active_count()
    with pytest.raises(IntegrityFault, match=r"the checksum of `model/m.onnx` differs"):
        device.verify_bundle(str(path))
    assert threading.active_count() == threads
