"""The folder a command works in: empty, inside the cache, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import InputOutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_STALE_S = 24 * 3600.0


@contextlib.contextmanager
def workspace(cache_dir: Path) -> Iterator[Path]:
    """Give an empty folder inside the cache and remove it whatever happens.

    Folders that a killed build left behind are removed a day later.

    Raises:
        InputOutputError: the cache folder cannot be written.
    """
    base = cache_dir / "work"
    try:
        base.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="build-", dir=base))
    except OSError as fault:
        raise InputOutputError(
            f"the cache folder `{cache_dir}` cannot be written: {(fault.strerror or '').lower()}",
            hint="choose another with `--cache-dir DIR`",
        ) from fault
    _sweep(base)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path) -> None:
    oldest = time.time() - _STALE_S
    for entry in os.scandir(base):
        if entry.is_dir(follow_symlinks=False) and entry.stat().st_mtime < oldest:
            shutil.rmtree(entry.path, ignore_errors=True)
