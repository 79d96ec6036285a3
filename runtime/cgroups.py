"""What the control groups of this process allow it: cores and memory of a container or a unit."""

from __future__ import annotations

import math
import os
from typing import Iterator, List, Optional, Tuple

from .kernelfiles import read_lines


def available_cores(root: str = "/") -> int:
    """Return how many cores this process may keep busy, at least 1.

    Those that it may run on, or fewer where a quota of CPU time is smaller; a part of a core
    counts as one.

    Args:
        root: Where `/proc` and `/sys` are looked for.
    """
    cores = len(os.sched_getaffinity(0))
    for folder in _folders("cpu", root):
        share = _share(folder)
        if share is not None:
            cores = min(cores, max(1, math.ceil(share)))
    return cores


def memory_left(root: str = "/") -> Optional[int]:
    """Return how many bytes the limits on memory leave to this process; None: there is no limit.

    Args:
        root: Where `/proc` and `/sys` are looked for.
    """
    left = []
    for folder in _folders("memory", root):
        for limit_file, used_file, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            limit = _number(os.path.join(folder, limit_file))
            used = _number(os.path.join(folder, used_file))
            if limit is not None and used is not None:
                cached = _cached(os.path.join(folder, "memory.stat"), prefix)
                left.append(max(0, limit - used + cached))
    return min(left) if left else None


def _share(folder: str) -> Optional[float]:
    """Return the cores' worth of CPU time that one group may take; None: as much as there is."""
    words = _words(os.path.join(folder, "cpu.max"))
    if not words:
        for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
            words += _words(os.path.join(folder, name))
    # "max" in version 2 and -1 in version 1 stand for no quota
    if len(words) < 2 or not words[0].isdigit() or not words[1].isdigit() or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def _cached(path: str, prefix: str) -> int:
    """Return the bytes of cached files, which are given back before anything is refused."""
    names = (prefix + "inactive_file", prefix + "active_file")
    pairs = (line.split() for line in read_lines(path))
    return sum(int(pair[1]) for pair in pairs if len(pair) > 1 and pair[0] in names)


def _folders(controller: str, root: str) -> Iterator[str]:
    """Yield the folders of this process's groups in both versions, and of those around them.

    Inside a container the paths may be the host's: what is mounted there then is the container's
    own group, which the walk upwards ends with.
    """
    for mount, path in _groups(controller, root):
        below = os.path.normpath("/" + path).strip("/")
        while below:
            yield os.path.join(mount, below)
            below = os.path.dirname(below)
        yield mount


def _groups(controller: str, root: str) -> List[Tuple[str, str]]:
    """Return where the groups that may limit a thing are mounted, and this process's path there."""
    found = []
    base = os.path.join(root, "sys/fs/cgroup")
    for line in read_lines(os.path.join(root, "proc/self/cgroup")):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            found.append((base, path))
        elif controller in names.split(","):
            found.append((os.path.join(base, names), path))
    return found


def _number(path: str) -> Optional[int]:
    word = (_words(path) or [""])[0]
    return int(word) if word.isdigit() else None


def _words(path: str) -> List[str]:
    return (read_lines(path) or [""])[0].split()
