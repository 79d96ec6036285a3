"""Finished stages by the digest of everything they depend on, and the folder a build works in."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import packager
from packager.errors import InputOutputError
from packager.manifest import canonical_json, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_STALE_S = 24 * 3600.0
_TOOLS = ("numpy", "onnx", "onnxruntime", "onnxscript", "onnxslim", "pillow", "torch")


def tool_versions() -> dict[str, str]:
    """Return the versions of edgepack and of the packages that shape an artifact."""
    versions = {"edgepack": packager.__version__}
    for name in _TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def stage_key(stage: str, **parts: Any) -> str:
    """Return the digest of a stage's name, the tools' versions and everything in `parts`."""
    wire = {"stage": stage, "tools": tool_versions(), **{k: _wire(v) for k, v in parts.items()}}
    return sha256_of(canonical_json(wire))


def _wire(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _wire(asdict(value))
    if isinstance(value, dict):
        return {str(key): _wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_wire(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class StageCache:
    """Folders of finished stages; one appears whole or not at all."""

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / "stages"

    def find(self, key: str) -> Path | None:
        """Return the finished stage's folder, or None."""
        folder = self._folder / key
        return folder if folder.is_dir() else None

    def keep(self, key: str, work: Path) -> Path:
        """Move a finished stage's folder into the cache and return where it lies now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / key
        try:
            work.rename(folder)
        except OSError:
            # Another build finished the same stage first: its folder is as good as ours.
            if not folder.is_dir():
                raise
        return folder


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
