"""Writes the canonical zip: the same entries give the same bytes, and every byte is determined."""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import struct
import tempfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from packager.errors import InputOutputError, UsageError
from packager.manifest import canonical_json, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CHUNK_BYTES: Final = 1 << 20
COMPRESS_FROM_BYTES: Final = 64_000
ZIP64_LIMIT: Final = 0xFFFFFFFF
_COUNT_LIMIT: Final = 0xFFFF
_VERSION: Final = 20
_VERSION_ZIP64: Final = 45
_UNIX: Final = 3 << 8
_UTF8_FLAG: Final = 0x800
_DATE_1980_01_01: Final = 0x0021
_FIRST: Final = "__main__.py"
_RESERVED: Final = ("manifest.json", "manifest.sha256", "manifest.sig")
MODES: Final = (0o644, 0o755)

# Preset 6 has 8 MiB of dictionary: more saves little and costs the device as much memory again.
_LZMA: Final = {"id": lzma.FILTER_LZMA2, "preset": 6}
# For x86-64 machine code; measured on ONNX Runtime 1.32.0: 9.70 → 8.84 MB.
_X86: Final = {"id": lzma.FILTER_X86}
_ELF_MACHINE_X86_64: Final = 62


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a bundle.

    Attributes:
        path: Where it lies in the unpacked release, with forward slashes.
        source: A file, or the content itself.
        mode: One of MODES.
        compress: Store it as one xz stream if it has at least COMPRESS_FROM_BYTES and shrinks.
        xz_source: The xz stream of `source`, made by `compress_xz()` before; implies `compress`.
    """

    path: str
    source: Path | bytes
    mode: int = 0o644
    compress: bool = False
    xz_source: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _Stored:
    name: str
    mode: int
    source: Path | bytes | IO[bytes]
    size: int
    sha256: str
    crc: int


def write_archive(out: Path, manifest: Mapping[str, Any], entries: Iterable[Entry]) -> str:
    """Write a bundle and return the digest of its manifest, which is the bundle's identity.

    The file appears under its name only when it is whole and on the disk; on any failure, or an
    interruption, nothing is left.

    Args:
        out: The bundle.
        manifest: Everything but `files`, which is filled in here.
        entries: The files, in any order.

    Raises:
        UsageError: a path that a device would refuse, two paths that collide, or another mode.
        InputOutputError: a source that cannot be read or changes meanwhile, or a full disk.
    """
    ordered = sorted(entries, key=lambda e: (e.path != _FIRST, e.path.encode("utf-8", "replace")))
    check_paths([entry.path for entry in ordered])
    for entry in ordered:
        if entry.mode not in MODES:
            raise UsageError(f"`{entry.path}` has mode {entry.mode:o}", accepted="644 or 755")
    with ExitStack() as spools:
        try:
            stored: list[_Stored] = []
            files: list[dict[str, Any]] = []
            for entry in ordered:
                record, item = _prepare(entry, out.parent, spools)
                files.append(record)
                stored.append(item)
            _refuse_collisions([*_RESERVED, *(item.name for item in stored)])
            body = canonical_json({**manifest, "files": files})
            digest = sha256_of(body)
            line = f"{digest}  manifest.json\n".encode()
            preface = [_inline("manifest.json", body), _inline("manifest.sha256", line)]
            _write_atomically(out, [*preface, *stored])
        except OSError as fault:
            where = fault.filename or out
            raise InputOutputError(
                f"`{where}`: {(fault.strerror or str(fault)).lower()}",
                hint="free some space, or choose another folder with `-o DIR`",
            ) from fault
    return digest


def check_paths(paths: list[str]) -> None:
    """Refuse paths that are unsafe to unpack anywhere, and paths that collide.

    Raises:
        UsageError: naming the path.
    """
    for path in paths:
        parts = path.split("/")
        bad_part = any(
            part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 for part in parts
        )
        bad_character = any(c == "\\" or not c.isprintable() for c in path)
        if bad_part or bad_character or len(path) > 1024:
            raise UsageError(
                f"{path!r} cannot be a path in a bundle",
                accepted="relative paths with `/`, without `..`, `\\` or control characters",
            )
    _refuse_collisions([*_RESERVED, *paths])


def _refuse_collisions(paths: list[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        folded = path.casefold()
        if folded in seen:
            raise UsageError(f"`{path}` and `{seen[folded]}` collide in the bundle")
        seen[folded] = path
    for folded, path in seen.items():
        parts = folded.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent in seen:
                raise UsageError(f"`{path}` and `{seen[parent]}` collide in the bundle")


def compress_xz(source: Path | bytes, out: IO[bytes]) -> None:
    """Write `source` as one xz stream that depends on its bytes and the liblzma version alone."""
    compressor: lzma.LZMACompressor | None = None
    for chunk in _chunks(source):
        if compressor is None:
            filters = [_X86, _LZMA] if _is_x86_64_elf(chunk) else [_LZMA]
            compressor = lzma.LZMACompressor(
                lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters
            )
        out.write(compressor.compress(chunk))
    if compressor is not None:
        out.write(compressor.flush())


def _is_x86_64_elf(head: bytes) -> bool:
    return head[:4] == b"\x7fELF" and head[18:20] == struct.pack("<H", _ELF_MACHINE_X86_64)


def _prepare(entry: Entry, folder: Path, spools: ExitStack) -> tuple[dict[str, Any], _Stored]:
    size, sha256, crc = _measure(entry.source)
    record: dict[str, Any] = {
        "path": entry.path, "sha256": sha256, "size": size, "mode": entry.mode,
    }  # fmt: skip
    plain = _Stored(
        name=entry.path, mode=entry.mode, source=entry.source, size=size, sha256=sha256, crc=crc
    )
    if entry.xz_source is not None:
        stream: Path | IO[bytes] = entry.xz_source
    elif entry.compress and size >= COMPRESS_FROM_BYTES:
        # Unnamed, so that even a killed process leaves nothing.
        stream = spools.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - the stack closes it
        compress_xz(entry.source, stream)
    else:
        return record, plain
    stored_size, stored_sha256, stored_crc = _measure(stream)
    if stored_size >= size:
        return record, plain
    record |= {"encoding": "xz", "stored_sha256": stored_sha256, "stored_size": stored_size}
    return record, _Stored(
        name=f"{entry.path}.xz",
        mode=entry.mode,
        source=stream,
        size=stored_size,
        sha256=stored_sha256,
        crc=stored_crc,
    )


def _inline(name: str, data: bytes) -> _Stored:
    size, sha256, crc = _measure(data)
    return _Stored(name=name, mode=0o644, source=data, size=size, sha256=sha256, crc=crc)


def _write_atomically(out: Path, items: list[_Stored]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name[:64]}.", suffix=".part", dir=out.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            _write_zip(stream, items)
            stream.flush()
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(stream.fileno(), 0o666 & ~umask)
            os.fsync(stream.fileno())
        partial.replace(out)
    except BaseException:  # Ctrl-C too leaves no half-written file
        partial.unlink(missing_ok=True)
        raise
    sync_folder(out.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_zip(stream: IO[bytes], items: list[_Stored]) -> None:
    directory: list[bytes] = []
    offset = 0
    for item in items:
        header = local_header(item.name, item.crc, item.size)
        stream.write(header)
        digest, written = hashlib.sha256(), 0
        for chunk in _chunks(item.source):
            digest.update(chunk)
            written += len(chunk)
            stream.write(chunk)
        if written != item.size or digest.hexdigest() != item.sha256:
            raise InputOutputError(f"`{item.name}` changed while the bundle was written")
        directory.append(central_entry(item.name, item.crc, item.size, item.mode, offset))
        offset += len(header) + written
    for record in directory:
        stream.write(record)
    stream.write(end_records(len(items), sum(map(len, directory)), offset))


def local_header(name: str, crc: int, size: int) -> bytes:
    """Return the local file header of a stored entry (APPNOTE 4.3.7)."""
    raw = name.encode()
    big = size >= ZIP64_LIMIT
    extra = struct.pack("<HHQQ", 1, 16, size, size) if big else b""
    shown = 0xFFFFFFFF if big else size
    version = _VERSION_ZIP64 if big else _VERSION
    fixed = struct.pack(
        "<4sHHHHHLLLHH",
        b"PK\3\4", version, _flags(name), 0, 0, _DATE_1980_01_01,
        crc, shown, shown, len(raw), len(extra),
    )  # fmt: skip
    return fixed + raw + extra


def central_entry(name: str, crc: int, size: int, mode: int, offset: int) -> bytes:
    """Return the central directory's record of a stored entry (APPNOTE 4.3.12, 4.5.3)."""
    raw = name.encode()
    values = [size, size] if size >= ZIP64_LIMIT else []
    if offset >= ZIP64_LIMIT:
        values.append(offset)
    extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    version = _VERSION_ZIP64 if values else _VERSION
    shown = 0xFFFFFFFF if size >= ZIP64_LIMIT else size
    shown_offset = 0xFFFFFFFF if offset >= ZIP64_LIMIT else offset
    fixed = struct.pack(
        "<4sHHHHHHLLLHHHHHLL",
        b"PK\1\2", _UNIX | version, version, _flags(name), 0, 0, _DATE_1980_01_01,
        crc, shown, shown, len(raw), len(extra), 0, 0, 0,
        (stat.S_IFREG | mode) << 16, shown_offset,
    )  # fmt: skip
    return fixed + raw + extra


