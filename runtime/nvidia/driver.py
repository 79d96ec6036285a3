"""The driver and the GPUs behind it, asked through ctypes: NVML, or libcuda where NVML lacks."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..kernelfiles import read_lines

# Where these libraries lie beside what the linker knows: desktops and servers, JetPack 5 and 6,
# WSL, and machines whose driver was put there for containers.
_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "usr/lib/aarch64-linux-gnu/tegra",
    "usr/lib64",
    "usr/lib/wsl/lib",
    "usr/local/nvidia/lib64",
)
_NVML = "libnvidia-ml.so.1"
_CUDA = "libcuda.so.1"
_TEXT_BYTES = 256
_MISSING = -1  # our own status: this library has no such function
# CUdevice_attribute in cuda.h, where each has had its number since CUDA 5.
_INTEGRATED, _CC_MAJOR, _CC_MINOR = 18, 75, 76
# nvmlReturn_t and CUresult whose own words tell nobody what to do.
_NVML_FAULTS = {
    4: "this user may not open the GPU",
    9: "the driver is not loaded",
    15: "the GPU has fallen off the bus",
    18: "the driver was updated under the running kernel: restart the machine",
}
_CUDA_FAULTS = {
    34: "the `libcuda.so.1` found is a stand-in for linking, not the driver's",
    100: "the driver shows no GPU to this process",
    803: "the driver was updated under the running kernel: restart the machine",
}


class Driver(NamedTuple):
    """What the driver's own libraries say.

    Attributes:
        version: Of the driver, as `550.54.15`; None where neither library says it.
        cuda: The highest CUDA that the driver runs, as `12.4`.
        gpus: `name`, `compute_capability` (`8.7`), `memory_mib` and `memory`: `own` or `shared`
            with the processor.
        fault: Why no GPU could be asked, in a sentence.
    """

    version: Optional[str]
    cuda: Optional[str]
    gpus: Tuple[Dict[str, Any], ...]
    fault: Optional[str]


class _Memory(ctypes.Structure):
    """NVML's `nvmlMemory_t`, in bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def ask_driver(root: str, visible: Optional[str]) -> Driver:
    """Ask NVML, then libcuda for what NVML cannot say.

    Args:
        root: `/`, or a folder that stands for it.
        visible: `CUDA_VISIBLE_DEVICES`, which only libcuda honours; None where it is not set.
    """
    nvml = _ask_nvml(root)
    if nvml.gpus and visible is None:
        return nvml
    cuda = _ask_cuda(root)
    gpus = cuda.gpus
    fault = None if gpus else cuda.fault or nvml.fault
    return Driver(nvml.version, nvml.cuda or cuda.cuda, gpus, fault)


def read_kernel_driver(root: str) -> Optional[str]:
    """Return the version of the loaded kernel driver, as `550.54.15`.

    Jetsons before JetPack 6 have none: their GPU's driver is a part of the kernel.
    """
    for line in read_lines(os.path.join(root, "sys/module/nvidia/version")):
        if line.strip():
            return line.strip()
    # `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build …`
    for line in read_lines(os.path.join(root, "proc/driver/nvidia/version")):
        if line.startswith("NVRM version:"):
            for word in line.split():
                if word[0].isdigit() and "." in word and word.replace(".", "").isdigit():
                    return word
    return None


def count_pci_gpus(root: str) -> int:
    """Return the number of NVIDIA display controllers on the bus, with a driver or without."""
    folder = os.path.join(root, "sys/bus/pci/devices")
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    count = 0
    for name in names:
        vendor = _first(os.path.join(folder, name, "vendor")).strip()
        # Class 0x03: VGA and 3D controllers; the same card's sound device has another.
        if vendor == "0x10de" and _first(os.path.join(folder, name, "class"))[:4] == "0x03":
            count += 1
    return count


def _ask_nvml(root: str) -> Driver:
    library = _load(root, _NVML)
    if library is None:
        return Driver(None, None, (), "`%s` is not there: the driver is not installed" % _NVML)
    status = _call(library, "nvmlInit_v2")
    if status != 0:
        return Driver(None, None, (), _nvml_fault(library, status))
    try:
        count = ctypes.c_uint()
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        gpus = [_nvml_gpu(library, index) for index in range(count.value)]
        return Driver(
            _nvml_text(library, "nvmlSystemGetDriverVersion"),
            _nvml_cuda(library),
            # Without a compute capability libcuda has to be asked: an old NVML, or a Jetson's.
            tuple(gpu for gpu in gpus if gpu is not None) if all(gpus) else (),
            None if gpus else "the driver shows no GPU",
        )
    finally:
        _call(library, "nvmlShutdown")


