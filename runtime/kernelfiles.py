"""Reads what the kernel tells in small text files, below `/proc` and `/sys`."""

from __future__ import annotations

from typing import List

_MOST_BYTES = 1 << 20


def read_lines(path: str) -> List[str]:
    """Return a file's lines, none where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(_MOST_BYTES).splitlines()
    except OSError:
        return []