def end_records(count: int, size: int, offset: int) -> bytes:
    """Return what closes the file, with the zip64 records where a number needs them."""
    zip64 = b""
    if count >= _COUNT_LIMIT or size >= ZIP64_LIMIT or offset >= ZIP64_LIMIT:
        zip64 = struct.pack(
            "<4sQHHLLQQQQ",
            b"PK\6\6", 44, _UNIX | _VERSION_ZIP64, _VERSION_ZIP64, 0, 0, count, count, size, offset,
        ) + struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)  # fmt: skip
    shown_count = min(_COUNT_LIMIT, count)
    return zip64 + struct.pack(
        "<4sHHHHLLH",
        b"PK\5\6", 0, 0, shown_count, shown_count,
        0xFFFFFFFF if size >= ZIP64_LIMIT else size,
        0xFFFFFFFF if offset >= ZIP64_LIMIT else offset,
        0,
    )  # fmt: skip


def _flags(name: str) -> int:
    return 0 if name.isascii() else _UTF8_FLAG


def _measure(source: Path | bytes | IO[bytes]) -> tuple[int, str, int]:
    digest, size, crc = hashlib.sha256(), 0, 0
    for chunk in _chunks(source):
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
        size += len(chunk)
    return size, digest.hexdigest(), crc


def _chunks(source: Path | bytes | IO[bytes]) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
    elif isinstance(source, Path):
        with source.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    else:
        source.seek(0)
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
