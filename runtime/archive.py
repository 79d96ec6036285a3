"""Verifies and unpacks the canonical zip in one sequential pass, comparing every byte."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from typing import IO, Any, Callable, List, NamedTuple, Optional

from .errors import InputOutputFault, IntegrityFault
from .manifest import MAX_MANIFEST_BYTES, FileRecord, Manifest, digest_line, parse_manifest
from .unpacking import CHUNK_BYTES, Content, Plain, Unpacking, sync

ZIP64_LIMIT = 0xFFFFFFFF
_COUNT_LIMIT = 0xFFFF
_VERSION = 20
_VERSION_ZIP64 = 45
_UNIX = 3 << 8
_UTF8_FLAG = 0x800
_DATE_1980_01_01 = 0x0021
_HEADER_BYTES = 30

_Sink = Callable[[bytes], Any]


class _Written(NamedTuple):
    name: str
    crc: int
    size: int
    mode: int
    offset: int


class _Reader:
    """A bundle's bytes in order, with what the zip records at its end must say."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._offset = 0
        self._written: List[_Written] = []
        self.name = name

    def read(self, size: int, what: str) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise IntegrityFault("`%s` is cut off in %s" % (self.name, what))
        return data

    def entry(self, name: str, mode: int, size: int, sink: _Sink, what: str) -> None:
        """Read one entry, hand on its data, and compare its header with the rebuilt one."""
        shown = len(local_header(name, 0, size))
        header = self.read(shown, "the header of %s" % what)
        # The checksum is the one field not known yet: everything else is compared before the
        # data is believed, the checksum after it.
        if header[:14] + bytes(4) + header[18:] != local_header(name, 0, size):
            raise IntegrityFault("`%s`: the header of %s differs" % (self.name, what))
        crc, left = 0, size
        while left:
            chunk = self.read(min(left, CHUNK_BYTES), what)
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
            sink(chunk)
        if header != local_header(name, crc, size):
            raise IntegrityFault("`%s`: the checksum of %s differs" % (self.name, what))
        self._written.append(_Written(name, crc, size, mode, self._offset))
        self._offset += shown + size

    def peek_size(self) -> int:
        """Return the size that the first header claims, within the bound of a manifest."""
        header = self._stream.read(_HEADER_BYTES)
        self._stream.seek(0)
        if header[:4] != b"PK\3\4" or len(header) != _HEADER_BYTES:
            raise IntegrityFault(
                "`%s` is no edgepack bundle, or its first bytes differ" % self.name
            )
        size = int(struct.unpack_from("<L", header, 18)[0])
        if size > MAX_MANIFEST_BYTES:
            raise IntegrityFault("`%s`: the header of `manifest.json` differs" % self.name)
        return size

    def end(self) -> None:
        """Compare the central directory and the end record, and see that nothing follows."""
        size = 0
        for item in self._written:
            expected = central_entry(*item)
            if self.read(len(expected), "the directory") != expected:
                raise IntegrityFault(
                    "`%s`: the directory's record of `%s` differs" % (self.name, item.name)
                )
            size += len(expected)
        expected = end_records(len(self._written), size, self._offset)
        if self.read(len(expected), "the end record") != expected:
            raise IntegrityFault("`%s`: the end record differs" % self.name)
        if self._stream.read(1):
            raise IntegrityFault("`%s` has bytes after its end" % self.name)


def read_manifest(path: str) -> Manifest:
    """Read a bundle's manifest and check its own digest, and nothing else.

    Raises:
        IntegrityFault: it is no bundle, or the manifest is damaged.
        InputOutputFault: the file cannot be read.
    """
    with _open(path) as stream:
        return _read_manifest(_Reader(stream, os.path.basename(path)))


def verify_bundle(path: str, decompress: bool = True) -> Manifest:
    """Check every byte of a bundle.

    Args:
        path: The bundle.
        decompress: Check what compressed files unpack to as well.

    Raises:
        IntegrityFault: anything differs from what the manifest determines.
        InputOutputFault: the file cannot be read.
    """
    with _open(path) as stream:
        return _read(stream, os.path.basename(path), None, decompress)


