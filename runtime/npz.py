"""Reads and writes NumPy's `.npy` and `.npz` files without NumPy."""

from __future__ import annotations

import ast
import io
import math
import os
import re
import struct
import zipfile
import zlib
from array import array
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple, Union

from .dtypes import BY_NAME, TABLE
from .errors import BadRequest, InputOutputFault
from .tensor import MAX_RANK, Tensor

MAX_FILE_BYTES = 2 << 30
MAX_HEADER_BYTES = 10_000  # NumPy's own limit: literal_eval is not meant for more

_MAGIC = b"\x93NUMPY"
_ALIGNMENT = 64
_DATE = (1980, 1, 1, 0, 0, 0)
_NAMES = {dtype.npy[1:]: dtype.name for dtype in TABLE if dtype.npy}
# NumPy has no bfloat16: ml_dtypes writes its two bytes as an anonymous type, and so do we.
_NAMES["V2"] = "bfloat16"
_CODES_BY_SIZE = {1: "B", 2: "H", 4: "I", 8: "Q"}
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    ValueError,
)


class _Header(NamedTuple):
    """What a `.npy` file says of its array: `kind` is NumPy's letter, `size` bytes an element."""

    kind: str
    size: int
    big_endian: bool
    fortran_order: bool
    shape: Tuple[int, ...]
    start: int


def read_npz(source: Union[str, bytes], *, max_bytes: int = MAX_FILE_BYTES) -> Dict[str, Tensor]:
    """Return the arrays of an `.npz` file by name, in the file's order.

    Args:
        source: A path, or the file's bytes.
        max_bytes: The most that all arrays together may take when unpacked.

    Raises:
        InputOutputFault: the file cannot be read.
        BadRequest: it is no `.npz` file, is damaged or too large, or holds an array that is not
            served: objects, records, complex numbers, dates.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            return _read_entries(file, max_bytes)
    except OSError as error:
        raise InputOutputFault("cannot read `%s`: %s" % (error.filename, error.strerror)) from error
    except _BROKEN_ZIP as error:
        raise BadRequest("not a whole .npz file: %s" % error) from error


def write_npz(path: str, tensors: Mapping[str, Tensor]) -> None:
    """Write arrays by name, stored and with a fixed date, so that equal arrays give equal files.

    The file appears whole or not at all.

    Raises:
        InputOutputFault: the file cannot be written.
    """
    data = pack_npz(tensors)
    draft = "%s.%d.part" % (path, os.getpid())
    try:
        try:
            with open(draft, "wb") as stream:
                stream.write(data)
            os.replace(draft, path)
        except BaseException:
            if os.path.exists(draft):
                os.unlink(draft)
            raise
    except OSError as error:
        raise InputOutputFault("cannot write `%s`: %s" % (path, error.strerror)) from error


def pack_npz(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of an `.npz` file.

    Raises:
        BadRequest: a name holds a NUL character, which a zip file cannot.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:
        for name, tensor in tensors.items():
            if "\0" in name:
                raise BadRequest("an array's name in an .npz file cannot hold a NUL character")
            entry = zipfile.ZipInfo(name + ".npy", _DATE)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            file.writestr(entry, write_npy(tensor))
    return stream.getvalue()


def read_npy(data: bytes, name: str = "array") -> Tensor:
    """Return the array of a `.npy` file, of any version, byte order and memory order.

    Args:
        data: The whole file.
        name: What to call the array in a message.

    Raises:
        BadRequest: the file is damaged, or holds an array that is not served.
    """
    header = _read_header(data, name)
    content = memoryview(data)[header.start :]
    needed = math.prod(header.shape) * header.size
    if len(content) != needed:
        raise BadRequest(
            "array `%s` has %d bytes where its header says %d" % (name, len(content), needed)
        )
    if header.kind in "US":
        return Tensor("string", header.shape, _read_strings(header, content, name))
    dtype = _NAMES["%s%d" % (header.kind, header.size)]
    if header.fortran_order or header.big_endian:
        items = array(_CODES_BY_SIZE[header.size])
        items.frombytes(content)
        if header.big_endian:
            items.byteswap()
        if header.fortran_order:
            items = _row_major(items, header.shape)
        return Tensor.from_bytes(items.tobytes(), header.shape, dtype, where=name)
    return Tensor.from_bytes(content.tobytes(), header.shape, dtype, where=name)


def write_npy(tensor: Tensor) -> bytes:
    """Return a `.npy` file of version 1; strings as `<U`, or as `S` where they are no UTF-8."""
    if tensor.dtype == "string":
        descriptor, content = _write_strings(tensor.data)
    else:
        descriptor = BY_NAME[tensor.dtype].npy or "|V2"
        content = bytes(tensor.data)
    shape = "(%s)" % "".join("%d, " % size for size in tensor.shape).strip()
    if len(tensor.shape) > 1:
        shape = "(%s)" % ", ".join(map(str, tensor.shape))
    header = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }" % (descriptor, shape)
    padding = -(len(_MAGIC) + 4 + len(header) + 1) % _ALIGNMENT
    text = (header + " " * padding + "\n").encode("latin-1")
    return _MAGIC + b"\1\0" + struct.pack("<H", len(text)) + text + content


def _read_entries(file: zipfile.ZipFile, max_bytes: int) -> Dict[str, Tensor]:
    tensors: Dict[str, Tensor] = {}
    total = 0
    for entry in file.infolist():
        name = entry.filename
        if not name.endswith(".npy"):
            raise BadRequest("`%s` in the .npz file is no .npy array" % name)
        name = name[: -len(".npy")]
        if name in tensors:
            raise BadRequest("the .npz file holds array `%s` twice" % name)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadRequest("array `%s` is compressed in a way that .npz files are not" % name)
        # zipfile stops at the declared size and checks it against the content
        total += entry.file_size
        if total > max_bytes:
            raise BadRequest("the .npz file unpacks to more than %d bytes" % max_bytes)
        tensors[name] = read_npy(file.read(entry), name)
    return tensors


def _read_header(data: bytes, name: str) -> _Header:
    if data[: len(_MAGIC)] != _MAGIC or len(data) < 12:
        raise BadRequest("array `%s` is no .npy file" % name)
    major = data[6]
    if major not in (1, 2, 3):
        raise BadRequest("array `%s` is of .npy version %d, and 1 to 3 are known" % (name, major))
    before = 10 if major == 1 else 12
    length = int.from_bytes(data[8:before], "little")
    if length > MAX_HEADER_BYTES or before + length > len(data):
        raise BadRequest("array `%s` has a .npy header of %d bytes" % (name, length))
    raw = data[before : before + length]
    try:
        fields = ast.literal_eval(raw.decode("utf-8" if major == 3 else "latin-1").strip())
    # a hostile header nests deeper than the parser of some interpreters goes
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise BadRequest("array `%s` has a .npy header that cannot be read" % name) from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise BadRequest("array `%s` has a .npy header without the fields of one" % name)
    shape = fields["shape"]
    if (
        not isinstance(shape, tuple)
        or len(shape) > MAX_RANK
        or any(type(size) is not int or size < 0 for size in shape)
        or not isinstance(fields["fortran_order"], bool)
    ):
        raise BadRequest("array `%s` has a .npy header with an impossible shape" % name)
    kind, size, big_endian = _read_descriptor(fields["descr"], name)
    return _Header(kind, size, big_endian, fields["fortran_order"], shape, before + length)


def _read_descriptor(descriptor: object, name: str) -> Tuple[str, int, bool]:
    """Return NumPy's letter for the type, bytes an element, and whether it is big-endian."""
    found = re.match(r"([<>|=]?)([a-zA-Z])([0-9]{0,9})\Z", str(descriptor))
    if found is None:
        raise BadRequest("array `%s` is of records, which are not served" % name)
    order, kind, digits = found.groups()
    if kind == "O":
        raise BadRequest(
            "array `%s` is of Python objects, whose pickles could run any program" % name,
            hint="save it as numbers, or strings as `<U` with array.astype(str)",
        )
    size = int(digits or "0")
    if kind == "U":
        return kind, size * 4, order == ">"
    if kind != "S" and "%s%d" % (kind, size) not in _NAMES:
        raise BadRequest("array `%s` is of type `%s`, which is not served" % (name, descriptor))
    return kind, size, order == ">" and kind not in "SV"


