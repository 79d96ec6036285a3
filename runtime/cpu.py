"""What this processor's kernels can compute with, as one word: results differ between the words."""

from __future__ import annotations

import ctypes
import os
from typing import FrozenSet

from .kernelfiles import read_lines

# Strongest first: ONNX Runtime picks its integer kernels by these.
LEVELS = ("avx512_vnni", "avx_vnni", "avx512", "avx2", "asimddp", "asimd", "sse")

# CPUID index of glibc, register (eax 0, ebx 1, ecx 2), bit: <sys/platform/x86.h>
_CPUID_BITS = {
    "avx2": (1, 1, 5),
    "avx512f": (1, 1, 16),
    "avx512bw": (1, 1, 30),
    "avx512_vnni": (1, 2, 11),
    "avx_vnni": (6, 0, 4),
}


class _CpuidLeaf(ctypes.Structure):
    _fields_ = [("present", ctypes.c_uint32 * 4), ("active", ctypes.c_uint32 * 4)]


def cpu_level() -> str:
    """Return the strongest of `LEVELS` that this processor has, `sse` where none is known."""
    features = cpu_features()
    if {"avx512f", "avx512bw"} <= features:
        features |= {"avx512"}
    return next((level for level in LEVELS if level in features), "sse")


def products_saturate() -> bool:
    """Tell whether ONNX Runtime's products of full 8-bit numbers may come out too small here.

    On x86-64 without VNNI two of them are added in 16 bits, which hold no more than 32,767.
    """
    return os.uname().machine == "x86_64" and not cpu_level().endswith("vnni")


def cpu_features() -> FrozenSet[str]:
    """Return feature names as in Linux's `/proc/cpuinfo`.

    On x86 with glibc 2.33 or later the answer comes from the processor, because an emulator
    shows its host's `/proc/cpuinfo`.
    """
    features = _flags_of_kernel()
    if os.uname().machine != "x86_64":
        return features
    try:
        leaf = ctypes.CDLL(None)["__x86_get_cpuid_feature_leaf"]
    except (AttributeError, OSError):
        return features
    leaf.argtypes = (ctypes.c_uint,)
    leaf.restype = ctypes.POINTER(_CpuidLeaf)
    active = {
        name
        for name, (index, register, bit) in _CPUID_BITS.items()
        if leaf(index).contents.active[register] >> bit & 1
    }
    return (features - set(_CPUID_BITS)) | active


def _flags_of_kernel() -> FrozenSet[str]:
    for line in read_lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()
