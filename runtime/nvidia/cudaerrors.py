"""What a status of CUDA's runtime means, as a sentence and what to do about it."""

from __future__ import annotations

from typing import Optional, Protocol, Tuple

from ..errors import ModelFault, TargetMismatch

OUT_OF_MEMORY, INSUFFICIENT_DRIVER, NO_DEVICE = 2, 35, 100
_STUB_LIBRARY, _NO_KERNEL_IMAGE, _DRIVER_MISMATCH = 34, 209, 803
# Errors after which nothing works in this process any more (driver_types.h says so of each).
LOST = frozenset((214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999))


class CudaMissing(TargetMismatch):
    """CUDA's runtime library is not installed, or is no such library."""


class CudaFault(ModelFault):
    """A call of CUDA's runtime that failed.

    Attributes:
        code: The `cudaError_t`.
        name: Its symbolic name, such as `cudaErrorMemoryAllocation`.
    """

    def __init__(self, message: str, code: int, name: str, hint: Optional[str] = None) -> None:
        super().__init__(message, hint)
        self.code = code
        self.name = name

    @property
    def is_lost(self) -> bool:
        """Whether no later call can succeed in this process."""
        return self.code in LOST


class Versions(Protocol):
    """What a sentence needs to know of the library; `Cudart` is one."""

    runtime_version: str

    @property
    def driver_version(self) -> str:
        """Return the CUDA version that the driver supports, empty without a driver."""

    def memory_info(self) -> Tuple[int, int]:
        """Return the GPU's free and total memory in bytes."""


def explain(cudart: Versions, code: int, doing: str, size: int) -> Tuple[str, Optional[str]]:
    """Return a sentence without the status's name, and a hint.

    Args:
        cudart: The library.
        code: Not zero.
        doing: What was tried; for an allocation, what the memory was for.
        size: The bytes asked for, 0 for what is no allocation.
    """
    if code == OUT_OF_MEMORY:
        message = "the GPU has not enough memory for %s" % doing
        if size:
            message += ", %.1f MiB" % (size / 1048576)
        try:
            free, total = cudart.memory_info()
            message += " (%d of %d MiB are free)" % (free >> 20, total >> 20)
        except CudaFault:
            pass
        return message, "run fewer workers, or build with smaller largest shapes"
    if code in (INSUFFICIENT_DRIVER, _STUB_LIBRARY):
        needed = "CUDA %s needs an NVIDIA driver for CUDA %s or later" % (
            cudart.runtime_version,
            cudart.runtime_version.partition(".")[0],
        )
        found = "this machine's supports CUDA %s" % cudart.driver_version
        if not cudart.driver_version or code == _STUB_LIBRARY:
            found = "this machine has none, or does not show it to this process"
        return "%s, and %s" % (needed, found), "`nvidia-smi` shows the driver and its version"
    if code == NO_DEVICE:
        return (
            "CUDA %s (driver for CUDA %s) finds no GPU"
            % (cudart.runtime_version, cudart.driver_version or "?"),
            (
                "give the GPU to the container: `--gpus all`, on a Jetson `--runtime nvidia`; "
                "`CUDA_VISIBLE_DEVICES` must not hide it"
            ),
        )
    if code == _DRIVER_MISMATCH:
        return (
            "the driver's library and its kernel module are of different versions",
            "restart the machine to finish the driver's update",
        )
    if code == _NO_KERNEL_IMAGE:
        return "the engine holds no code for this GPU", "build the engine on this device"
    if code in LOST:
        return (
            "%s failed, and the GPU takes no more work from this process" % doing,
            "restart the server",
        )
    return ("no memory for %s" if size else "%s failed") % doing, None
