"""Lists and reads the files of a source: no hidden ones, no links out of it, none too large."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from packager.errors import InputOutputError, UsageError

PHOTO_BYTES: Final = 256 << 20
SOUND_BYTES: Final = 512 << 20
# A request that is read whole; a file of rows is mapped, and may be larger.
REQUEST_BYTES: Final = 2 << 30
ROWS_BYTES: Final = 256 << 30
TEXT_BYTES: Final = 64 << 20
MOST_SAMPLES: Final = 1_000_000


def files_below(folder: Path) -> list[Path]:
    """Return every file below a folder, in the order of the relative paths.

    Hidden files and folders are passed over.

    Raises:
        InputOutputError: the folder or a part of it cannot be read.
        UsageError: a link that leads out of the folder or to another folder, or something that is
            no ordinary file.
    """

    def refuse(fault: OSError) -> None:
        raise InputOutputError(f"`{fault.filename}` cannot be read: {fault.strerror}") from fault

    top = os.path.realpath(folder)
    found: list[Path] = []
    for base, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            # Links may form a loop, and a folder elsewhere is no part of this source.
            if Path(base, name).is_symlink():
                raise UsageError(
                    f"`{Path(base, name)}` is a link to a folder",
                    accepted="files, and folders that really lie in the source",
                    hint="name that folder as the source, or copy it",
                )
        found += [Path(base) / name for name in names if not name.startswith(".")]
    for path in found:
        # `Path.resolve` raises for links that lead round; those are refused when they are read.
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(top):
            raise UsageError(
                f"`{path}` is a link that leads out of the source",
                accepted="files that lie in the source",
                hint="copy the file, or hard-link it (`ln`)",
            )
    if len(found) > MOST_SAMPLES:
        raise UsageError(f"`{folder}` holds {len(found)} files", accepted=f"up to {MOST_SAMPLES}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def check_file(path: Path, *, most: int) -> None:
    """Refuse what is no ordinary readable file of at most `most` bytes.

    Raises:
        InputOutputError: it is missing, or nobody tells what it is.
        UsageError: it is no ordinary file (a pipe would block), or too large.
    """
    try:
        found = path.stat()
    except OSError as fault:
        raise InputOutputError(f"`{path}` cannot be read: {fault.strerror}") from fault
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"`{path}` is no ordinary file")
    if found.st_size > most:
        raise UsageError(
            f"`{path}` has {found.st_size >> 20} MiB", accepted=f"up to {most >> 20} MiB"
        )


def read_bytes(path: Path, *, most: int) -> bytes:
    """Return a file's content.

    Raises:
        InputOutputError: it is missing or cannot be read.
        UsageError: it is no ordinary file, or has more than `most` bytes.
    """
    check_file(path, most=most)
    try:
        return path.read_bytes()
    except OSError as fault:
        raise InputOutputError(f"`{path}` cannot be read: {fault.strerror}") from fault


def read_text(path: Path) -> str:
    """Return a UTF-8 file's content, without a byte order mark.

    Raises:
        InputOutputError: it is missing or cannot be read.
        UsageError: it is not UTF-8, or too large.
    """
    content = read_bytes(path, most=TEXT_BYTES)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise UsageError(f"`{path}`, line {line}: not UTF-8", accepted="text in UTF-8") from fault
