"""Writes files that are whole or absent, also after a loss of power, and knows them by digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from typing import Any, Dict, Mapping, Tuple

_CHUNK_BYTES = 4 << 20
_MAX_RECORD_BYTES = 1 << 20


def digest_file(path: str) -> Tuple[str, int]:
    """Return a file's SHA-256 and its size in bytes; a link is not followed.

    Raises:
        OSError: it cannot be read.
    """
    sha256 = hashlib.sha256()
    size = 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as stream:
        while True:
            count = stream.readinto(buffer)
            if not count:
                return sha256.hexdigest(), size
            sha256.update(buffer[:count])
            size += count


def move(source: str, target: str) -> None:
    """Move a file, over another if there is one, so that only the whole one has the name.

    Raises:
        OSError: the disk refuses.
    """
    partial = "%s.%d.part" % (target, os.getpid())
    try:
        os.rename(source, partial)
    except OSError:  # another file system
        shutil.copyfile(source, partial)
    descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, target)
    _sync(os.path.dirname(target))


def write_record(path: str, record: Mapping[str, Any]) -> None:
    """Write a JSON object in the place of what is there.

    Raises:
        OSError: the disk refuses.
    """
    text = json.dumps(record, sort_keys=True, indent=1)
    partial = "%s.%d.part" % (path, os.getpid())
    with open(partial, "wb") as stream:
        stream.write(text.encode("ascii"))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    _sync(os.path.dirname(path))


def read_record(path: str) -> Dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        try:
            found = json.loads(stream.read(_MAX_RECORD_BYTES).decode("utf-8"))
        except RecursionError:
            found = None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - as json.loads tells of what is no JSON
    return found


def unlink(path: str) -> None:
    """Remove a file if it is there and can be removed."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
