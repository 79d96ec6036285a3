"""How much memory and disk a build needs, what there is, and what the build must leave."""

from __future__ import annotations

import os

from ..cgroups import memory_left
from ..errors import InputOutputFault
from ..kernelfiles import read_lines

# What the library takes before it has seen a graph, and what it holds per byte of the graph.
# TensorRT-RTX 1.7: 350 to 500 MiB at their highest for graphs of 26 to 102 MB. TensorRT's own need
# with a GPU is an estimate: its context and its kernels come on top.
_BASE_MIB = {"tensorrt_rtx": 300, "tensorrt": 768}
_MEMORY_PER_BYTE = 2
_DISK_PER_BYTE = 4
_DISK_MIB = 32
# The server needs as much to go on answering.
_LEAST_LEFT_MIB = 96
_SHARE_LEFT = 0.03


def check_room(folder: str, model_size: int, module: str) -> None:
    """Refuse a build for which memory or disk are too small.

    Args:
        folder: Where the build writes.
        model_size: Of the graph with its weights, in bytes.
        module: TensorRT's.

    Raises:
        InputOutputFault: with what is needed and what there is.
    """
    status = os.statvfs(folder)
    disk_mib = status.f_bavail * status.f_frsize >> 20
    disk_needed_mib = _DISK_MIB + (_DISK_PER_BYTE * model_size >> 20)
    if disk_mib < disk_needed_mib:
        raise InputOutputFault(
            "building this engine needs about %d MiB of disk in `%s`, and %d MiB are free"
            % (disk_needed_mib, folder, disk_mib),
            "free some of it, or set XDG_CACHE_HOME to a folder on another disk",
        )
    memory_mib = available_mib()
    memory_needed_mib = _needed_mib(model_size, module)
    if memory_mib < memory_needed_mib:
        raise InputOutputFault(
            "building this engine needs about %d MiB of memory, and %d MiB are free"
            % (memory_needed_mib, memory_mib),
            "stop what else runs here, add swap, or build on a reference device (--engine-on)",
        )


def check_limit(limit_mib: int, model_size: int, module: str) -> None:
    """Refuse a limit of memory under which no build can come to an end.

    Estimates are on the safe side: half of one is allowed.

    Args:
        limit_mib: What the build may take.
        model_size: Of the graph with its weights, in bytes.
        module: TensorRT's.

    Raises:
        InputOutputFault: with what is needed and what is allowed.
    """
    needed_mib = _needed_mib(model_size, module)
    if limit_mib < needed_mib // 2:
        raise InputOutputFault(
            "building this engine needs about %d MiB of memory, and %d MiB are allowed"
            % (needed_mib, limit_mib),
            "stop what else runs here, add swap, or build on a reference device (--engine-on)",
        )


def _needed_mib(model_size: int, module: str) -> int:
    return _BASE_MIB[module] + (_MEMORY_PER_BYTE * model_size >> 20)


def available_mib() -> int:
    """Return how much memory can still be taken, swap included, by this process's group too."""
    fields = _meminfo()
    free_mib = (fields.get("MemAvailable", 0) + fields.get("SwapFree", 0)) >> 10
    limit = memory_left()
    return free_mib if limit is None else min(free_mib, limit >> 20)


def left_mib() -> int:
    """Return what a build must leave to everything else, in MiB."""
    return max(_LEAST_LEFT_MIB, int(_SHARE_LEFT * (_meminfo().get("MemTotal", 0) >> 10)))


def oom_kills() -> int:
    """Return how many processes the kernel has ended for lack of memory since it started."""
    for line in read_lines("/proc/vmstat"):
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _meminfo() -> "dict[str, int]":
    """Return `/proc/meminfo` in KiB."""
    fields = {}
    for line in read_lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0])
    return fields