def _read_strings(header: _Header, content: memoryview, name: str) -> List[bytes]:
    count = math.prod(header.shape)
    size = header.size
    items = [content[i * size : (i + 1) * size].tobytes() for i in range(count)]
    if header.kind == "U":
        encoding = "utf-32-be" if header.big_endian else "utf-32-le"
        try:
            items = [item.decode(encoding).encode() for item in items]
        except UnicodeError as error:
            raise BadRequest("array `%s` holds what is no Unicode text" % name) from error
    # NumPy pads with NUL, so it cannot keep one at the end either
    items = [item.rstrip(b"\0") for item in items]
    return _row_major(items, header.shape) if header.fortran_order else items


def _write_strings(items: List[bytes]) -> Tuple[str, bytes]:
    try:
        wide = [item.decode().encode("utf-32-le") for item in items]
    except UnicodeDecodeError:
        size = max(map(len, items))
        return "|S%d" % size, b"".join(item.ljust(size, b"\0") for item in items)
    size = max(map(len, wide), default=0) or 4
    return "<U%d" % (size // 4), b"".join(item.ljust(size, b"\0") for item in wide)


def _row_major(items: Any, shape: Tuple[int, ...]) -> Any:
    """Return a column-major array or list in row-major order."""
    if len(shape) < 2 or not items:
        return items
    # every d0-th element from the i-th on is the column-major block of row i
    rows = [_row_major(items[i :: shape[0]], shape[1:]) for i in range(shape[0])]
    result = rows[0]
    for row in rows[1:]:
        result += row
    return result
