"""Checks and reads the external data of ONNX tensors without leaving the model's folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from packager.errors import InputOutputError, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})
_MAX_OFFSET_DIGITS: Final = 18
_CHUNK_BYTES: Final = 1 << 24


def check_external(tensor: onnx.TensorProto, folder: Path, *, size: int, where: str) -> None:
    """Refuse a reference that leaves the folder, lies about its place, or names no plain file.

    Args:
        tensor: A tensor whose data is external.
        folder: The model's folder.
        size: Bytes that the tensor's type and dimensions take.
        where: How messages begin.

    Raises:
        ModelUnsupported: what is wrong with the reference.
    """
    location, offset, length = _reference(tensor, size=size, where=where)
    found = _plain_file(folder, location, where)
    if length != size:
        raise ModelUnsupported(
            f"{where} takes {size} bytes but names {length} bytes of external data"
        )
    if offset + length > found.st_size:
        raise ModelUnsupported(
            f"{where} lies at bytes {offset} to {offset + length} of `{location}`, "
            f"which has {found.st_size}"
        )


def read_external(tensor: onnx.TensorProto, folder: Path, *, size: int) -> bytes:
    """Move a checked tensor's external data into it and return the bytes.

    Raises:
        ModelUnsupported: the file changed since it was checked.
        InputOutputError: it cannot be read.
    """
    data = b"".join(external_chunks(tensor, folder, size=size))
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = data
    return data


def external_chunks(tensor: onnx.TensorProto, folder: Path, *, size: int) -> Iterator[bytes]:
    """Yield a checked tensor's external data piece by piece.

    Raises:
        ModelUnsupported: the file changed since it was checked.
        InputOutputError: it cannot be read.
    """
    where = f"tensor `{tensor.name}`"
    location, offset, length = _reference(tensor, size=size, where=where)
    path = folder / location
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor, opened without links
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise ModelUnsupported(f"{where}: `{location}` changed while it was read")
            stream.seek(offset)
            left = size if length == size else 0
            while left and (data := stream.read(min(left, _CHUNK_BYTES))):
                left -= len(data)
                yield data
    except OSError as fault:
        raise InputOutputError(f"`{location}` cannot be read: {fault.strerror}") from fault
    if left or length != size:
        raise ModelUnsupported(f"{where}: `{location}` changed while it was read")


def locations(tensors: list[onnx.TensorProto]) -> list[str]:
    """Return the distinct file names that tensors refer to, sorted."""
    found = {
        entry.value
        for tensor in tensors
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(found)


def _reference(tensor: onnx.TensorProto, *, size: int, where: str) -> tuple[str, int, int]:
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in _KEYS:
            raise ModelUnsupported(f"{where} has the unknown external data key `{entry.key[:60]}`")
        if entry.key in entries:
            raise ModelUnsupported(f"{where} gives its external data's `{entry.key}` twice")
        entries[entry.key] = entry.value
    if not entries.get("location"):
        raise ModelUnsupported(f"{where} has external data but does not say in which file")
    offset = _number(entries.get("offset", "0"), "offset", where)
    length = _number(entries.get("length", str(size)), "length", where)
    return entries["location"], offset, length


def _number(text: str, key: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_OFFSET_DIGITS):
        raise ModelUnsupported(
            f"{where} gives `{text[:40]}` as its external data's {key}",
            accepted="a whole number of bytes, 0 or more",
        )
    return int(text)


def _plain_file(folder: Path, location: str, where: str) -> os.stat_result:
    """Return the status of a regular file that lies in the folder by its own name only."""
    parts = PurePosixPath(location).parts
    if (
        location.startswith("/")
        or "\\" in location
        or "\0" in location
        or ".." in parts
        or not parts
        or (len(location) > 1 and location[1] == ":")
        or "://" in location
    ):
        raise ModelUnsupported(
            f"{where} names external data outside the model's folder: `{location[:200]}`",
            accepted="a file beside the model",
        )
    path = folder
    for part in parts:
        path = path / part
        try:
            status = path.lstat()
        except FileNotFoundError as fault:
            raise ModelUnsupported(
                f"{where} is kept in `{location}`, which is missing",
                hint=f"copy `{location}` into the folder of the model",
            ) from fault
        except (OSError, ValueError) as fault:
            raise ModelUnsupported(f"{where} is kept in `{location[:200]}`: {fault}") from fault
        if stat.S_ISLNK(status.st_mode):
            raise ModelUnsupported(
                f"{where} is kept behind the symbolic link `{location}`",
                hint="replace the link by the file: `cp --remove-destination $(readlink -f F) F`",
            )
    if not stat.S_ISREG(status.st_mode):
        raise ModelUnsupported(f"{where} is kept in `{location}`, which is not a regular file")
    if status.st_nlink > 1:
        raise ModelUnsupported(
            f"{where} is kept in `{location}`, which has a second name on this disk (a hard link)",
            hint="make it a file of its own: `cp F F.copy && mv F.copy F`",
        )
    return status
