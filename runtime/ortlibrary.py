"""ONNX Runtime's shared library: loading it, its function table, and its errors as ours."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_void_p
from typing import Any, BinaryIO, Callable, Dict, NoReturn, Optional, Type

from .errors import BadRequest, DeviceError, InputOutputFault, ModelFault, TargetMismatch

# The function table only ever grows at its end, so an index holds for every later library.
# Version 17 is the oldest one asked for: libraries from ONNX Runtime 1.17 on answer to it.
API_VERSION = 17

# Members of `struct OrtApi` in onnxruntime_c_api.h, counted from 0, with their arguments.
# Each of these returns an OrtStatus, null for success.
_STATUS_FUNCTIONS = {
    "CreateEnv": (3, (c_int, c_char_p, c_void_p)),
    "DisableTelemetryEvents": (6, (c_void_p,)),
    "CreateSession": (7, (c_void_p, c_char_p, c_void_p, c_void_p)),
    "Run": (
        9,
        (c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p),
    ),
    "CreateSessionOptions": (10, (c_void_p,)),
    "EnableCpuMemArena": (18, (c_void_p,)),
    "SetSessionLogSeverityLevel": (22, (c_void_p, c_int)),
    "SetSessionGraphOptimizationLevel": (23, (c_void_p, c_int)),
    "SetIntraOpNumThreads": (24, (c_void_p, c_int)),
    "SetInterOpNumThreads": (25, (c_void_p, c_int)),
    "SessionGetInputCount": (30, (c_void_p, c_void_p)),
    "SessionGetOutputCount": (31, (c_void_p, c_void_p)),
    "SessionGetInputTypeInfo": (33, (c_void_p, c_size_t, c_void_p)),
    "SessionGetOutputTypeInfo": (34, (c_void_p, c_size_t, c_void_p)),
    "SessionGetInputName": (36, (c_void_p, c_size_t, c_void_p, c_void_p)),
    "SessionGetOutputName": (37, (c_void_p, c_size_t, c_void_p, c_void_p)),
    "CreateTensorAsOrtValue": (48, (c_void_p, c_void_p, c_size_t, c_int, c_void_p)),
    "CreateTensorWithDataAsOrtValue": (
        49,
        (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_int, c_void_p),
    ),
    "GetTensorMutableData": (51, (c_void_p, c_void_p)),
    "FillStringTensor": (52, (c_void_p, c_void_p, c_size_t)),
    "GetStringTensorDataLength": (53, (c_void_p, c_void_p)),
    "GetStringTensorContent": (54, (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)),
    "CastTypeInfoToTensorInfo": (55, (c_void_p, c_void_p)),
    "GetOnnxTypeFromTypeInfo": (56, (c_void_p, c_void_p)),
    "GetTensorElementType": (60, (c_void_p, c_void_p)),
    "GetDimensionsCount": (61, (c_void_p, c_void_p)),
    "GetDimensions": (62, (c_void_p, c_void_p, c_size_t)),
    "GetSymbolicDimensions": (63, (c_void_p, c_void_p, c_size_t)),
    "GetTensorTypeAndShape": (65, (c_void_p, c_void_p)),
    "CreateCpuMemoryInfo": (69, (c_int, c_int, c_void_p)),
    "AllocatorFree": (76, (c_void_p, c_void_p)),
    "GetAllocatorWithDefaultOptions": (78, (c_void_p,)),
    "AddSessionConfigEntry": (130, (c_void_p, c_char_p, c_char_p)),
}
_RELEASE_FUNCTIONS = {
    "ReleaseStatus": 93,
    "ReleaseMemoryInfo": 94,
    "ReleaseSession": 95,
    "ReleaseValue": 96,
    "ReleaseTypeInfo": 98,
    "ReleaseTensorTypeAndShapeInfo": 99,
    "ReleaseSessionOptions": 100,
}
# Long calls let other threads run; giving the interpreter up in the short ones costs more than
# they do.
_LONG_FUNCTIONS = frozenset(("CreateSession", "Run", "ReleaseSession"))

LOG_FATAL = 4  # every error comes back as a status: ONNX Runtime need not print it as well
_INVALID_ARGUMENT = 2
# The program headers of 64-bit ELF: type, flags, offset, two addresses, sizes, alignment.
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


class _ApiBase(ctypes.Structure):
    _fields_ = [("get_api", c_void_p), ("get_version_string", c_void_p)]


class Library:
    """ONNX Runtime's C functions by name, and the one environment of this process.

    Args:
        path: The shared library.

    Raises:
        TargetMismatch: it was built for another processor or needs a newer C library.
        InputOutputFault: there is no such file.
        ModelFault: it is no ONNX Runtime, or one that is too old.
    """

    def __init__(self, path: str) -> None:
        # Since 1.32 the Linux library reports home: making its environment already writes an id
        # of the device, a session and a database of events, before it can be told not to.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        self._handle = _open(path)
        try:
            get_base = self._handle.OrtGetApiBase
        except AttributeError:
            raise ModelFault("`%s` is no ONNX Runtime library" % os.path.basename(path)) from None
        get_base.restype = ctypes.POINTER(_ApiBase)
        base = get_base().contents
        version = ctypes.CFUNCTYPE(c_char_p)(base.get_version_string)()
        self.version = version.decode("ascii", "replace")
        table = ctypes.CFUNCTYPE(c_void_p, c_uint32)(base.get_api)(API_VERSION)
        if not table:
            raise ModelFault(
                "`%s` is ONNX Runtime %s where 1.%d or later is needed"
                % (os.path.basename(path), self.version, API_VERSION)
            )
        pointers = ctypes.cast(table, ctypes.POINTER(c_void_p))
        self._functions: Dict[str, Callable[..., Any]] = {}
        for name, (index, arguments) in _STATUS_FUNCTIONS.items():
            make = ctypes.CFUNCTYPE if name in _LONG_FUNCTIONS else ctypes.PYFUNCTYPE
            self._functions[name] = make(c_void_p, *arguments)(pointers[index])
        for name, index in _RELEASE_FUNCTIONS.items():
            make = ctypes.CFUNCTYPE if name in _LONG_FUNCTIONS else ctypes.PYFUNCTYPE
            self._functions[name] = make(None, c_void_p)(pointers[index])
        self._error_code = ctypes.PYFUNCTYPE(c_int, c_void_p)(pointers[1])
        self._error_message = ctypes.PYFUNCTYPE(c_char_p, c_void_p)(pointers[2])
        self.run = self._functions["Run"]
        self.release_value = self._functions["ReleaseValue"]
        self.environment = self.create("CreateEnv", LOG_FATAL, b"edgepack")
        self.call("DisableTelemetryEvents", self.environment)
        self.allocator = self.create("GetAllocatorWithDefaultOptions")
        # allocator type 0 is a plain device allocator, memory type 0 the default
        self.cpu_memory = self.create("CreateCpuMemoryInfo", 0, 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the table.

        Raises:
            ModelFault: it returned an error.
        """
        status = self._functions[name](*arguments)
        if status:
            self.fail(status)

    def start(self, name: str, *arguments: Any) -> int:
        """Call a function whose last argument receives a pointer; return its status."""
        *others, out = arguments
        status: Optional[int] = self._functions[name](*others, ctypes.byref(out))
        return status or 0

    def create(self, name: str, *arguments: Any) -> int:
        """Call a function whose last argument receives a pointer; return the pointer."""
        out = c_void_p()
        self.call(name, *arguments, ctypes.byref(out))
        return out.value or 0

    def count(self, name: str, *arguments: Any) -> int:
        """Call a function whose last argument receives a `size_t`; return the number."""
        out = c_size_t()
        self.call(name, *arguments, ctypes.byref(out))
        return out.value

    def code(self, name: str, *arguments: Any) -> int:
        """Call a function whose last argument receives an enum; return its value."""
        out = c_int()
        self.call(name, *arguments, ctypes.byref(out))
        return out.value

    def release(self, name: str, pointer: int) -> None:
        """Release an object by its function's name; a null pointer is left alone."""
        if pointer:
            self._functions[name](pointer)

    def fail(
        self, status: int, invalid_argument: Type[DeviceError] = ModelFault, hide: str = ""
    ) -> NoReturn:
        """Raise what a status says, and release it.

        Args:
            status: Not null.
            invalid_argument: The class for an argument that ONNX Runtime refused.
            hide: A path that must not be in the message.
        """
        code = self._error_code(status)
        message = (self._error_message(status) or b"").decode("utf-8", "replace")
        self.release("ReleaseStatus", status)
        text = _one_line(message.replace(hide, os.path.basename(hide)) if hide else message)
        if code == _INVALID_ARGUMENT:
            raise invalid_argument(text)
        raise ModelFault(text)


