"""Decompresses the files of a bundle, large ones each in a thread of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from typing import IO, List, Optional, Protocol

from .cgroups import available_cores
from .errors import InputOutputFault, IntegrityFault
from .manifest import FileRecord

CHUNK_BYTES = 1 << 18
# An xz stream names its dictionary's size; edgepack's need 9 MiB.
XZ_MEMORY_LIMIT_BYTES = 80 << 20
# A file of which more is stored is worth a thread, as long as a core is left for it.
ASIDE_BYTES = 1 << 20
# Each has a dictionary of 8 MiB, and what was read ahead for it.
_MOST_AT_ONCE = 4
# How far the reading may be ahead of a thread: 16 MiB.
_AHEAD = 64


class Content(Protocol):
    """What a compressed file's stored bytes are fed to."""

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""

    def close(self) -> None:
        """See that it was the last one, and put the content on the disk."""

    def release(self) -> None:
        """Close the file, whatever has come of it."""


class Plain:
    """A file that is stored as it is."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def feed(self, chunk: bytes) -> None:
        """Write the next piece."""
        self._out.write(chunk)

    def close(self) -> None:
        """Put the content on the disk."""
        sync(self._out)

    def release(self) -> None:
        """Close the file."""
        _close(self._out)


class Unpacking:
    """Unpacks files at once; leaving it waits until all of them are whole and on the disk.

    Raises:
        IntegrityFault: on leaving or before, if a file is damaged or larger than listed.
        OSError: likewise, if one cannot be written.
    """

    def __init__(self) -> None:
        self._threads: List[_Aside] = []
        self._at_once = min(available_cores(), _MOST_AT_ONCE)

    def begin(self, record: FileRecord, out: Optional[IO[bytes]]) -> Content:
        """Return where a file's stored bytes go.

        Args:
            record: The file.
            out: Where its content is written, closed in the end; None to only check it.
        """
        try:
            content = _Decompressed(record, out)
        except BaseException:
            if out is not None:
                _close(out)
            raise
        busy = 1 + sum(aside.is_busy() for aside in self._threads)  # this thread reads
        if busy >= self._at_once or record.stored_size < ASIDE_BYTES:
            return content
        aside = _Aside(content)
        self._threads.append(aside)
        return aside

    def __enter__(self) -> Unpacking:  # noqa: PYI034 - Self came with 3.11
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for aside in self._threads:
            aside.finish(abandoned=kind is not None)
        if kind is None:
            for aside in self._threads:
                if aside.fault is not None:
                    raise aside.fault


class _Aside:
    """One file that is unpacked in a thread of its own.

    Attributes:
        fault: What went wrong.
    """

    def __init__(self, content: _Decompressed) -> None:
        self.fault: Optional[BaseException] = None
        self._content = content
        self._chunks: queue.Queue[Optional[bytes]] = queue.Queue(_AHEAD)
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="edgepack-unpack", daemon=True)
        self._thread.start()

    def is_busy(self) -> bool:
        """Tell whether there is more to do."""
        return self._thread.is_alive()

    def feed(self, chunk: bytes) -> None:
        # What is wrong with the content is told in the end: what is wrong with the stored bytes
        # comes first, however fast the thread is.
        self._chunks.put(chunk)

    def close(self) -> None:
        self._chunks.put(None)

    def release(self) -> None:
        """Leave that to the thread."""

    def finish(self, *, abandoned: bool) -> None:
        """Wait for the thread, which does no more than it has to if it is abandoned."""
        if abandoned:
            self._abandoned = True
            self._chunks.put(None)
        self._thread.join()

    def _work(self) -> None:
        # Whatever happens, all pieces are taken: who feeds must not wait for ever.
        chunks = iter(self._chunks.get, None)
        try:
            for chunk in chunks:
                if not self._abandoned:
                    self._content.feed(chunk)
            if not self._abandoned:
                self._content.close()
        except BaseException as fault:  # noqa: BLE001 - raised where it is waited for
            self.fault = fault
            for _ in chunks:
                pass
        finally:
            self._content.release()


class _Decompressed:
    """One xz stream on its way out, never larger than the manifest says."""

    def __init__(self, record: FileRecord, out: Optional[IO[bytes]]) -> None:
        try:
            import lzma
        except ImportError as fault:
            raise InputOutputFault(
                "this Python was built without the `lzma` module",
                "install the distribution's full python3",
            ) from fault
        self._error = lzma.LZMAError
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT_BYTES)
        self._record = record
        self._out = out
        self._digest = hashlib.sha256()
        self._left = record.size

    def feed(self, chunk: bytes) -> None:
        """Decompress a piece.

        Raises:
            IntegrityFault: it is damaged, or there is more than there should be.
        """
        more = chunk
        while more or not (self._stream.eof or self._stream.needs_input):
            if self._stream.eof:
                raise self._fault()
            try:
                # One byte beyond the declared size is enough to know a bomb.
                out = self._stream.decompress(more, min(self._left + 1, CHUNK_BYTES))
            except (self._error, MemoryError) as fault:
                raise self._fault() from fault
            more = self._stream.unused_data if self._stream.eof else b""
            self._left -= len(out)
            if self._left < 0:
                raise self._fault()
            self._digest.update(out)
            if self._out is not None:
                self._out.write(out)

    def close(self) -> None:
        """See that the stream is whole and its content the one listed, and put it on the disk."""
        if not self._stream.eof or self._left or self._digest.hexdigest() != self._record.sha256:
            raise self._fault()
        if self._out is not None:
            sync(self._out)

    def release(self) -> None:
        """Close the file."""
        if self._out is not None:
            _close(self._out)

    def _fault(self) -> IntegrityFault:
        return IntegrityFault("`%s` does not unpack to what is listed" % self._record.stored_path)


def sync(stream: IO[bytes]) -> None:
    """Put a file on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def _close(stream: IO[bytes]) -> None:
    # What is whole was put on the disk before; the rest fails once more on a full one.
    with contextlib.suppress(OSError):
        stream.close()
