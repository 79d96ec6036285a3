"""The file of kept records: appended to, each record sealed on its own, the key in its head.

A segment is `EPKEEP1` and a line feed, a length of four bytes, that much canonical JSON, the
segment's own key sealed by the capture key (nonce, ciphertext, tag), then chunks: one byte of
kind, four of length, ciphertext with tag. Numbers are little-endian. A chunk's nonce is its index,
which no key sees twice because each segment has its own key and is never reopened; its context
is the digest of the head, its kind and its index, so that chunks cannot change places.
A segment that was closed ends with an empty chunk of another kind; one without was cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
from typing import Any, BinaryIO, Dict, Iterator, Mapping, Tuple

from ..errors import IntegrityFault
from .aesgcm import KEY_BYTES, NONCE_BYTES, TAG_BYTES, AesGcm

MAGIC = b"EPKEEP1\n"
WRAPPED_BYTES = NONCE_BYTES + KEY_BYTES + TAG_BYTES
MAX_RECORD_BYTES = 64 << 20
_MAX_HEAD_BYTES = 1 << 16
_RECORD, _END = 1, 2
_CHUNK = struct.Struct("<BI")
_LENGTH = struct.Struct("<I")
_INDEX = struct.Struct("<Q")


class SegmentWriter:
    """Writes one new segment.

    Args:
        path: Must not exist; the head has reached the disk when this returns.
        head: What is said of the segment in the clear: no payload.
        wrapping: The 32 bytes that seal the segment's own key.

    Attributes:
        size: Bytes written.
        records: How many.
        synced: Whether everything written has reached the disk.
    """

    def __init__(self, path: str, head: Mapping[str, Any], wrapping: bytes) -> None:
        text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode("ascii")
        clear = MAGIC + _LENGTH.pack(len(text)) + text
        key, nonce = os.urandom(KEY_BYTES), os.urandom(NONCE_BYTES)
        self._context = hashlib.sha256(clear).digest()
        self._cipher = AesGcm(key)
        self._index = 0
        self.records = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        # held as long as this is open: whoever deletes the file can wait until it is closed
        fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        data = clear + nonce + AesGcm(wrapping).seal(nonce, key, clear)
        self.size = 0
        self.synced = True
        try:
            self._write(data)
            self.sync()
        except BaseException:
            os.close(self._descriptor)
            os.unlink(path)
            raise

    @property
    def is_deleted(self) -> bool:
        """Whether somebody has deleted the file meanwhile."""
        return os.fstat(self._descriptor).st_nlink == 0

    def append(self, record: bytes) -> None:
        """Seal and write one record.

        Raises:
            OSError: the disk refuses; the segment has to be closed then.
        """
        self._write(self._seal(_RECORD, record))
        self.records += 1

    def sync(self) -> None:
        """Wait until everything written has reached the disk."""
        os.fdatasync(self._descriptor)
        self.synced = True

    def close(self, *, whole: bool = True) -> None:
        """End the segment and forget its key.

        Args:
            whole: Everything appended is in it; False after a failed write.
        """
        if self._descriptor < 0:
            return
        try:
            if whole and not self.is_deleted:
                self._write(self._seal(_END, b""))
                self.sync()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
            del self._cipher

    def _seal(self, kind: int, record: bytes) -> bytes:
        nonce = _INDEX.pack(self._index).rjust(NONCE_BYTES, b"\0")
        context = self._context + bytes((kind,)) + _INDEX.pack(self._index)
        self._index += 1
        sealed = self._cipher.seal(nonce, record, context)
        return _CHUNK.pack(kind, len(sealed)) + sealed

    def _write(self, data: bytes) -> None:
        self.synced = False
        view = memoryview(data)
        while view:
            written = os.write(self._descriptor, view)
            self.size += written
            view = view[written:]


class SegmentReader:
    """Reads one segment from its start; a context manager.

    Args:
        path: The file.

    Attributes:
        head: What is said of it in the clear.
        records: How many records have been read.
        is_closed: Its end has been read: nothing is missing.

    Raises:
        IntegrityFault: it is no segment, or its head is damaged.
        OSError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.name = os.path.basename(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._stream: BinaryIO = os.fdopen(descriptor, "rb")
        self.records = 0
        self.is_closed = False
        try:
            self._clear, self.head = self._read_head()
            self._wrapped = self._stream.read(WRAPPED_BYTES)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> SegmentReader:  # noqa: PYI034 - Self came with 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def key_offset(self) -> int:
        """Where the segment's own key lies: without it nobody can read what follows."""
        return len(self._clear)

    def read(self, wrapping: bytes) -> Iterator[bytes]:
        """Yield the records; stop where the segment was cut off.

        Raises:
            IntegrityFault: the key is another one, or something was changed.
        """
        nonce, sealed = self._wrapped[:NONCE_BYTES], self._wrapped[NONCE_BYTES:]
        try:
            cipher = AesGcm(AesGcm(wrapping).open(nonce, sealed, self._clear))
        except IntegrityFault:
            raise IntegrityFault(
                "`%s` was encrypted with another key, or changed" % self.name
            ) from None
        context = hashlib.sha256(self._clear).digest()
        index = 0
        while True:
            start = self._stream.read(_CHUNK.size)
            if len(start) < _CHUNK.size:
                return
            kind, length = _CHUNK.unpack(start)
            if kind not in (_RECORD, _END) or length > MAX_RECORD_BYTES + TAG_BYTES:
                raise IntegrityFault("`%s` is damaged at record %d" % (self.name, index))
            body = self._stream.read(length)
            if len(body) < length:
                return
            place = _INDEX.pack(index)
            try:
                plain = cipher.open(
                    place.rjust(NONCE_BYTES, b"\0"), body, context + bytes((kind,)) + place
                )
            except IntegrityFault:
                raise IntegrityFault("`%s` is damaged at record %d" % (self.name, index)) from None
            if kind == _END:
                if self._stream.read(1):
                    raise IntegrityFault("`%s` goes on behind its end" % self.name)
                self.is_closed = True
                return
            index += 1
            self.records = index
            yield plain

    def _read_head(self) -> Tuple[bytes, Dict[str, Any]]:
        start = self._stream.read(len(MAGIC) + _LENGTH.size)
        if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + _LENGTH.size:
            raise IntegrityFault("`%s` is no segment of kept requests" % self.name)
        (length,) = _LENGTH.unpack(start[len(MAGIC) :])
        text = self._stream.read(length) if length <= _MAX_HEAD_BYTES else b""
        try:
            head = json.loads(text.decode("ascii"))
        except (ValueError, RecursionError):
            head = None
        if not isinstance(head, dict):
            raise IntegrityFault("the head of `%s` is damaged" % self.name)
        return start + text, head
