"""Reads `.npy` and `.npz` files without running what they hold, and without filling the memory."""

from __future__ import annotations

import errno
import tempfile
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from packager.data._files import REQUEST_BYTES, ROWS_BYTES, check_file
from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_CHUNK: Final = 1 << 20
# What numpy's reader of headers, a Python expression, and zipfile raise for damaged files.
_FAULTS: Final = (
    ValueError, TypeError, OSError, EOFError, KeyError, RuntimeError, MemoryError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_arrays(path: Path, *, most: int = REQUEST_BYTES) -> dict[str, NDArray[Any]]:
    """Return every array of a `.npz` file.

    Args:
        path: The file.
        most: Limit of the bytes that the arrays take together; a zip bomb is refused unread.

    Raises:
        InputOutputError: it is missing or cannot be read.
        UsageError: it is no `.npz` file, too large, or holds objects.
    """
    check_file(path, most=most)
    arrays = {}
    try:
        with path.open("rb") as stream, _archive(path, stream) as archive:
            for member in _members(path, archive, most):
                with archive.open(member) as content:
                    header = _header(content, member.file_size)
                    arrays[_name(member)] = _read_whole(content, header)
    except _FAULTS as fault:
        raise _refused(path, fault) from fault
    return arrays


def read_array(path: Path, *, most: int = REQUEST_BYTES) -> NDArray[Any]:
    """Return the array of a `.npy` file.

    Raises:
        InputOutputError: it is missing or cannot be read.
        UsageError: it is no `.npy` file, too large, or holds objects.
    """
    import numpy as np

    return np.array(map_array(path, most=most), copy=True, subok=False)


def map_array(path: Path, *, most: int = ROWS_BYTES) -> NDArray[Any]:
    """Return the array of a `.npy` file mapped into memory: only what is used is read.

    Raises:
        InputOutputError: it is missing or cannot be read.
        UsageError: it is no `.npy` file, too large, or holds objects.
    """
    check_file(path, most=most)
    try:
        with path.open("rb") as stream:
            return _map(stream, path.stat().st_size)
    except _FAULTS as fault:
        raise _refused(path, fault) from fault


def map_arrays(path: Path, *, most: int = ROWS_BYTES) -> dict[str, NDArray[Any]]:
    """Return every array of a `.npz` file, unpacked to disk and mapped into memory.

    Raises:
        InputOutputError: it is missing or cannot be read, or the disk is full.
        UsageError: it is no `.npz` file, too large, or holds objects.
    """
    check_file(path, most=most)
    arrays = {}
    try:
        with path.open("rb") as stream, _archive(path, stream) as archive:
            for member in _members(path, archive, most):
                # The mapping keeps the unnamed file; it is gone with the array.
                with tempfile.TemporaryFile(prefix="edgepack-rows-") as unpacked:
                    with archive.open(member) as content:
                        _copy(content, unpacked)
                    unpacked.seek(0)
                    arrays[_name(member)] = _map(unpacked, member.file_size)
    except _FAULTS as fault:
        raise _refused(path, fault) from fault
    return arrays


def _archive(path: Path, stream: BinaryIO) -> zipfile.ZipFile:
    if stream.read(2) != b"PK":
        raise UsageError(f"`{path}` is not a readable `.npz` file: it is no zip archive")
    stream.seek(0)
    return zipfile.ZipFile(stream)


def _members(path: Path, archive: zipfile.ZipFile, most: int) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise UsageError(f"`{path}` holds two arrays of one name")
    odd = next((name for name in names if not name.endswith(".npy")), None)
    if odd is not None:
        raise UsageError(f"`{path}` holds `{odd}`, which is no array", accepted="`.npy` members")
    if any(m.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} for m in members):
        raise UsageError(f"`{path}` is packed in a way that numpy does not write")
    # zipfile never gives more of a member than this size, whatever is packed.
    total = sum(member.file_size for member in members)
    if total > most:
        raise UsageError(
            f"`{path}` unpacks to {total >> 20} MiB", accepted=f"up to {most >> 20} MiB"
        )
    return members


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _header(stream: Any, size: int) -> tuple[tuple[int, ...], Any, bool, int]:
    """Return (shape, dtype, Fortran order, length of the header); the data fits into `size`."""
    import math

    import numpy as np

    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    shape, fortran, dtype = read[version](stream)
    if dtype.hasobject:
        raise ValueError("allow_pickle")
    start = stream.tell()
    if any(axis < 0 for axis in shape):
        raise ValueError("a negative size")
    if start + math.prod(shape) * dtype.itemsize > size:
        raise ValueError("it is cut short")
    return shape, dtype, fortran, start


def _read_whole(stream: Any, header: tuple[tuple[int, ...], Any, bool, int]) -> NDArray[Any]:
    import math

    import numpy as np

    shape, dtype, fortran, _ = header
    content = bytearray()
    length = math.prod(shape) * dtype.itemsize
    while len(content) < length:
        part = stream.read(min(length - len(content), _CHUNK))
        if not part:
            raise EOFError("it is cut short")
        content += part
    # To the member's end: only there its checksum is compared.
    while stream.read(_CHUNK):
        pass
    if not dtype.itemsize:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _map(stream: Any, size: int) -> NDArray[Any]:
    import math

    import numpy as np

    shape, dtype, fortran, start = _header(stream, size)
    if not math.prod(shape) * dtype.itemsize:
        return np.zeros(shape, dtype)
    return np.memmap(stream, dtype, "r", start, shape, "F" if fortran else "C")


def _copy(source: Any, target: Any) -> None:
    while part := source.read(_CHUNK):
        target.write(part)


def _refused(path: Path, fault: Exception) -> UsageError | InputOutputError:
    # An archive with false offsets makes the seek invalid, not the disk.
    if isinstance(fault, OSError) and fault.errno not in {None, errno.EINVAL}:
        return InputOutputError(f"`{path}` cannot be read: {fault.strerror}")
    if "allow_pickle" in str(fault):
        return UsageError(
            f"`{path}` holds an object array, which can run code when it is read",
            accepted="arrays of numbers, or of strings with dtype `<U` or `S`",
        )
    kind = path.suffix.lower()
    return UsageError(f"`{path}` is not a readable `{kind}` file: {fault}")