@functools.lru_cache(maxsize=None)
def load_library(path: str) -> Library:
    """Return the library at a path, loaded once: a process has one ONNX Runtime environment."""
    return Library(path)


def refuse_run(library: Library, status: int) -> NoReturn:
    """Raise what a failed `Run` says: the request's fault where ONNX Runtime blames its inputs."""
    library.fail(status, BadRequest)


def _open(path: str) -> ctypes.CDLL:
    """Load a shared library, or say what it would have needed."""
    name = os.path.basename(path)
    try:
        with open(path, "rb") as stream:
            _check_elf(name, stream)
    except OSError as error:
        raise InputOutputFault("cannot read the engine library: %s" % error) from error
    try:
        # RTLD_LOCAL: its own copies of common libraries must not reach other modules
        return ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise _load_fault(name, str(error)) from error


def _check_elf(name: str, stream: BinaryIO) -> None:
    """Look at a library's headers: the loader dies of a bus error where a segment is cut off."""
    header = stream.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        raise ModelFault("`%s` is no 64-bit shared library" % name)
    (machine,) = struct.unpack_from("<H", header, 18)
    built_for = _ELF_MACHINES.get(machine, "machine %d" % machine)
    here = os.uname().machine
    if built_for != here:
        raise TargetMismatch(
            "the engine library is for %s and this machine is %s" % (built_for, here),
            hint="build the bundle for a target of this machine",
        )
    (table,) = struct.unpack_from("<Q", header, 32)
    entry_size, count = struct.unpack_from("<HH", header, 54)
    stream.seek(table)
    entries = stream.read(entry_size * count)
    size = os.fstat(stream.fileno()).st_size
    for start in range(0, entry_size * count, max(entry_size, 1)):
        entry = entries[start : start + _PROGRAM_HEADER.size]
        if len(entry) < _PROGRAM_HEADER.size:
            raise ModelFault("`%s` is cut off" % name)
        kind, _, offset, _, _, in_file, _, _ = _PROGRAM_HEADER.unpack(entry)
        if kind == _PT_LOAD and offset + in_file > size:
            raise ModelFault("`%s` is cut off" % name)


