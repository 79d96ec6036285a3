"""What the build host's processor can do."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def processor_flags() -> frozenset[str]:
    """Return feature names as in Linux's `/proc/cpuinfo`; none where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    return frozenset(
        word
        for line in text.splitlines()
        if line.partition(":")[0].strip() in {"flags", "Features"}
        for word in line.partition(":")[2].split()
    )


def products_saturate() -> bool:
    """Tell whether ONNX Runtime's products of full 8-bit numbers may come out too small here.

    On x86-64 without VNNI two of them are added in 16 bits. The device's runtime has the same rule
    in `runtime/cpu.py`.
    """
    flags = processor_flags()
    return platform.machine() == "x86_64" and not {"avx512_vnni", "avx_vnni"} & flags