def unpack_into(path: str, folder: str) -> Manifest:
    """Check every byte of a bundle while writing its files into an existing empty folder.

    Files and folders are on the disk when this returns. On a fault the folder holds rubbish.

    Raises:
        IntegrityFault: anything differs from what the manifest determines.
        InputOutputFault: the file cannot be read, or the folder not written.
    """
    with _open(path) as stream:
        try:
            manifest = _read(stream, os.path.basename(path), folder, True)
            for name, data in (
                ("manifest.json", manifest.data),
                ("manifest.sha256", digest_line(manifest)),
            ):
                with _create(folder, name, 0o644) as out:
                    out.write(data)
                    sync(out)
            for parent, _, _ in os.walk(folder, topdown=False):
                sync_folder(parent)
        except OSError as fault:
            raise InputOutputFault(
                "`%s` cannot be unpacked: %s" % (os.path.basename(path), fault.strerror or fault),
                "free some space, or choose another folder",
            ) from fault
    return manifest


def sync_folder(folder: str) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: str) -> IO[bytes]:
    try:
        stream = open(path, "rb")  # noqa: SIM115 - the callers close it
    except OSError as fault:
        raise InputOutputFault(
            "`%s` cannot be read: %s" % (path, (fault.strerror or str(fault)).lower())
        ) from fault
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise InputOutputFault("`%s` is no regular file" % path)
    return stream


def _read_manifest(reader: _Reader) -> Manifest:
    parts: List[bytes] = []
    size = reader.peek_size()
    reader.entry("manifest.json", 0o644, size, parts.append, "`manifest.json`")
    data = b"".join(parts)
    found: List[bytes] = []
    line = b"%s  manifest.json\n" % hashlib.sha256(data).hexdigest().encode("ascii")
    reader.entry("manifest.sha256", 0o644, len(line), found.append, "`manifest.sha256`")
    if b"".join(found) != line:
        raise IntegrityFault("`%s`: the digest of `manifest.json` differs" % reader.name)
    return parse_manifest(data)


def _read(stream: IO[bytes], name: str, folder: Optional[str], decompress: bool) -> Manifest:
    reader = _Reader(stream, name)
    manifest = _read_manifest(reader)
    with Unpacking() as unpacking:
        for record in manifest.files:
            out = None if folder is None else _create(folder, record.path, record.mode)
            if record.encoding is not None and decompress:
                _read_file(reader, record, unpacking.begin(record, out))
            else:
                _read_file(reader, record, None if out is None else Plain(out))
        reader.end()
    return manifest


def _read_file(reader: _Reader, record: FileRecord, content: Optional[Content]) -> None:
    """Compare one file's stored bytes, and hand them on."""
    stored = hashlib.sha256()
    what = "`%s`" % record.stored_path
    try:
        take = _both(stored.update, None if content is None else content.feed)
        reader.entry(record.stored_path, record.mode, record.stored_size, take, what)
        if stored.hexdigest() != record.stored_sha256:
            raise IntegrityFault("`%s`: the content of %s differs" % (reader.name, what))
        if content is not None:
            content.close()
    finally:
        if content is not None:
            content.release()


def _both(first: _Sink, second: Optional[_Sink]) -> _Sink:
    if second is None:
        return first
    also = second

    def take(chunk: bytes) -> None:
        first(chunk)
        also(chunk)

    return take


def _create(folder: str, path: str, mode: int) -> IO[bytes]:
    parent = folder
    for part in path.split("/")[:-1]:
        parent = os.path.join(parent, part)
        if not os.path.isdir(parent):
            os.mkdir(parent)
            # The umask must not show in a release: its modes are checked.
            os.chmod(parent, 0o755)  # noqa: S103 - a release is no secret
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(os.path.join(folder, path), flags, 0o600)
    os.fchmod(descriptor, mode)
    return os.fdopen(descriptor, "wb")


def local_header(name: str, crc: int, size: int) -> bytes:
    """Return the local file header of a stored entry (APPNOTE 4.3.7)."""
    raw = name.encode("utf-8")
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
    raw = name.encode("utf-8")
    values = [size, size] if size >= ZIP64_LIMIT else []
    if offset >= ZIP64_LIMIT:
        values.append(offset)
    extra = struct.pack("<HH%dQ" % len(values), 1, 8 * len(values), *values) if values else b""
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
    shown_count = min(count, _COUNT_LIMIT)
    return zip64 + struct.pack(
        "<4sHHHHLLH",
        b"PK\5\6", 0, 0, shown_count, shown_count,
        0xFFFFFFFF if size >= ZIP64_LIMIT else size,
        0xFFFFFFFF if offset >= ZIP64_LIMIT else offset,
        0,
    )  # fmt: skip


def _flags(name: str) -> int:
    return 0 if name.isascii() else _UTF8_FLAG