def _load_fault(name: str, message: str) -> DeviceError:
    """Return the fault for what the dynamic loader said."""
    needed = re.search(r"version [`']((?:GLIBC|GLIBCXX|CXXABI)_[0-9.]+)' not found", message)
    if needed:
        import platform  # compiles its patterns when it is imported

        libc = " ".join(platform.libc_ver()) or "another C library"
        return TargetMismatch(
            "the engine library needs %s and this system has %s" % (needed.group(1), libc),
            hint="use a newer system, or build for a target with this one's C library",
        )
    absent = re.match(r"([\w.+-]+): cannot open shared object file", message)
    if absent or "Error loading shared library" in message:
        what = absent.group(1) if absent else "the GNU C library"
        return TargetMismatch("the engine library needs `%s`, which this system lacks" % what)
    if "noexec" in message or "failed to map segment" in message:
        return InputOutputFault(
            "`%s` cannot be mapped as code" % name,
            hint="put the release on a file system that is not mounted noexec",
        )
    return ModelFault("`%s` cannot be loaded: %s" % (name, _one_line(message)))


def _one_line(message: str) -> str:
    """Return the first line without the source position that ONNX Runtime puts before it."""
    first = message.strip().split("\n", 1)[0].strip()
    # `/onnxruntime_src/…/file.cc:123 onnxruntime::common::Status …(args) message`
    first = re.sub(r"\S*/onnxruntime\S*:\d+ ", "", first)
    return first.rstrip(".") or "ONNX Runtime gave no reason"