def _nvml_gpu(library: ctypes.CDLL, index: int) -> Optional[Dict[str, Any]]:
    handle = ctypes.c_void_p()
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), _Memory()
    if _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)):
        return None
    if _call(
        library,
        "nvmlDeviceGetCudaComputeCapability",
        handle,
        ctypes.byref(major),
        ctypes.byref(minor),
    ):
        return None
    # Refused where the memory is the machine's own: DGX Spark, Thor.
    own = not _call(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    return {
        "name": _nvml_text(library, "nvmlDeviceGetName", handle) or "unknown",
        "compute_capability": "%d.%d" % (major.value, minor.value),
        "memory_mib": memory.total >> 20 if own else None,
        "memory": "own" if own else "shared",
    }


def _nvml_cuda(library: ctypes.CDLL) -> Optional[str]:
    number = ctypes.c_int()
    if _call(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(number)):
        return None
    return _cuda_version(number.value)


def _nvml_text(library: ctypes.CDLL, name: str, *handle: Any) -> Optional[str]:
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    if _call(library, name, *handle, text, ctypes.c_uint(_TEXT_BYTES)):
        return None
    return text.value.decode("utf-8", "replace")


def _nvml_fault(library: ctypes.CDLL, status: int) -> str:
    known = _NVML_FAULTS.get(status)
    return known or "`%s` refuses with status %d" % (_NVML, status)


def _ask_cuda(root: str) -> Driver:
    library = _load(root, _CUDA)
    if library is None:
        return Driver(None, None, (), "`%s` is not there: the driver is not installed" % _CUDA)
    status = _call(library, "cuInit", ctypes.c_uint(0))
    if status != 0:
        known = _CUDA_FAULTS.get(status)
        fault = known or "`%s` refuses with status %d" % (_CUDA, status)
        return Driver(None, None, (), fault)
    count, version = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    asked = _call(library, "cuDriverGetVersion", ctypes.byref(version))
    gpus: List[Dict[str, Any]] = []
    for index in range(count.value):
        device = ctypes.c_int()
        if not _call(library, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index)):
            gpus.append(_cuda_gpu(library, device))
    return Driver(
        None,
        None if asked else _cuda_version(version.value),
        tuple(gpus),
        None if gpus else _CUDA_FAULTS[100],
    )


def _cuda_gpu(library: ctypes.CDLL, device: ctypes.c_int) -> Dict[str, Any]:
    text, total = ctypes.create_string_buffer(_TEXT_BYTES), ctypes.c_size_t()
    _call(library, "cuDeviceGetName", text, ctypes.c_int(_TEXT_BYTES), device)
    known = not _call(library, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
    values = []
    for attribute in (_CC_MAJOR, _CC_MINOR, _INTEGRATED):
        value = ctypes.c_int()
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
        values.append(value.value)
    return {
        "name": text.value.decode("utf-8", "replace") or "unknown",
        "compute_capability": "%d.%d" % (values[0], values[1]),
        "memory_mib": total.value >> 20 if known else None,
        "memory": "shared" if values[2] else "own",
    }


def _cuda_version(number: int) -> str:
    return "%d.%d" % (number // 1000, number % 1000 // 10)


def _load(root: str, name: str) -> Optional[ctypes.CDLL]:
    # Under another root the linker's own search would find this machine's libraries.
    candidates = [name] if root == "/" else []
    candidates += [os.path.join(root, folder, name) for folder in _FOLDERS]
    for candidate in candidates:
        if candidate == name or os.path.exists(candidate):
            try:
                return ctypes.CDLL(candidate)
            except OSError:
                continue
    return None


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> int:
    """Return the status, 0 for success: CUDA and NVML agree on that."""
    try:
        function = getattr(library, name)
    except AttributeError:
        return _MISSING
    function.restype = ctypes.c_int
    return int(function(*arguments))


def _first(path: str) -> str:
    return (read_lines(path) or [""])[0]
