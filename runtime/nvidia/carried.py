"""Makes NVIDIA's libraries importable where the bundle carries them along."""

from __future__ import annotations

import os
import sys
from typing import List

from .vendor import VendorMissing

FOLDER = "vendor"


def use_carried(folder: str) -> bool:
    """Let what the release carries be found before anything installed; return whether it does.

    Adds `vendor` and `vendor/cp312` (for this CPython) to `sys.path`: NVIDIA's packages lie there
    as in their wheels, and CUDA's runtime is looked for along the same path.

    Args:
        folder: Of the unpacked release.

    Raises:
        VendorMissing: it carries bindings, and none for this CPython.
    """
    base = os.path.join(os.path.abspath(folder), FOLDER)
    tags = _tags(base)
    if not tags:
        return False
    tag = "cp%d%d" % sys.version_info[:2]
    if tag not in tags:
        raise VendorMissing(
            "this bundle carries TensorRT-RTX for CPython %s, and this is %d.%d"
            % (", ".join("%s.%s" % (one[2], one[3:]) for one in tags), *sys.version_info[:2]),
            "start the bundle with one of those",
        )
    for path in (base, os.path.join(base, tag)):
        if path not in sys.path:
            sys.path.insert(0, path)
    return True


def _tags(base: str) -> List[str]:
    try:
        found = [name for name in os.listdir(base) if name[:3] == "cp3" and name[3:].isdigit()]
    except OSError:
        return []
    return sorted(found, key=lambda name: int(name[3:]))
