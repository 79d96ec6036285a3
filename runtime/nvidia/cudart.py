"""CUDA's runtime library through ctypes: devices, memory, streams, graphs, and errors as ours."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import sys
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any, Callable, Dict, Iterable, List, NoReturn, Optional, Sequence, Tuple

from .cudaerrors import LOST, NO_DEVICE, CudaFault, CudaMissing, explain

__all__ = ["SONAMES", "TO_DEVICE", "TO_HOST", "CudaFault", "CudaMissing", "Cudart", "load_cudart"]

# The newest first. CUDA kept these functions' signatures from 11.4 to 13.
SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")

_OUT_INT, _OUT_POINTER, _OUT_SIZE = POINTER(c_int), POINTER(c_void_p), POINTER(c_size_t)
# Calls that only queue work keep the interpreter: to give it up and get it back costs more.
_SHORT: Dict[str, Tuple[Any, ...]] = {
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaGetLastError": (),
}
_LONG: Dict[str, Tuple[Any, ...]] = {
    "cudaDriverGetVersion": (_OUT_INT,),
    "cudaRuntimeGetVersion": (_OUT_INT,),
    "cudaGetDeviceCount": (_OUT_INT,),
    "cudaGetDeviceProperties": (c_char_p, c_int),
    "cudaDeviceGetAttribute": (_OUT_INT, c_int, c_int),
    "cudaMemGetInfo": (_OUT_SIZE, _OUT_SIZE),
    "cudaMalloc": (_OUT_POINTER, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (_OUT_POINTER, c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaHostGetDevicePointer": (_OUT_POINTER, c_void_p, c_uint),
    "cudaStreamCreateWithFlags": (_OUT_POINTER, c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, _OUT_POINTER),
    "cudaGraphInstantiateWithFlags": (_OUT_POINTER, c_void_p, c_ulonglong),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
    "cudaEventCreateWithFlags": (_OUT_POINTER, c_uint),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
}

TO_DEVICE, TO_HOST = 1, 2
_HOST_ALLOC_MAPPED = 2
_STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
# The structure's first member is the name; the whole takes 1,032 bytes at most so far.
_NAME_BYTES, _PROPERTIES_BYTES = 256, 8192
_INTEGRATED, _CAN_MAP, _MAJOR, _MINOR = 18, 19, 75, 76


class Cudart:
    """One loaded `libcudart`; every failed call raises.

    Args:
        path: The library's path or name.

    Attributes:
        path: Of the library.
        runtime_version: Such as `12.6`; `11` where the library cannot tell without a driver.
        memcpy_async: `(to, from, bytes, kind, stream) -> status`, for calls that must be quick.
        graph_launch: `(graph, stream) -> status`.
        synchronize: `(stream) -> status`; other threads run meanwhile.

    Raises:
        CudaMissing: it does not load, or lacks a function.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            libraries = ((ctypes.CDLL(path), _LONG), (ctypes.PyDLL(path), _SHORT))
        except OSError as error:
            raise CudaMissing(
                "CUDA's runtime library `%s` does not load: %s" % (os.path.basename(path), error)
            ) from error
        self._functions: Dict[str, Callable[..., int]] = {}
        for library, table in libraries:
            for name, arguments in table.items():
                function = getattr(library, name, None)
                if function is None:
                    raise CudaMissing(
                        "`%s` has no `%s`: it is older than CUDA 11.4, or no CUDA runtime"
                        % (os.path.basename(path), name)
                    )
                function.argtypes = arguments
                function.restype = c_int
                self._functions[name] = function
        self._error_name = libraries[0][0].cudaGetErrorName
        self._error_text = libraries[0][0].cudaGetErrorString
        for tell in (self._error_name, self._error_text):
            tell.argtypes = (c_int,)
            tell.restype = c_char_p
        self.memcpy_async = self._functions["cudaMemcpyAsync"]
        self.graph_launch = self._functions["cudaGraphLaunch"]
        self.synchronize = self._functions["cudaStreamSynchronize"]
        number = self._ask("cudaRuntimeGetVersion")
        self.runtime_version = _version(number) if number else _version_in_name(path)

    @property
    def fits_driver(self) -> bool:
        """Whether the driver is of this library's major version or a later one."""
        needed = self.runtime_version.partition(".")[0]
        return self._ask("cudaDriverGetVersion") // 1000 >= int(needed or 0)

    @property
    def driver_version(self) -> str:
        """Return the CUDA version that the driver supports, empty without a driver."""
        number = self._ask("cudaDriverGetVersion")
        return _version(number) if number else ""

    # -- devices ---------------------------------------------------------------------------

    def device_count(self) -> int:
        """Return the number of GPUs, at least 1.

        Raises:
            CudaFault: there is none, or no driver for this version of CUDA.
        """
        count = self._get_int("cudaGetDeviceCount", "counting GPUs")
        if count == 0:
            self.fail(NO_DEVICE, "cudaGetDeviceCount", "counting GPUs")
        return count

    def device_name(self, device: int = 0) -> str:
        """Return the GPU's name."""
        buffer = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", "asking for the GPU's name", buffer, device)
        return buffer.raw[:_NAME_BYTES].split(b"\0")[0].decode("utf-8", "replace")

    def compute_capability(self, device: int = 0) -> str:
        """Return such as `8.7`."""
        doing = "asking for the compute capability"
        major, minor = (
            self._get_int("cudaDeviceGetAttribute", doing, attribute, device)
            for attribute in (_MAJOR, _MINOR)
        )
        return "%d.%d" % (major, minor)

    def is_integrated(self, device: int = 0) -> bool:
        """Return whether the GPU shares the host's memory."""
        doing = "asking whether the GPU has memory of its own"
        return bool(self._get_int("cudaDeviceGetAttribute", doing, _INTEGRATED, device))

    def can_map(self, device: int = 0) -> bool:
        """Return whether the GPU can read and write the host's memory where it lies."""
        doing = "asking whether host memory can be mapped"
        return bool(self._get_int("cudaDeviceGetAttribute", doing, _CAN_MAP, device))

    def memory_info(self) -> Tuple[int, int]:
        """Return the GPU's free and total memory in bytes."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", "asking for free memory", free, total)
        return free.value, total.value

    # -- memory ----------------------------------------------------------------------------

    def malloc(self, size: int, what: str) -> int:
        """Return the address of device memory.

        Args:
            size: Bytes.
            what: What it is for, for the message where there is not enough.
        """
        return self._get_pointer("cudaMalloc", what, size)

    def free(self, address: int) -> None:
        """Free device memory; waits for the GPU."""
        self._call("cudaFree", "freeing memory", address)

    def host_alloc(self, size: int, what: str, *, mapped: bool) -> int:
        """Return the address of page-locked host memory; `mapped`: the GPU can reach it too."""
        flags = _HOST_ALLOC_MAPPED if mapped else 0
        return self._get_pointer("cudaHostAlloc", what, size, flags)

    def host_free(self, address: int) -> None:
        """Free page-locked host memory."""
        self._call("cudaFreeHost", "freeing host memory", address)

    def device_pointer(self, host: int) -> int:
        """Return where the GPU sees mapped host memory."""
        doing = "asking where the GPU sees host memory"
        return self._get_pointer("cudaHostGetDevicePointer", doing, host, 0)

    # -- streams and graphs ----------------------------------------------------------------

    def stream_create(self) -> int:
        """Return a stream that does not wait for the default one."""
        doing = "creating a stream"
        return self._get_pointer("cudaStreamCreateWithFlags", doing, _STREAM_NON_BLOCKING)

    def stream_destroy(self, stream: int) -> None:
        """Free a stream."""
        self._call("cudaStreamDestroy", "freeing a stream", stream)

    def stream_synchronize(self, stream: int) -> None:
        """Wait for the work on a stream."""
        self._call("cudaStreamSynchronize", "waiting for the GPU", stream)

    def begin_capture(self, stream: int) -> None:
        """Record the stream's next calls instead of running them; only this thread's."""
        doing = "recording a CUDA graph"
        self._call("cudaStreamBeginCapture", doing, stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return what was recorded, ready to be launched."""
        doing = "recording a CUDA graph"
        graph = self._get_pointer("cudaStreamEndCapture", doing, stream, out=1)
        try:
            return self._get_pointer("cudaGraphInstantiateWithFlags", doing, graph, 0)
        finally:
            self._call("cudaGraphDestroy", doing, graph)

    def graph_destroy(self, graph: int) -> None:
        """Free a graph that could be launched."""
        self._call("cudaGraphExecDestroy", "freeing a CUDA graph", graph)

    def event_create(self) -> int:
        """Return an event that keeps its time."""
        return self._get_pointer("cudaEventCreateWithFlags", "creating an event", 0)

    def event_record(self, event: int, stream: int) -> None:
        """Let an event happen when the stream's work so far is done."""
        self._call("cudaEventRecord", "recording an event", event, stream)

    def event_synchronize(self, event: int) -> None:
        """Wait for an event."""
        self._call("cudaEventSynchronize", "waiting for an event", event)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the milliseconds between two events that happened."""
        out = c_float()
        self._call("cudaEventElapsedTime", "timing the GPU", out, start, end)
        return out.value

    def event_destroy(self, event: int) -> None:
        """Free an event."""
        self._call("cudaEventDestroy", "freeing an event", event)

    # -- errors ----------------------------------------------------------------------------

    def fail(self, code: int, function: str, doing: str, size: int = 0) -> NoReturn:
        """Raise what a status means.

        Args:
            code: Not zero.
            function: Whose status it is.
            doing: What was tried; for an allocation, what the memory was for.
            size: The bytes asked for.

        Raises:
            CudaFault: always.
        """
        name = (self._error_name(code) or b"").decode("ascii", "replace")
        text = (self._error_text(code) or b"").decode("ascii", "replace")
        if code not in LOST:
            self._functions["cudaGetLastError"]()  # or the next caller would be given it
        message, hint = explain(self, code, doing, size)
        raise CudaFault(
            "%s: `%s` gave %s (%d), %s" % (message, function, name, code, text), code, name, hint
        )

    # -- calls -----------------------------------------------------------------------------

    def _call(self, name: str, doing: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            self.fail(code, name, doing)

    def _ask(self, name: str) -> int:
        """Return a version as a number; 0 where there is none to tell."""
        out = c_int()
        # without a driver, CUDA 11 cannot even say its own
        return 0 if self._functions[name](out) else out.value

    def _get_int(self, name: str, doing: str, *arguments: Any) -> int:
        out = c_int()
        self._call(name, doing, out, *arguments)
        return out.value

    def _get_pointer(self, name: str, doing: str, *arguments: Any, out: int = 0) -> int:
        pointer = c_void_p()
        code = self._functions[name](*arguments[:out], pointer, *arguments[out:])
        if code:
            is_allocation = name in ("cudaMalloc", "cudaHostAlloc")
            self.fail(code, name, doing, arguments[0] if is_allocation else 0)
        return pointer.value or 0


def load_cudart(candidates: Optional[Sequence[str]] = None) -> Cudart:
    """Load CUDA's runtime library.

    Prefers what this process already uses, then the newest that the driver supports; where the
    driver supports none of those found, the newest, whose calls then say so.

    Args:
        candidates: Paths or names, best first; None looks in the usual places.

    Raises:
        CudaMissing: there is none.
    """
    fallback: Optional[Cudart] = None
    problem: Optional[CudaMissing] = None
    for path in _usual_places() if candidates is None else candidates:
        try:
            found = Cudart(path)
        except CudaMissing as error:
            # a bare name that is not installed says nothing; a file that does not load does
            if problem is None and (candidates is not None or os.path.isabs(path)):
                problem = error
            continue
        if found.fits_driver:
            return found
        fallback = fallback or found
    if fallback is not None:
        return fallback
    if problem is not None:
        raise problem
    raise CudaMissing(
        "CUDA's runtime library is not installed: no %s" % ", ".join("`%s`" % n for n in SONAMES),
        hint="install `cuda-cudart-12-6` (its version as JetPack or the driver has it), "
        "or `pip install nvidia-cuda-runtime-cu12`",
    )


def _usual_places() -> Iterable[str]:
    """Return names and paths to try: loaded already, the linker's, CUDA's, pip's."""
    places: List[str] = _loaded()
    for soname in SONAMES:
        places.append(soname)
        places += sorted(glob.glob("/usr/local/cuda*/lib64/" + soname), reverse=True)
        places += sorted(glob.glob("/usr/local/cuda*/targets/*/lib/" + soname), reverse=True)
        for folder in sys.path:
            for inner in ("cuda_runtime", "cu13", "cu12"):
                path = os.path.join(folder, "nvidia", inner, "lib", soname)
                if os.path.isfile(path):
                    places.append(os.path.abspath(path))
    return dict.fromkeys(places)


def _loaded() -> List[str]:
    """Return the runtime libraries that this process has open."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as stream:
            paths = {line.split(None, 5)[5].rstrip("\n") for line in stream if "/libcudart" in line}
    except OSError:
        return []
    # a file that was replaced meanwhile is listed with a remark behind its name
    return sorted(path for path in paths if re.search(r"/libcudart\.so[.0-9]*$", path))


def _version(number: int) -> str:
    """Return `12.6` for 12060."""
    return "%d.%d" % (number // 1000, number % 1000 // 10)


def _version_in_name(path: str) -> str:
    """Return `11.4` for `libcudart.so.11.4.298`, `11` for `libcudart.so.11.0`."""
    found = re.search(r"libcudart\.so\.(\d+)(?:\.(\d+)\.\d+)?", os.path.realpath(path))
    if found is None:
        return ""
    return found.group(1) if found.group(2) is None else "%s.%s" % found.groups()
