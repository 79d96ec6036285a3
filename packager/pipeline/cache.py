"""Finished stages, found by the digest of everything they depend on."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import packager
from packager.manifest import canonical_json, sha256_file, sha256_of

_TOOLS = ("numpy", "onnx", "onnxruntime", "onnxscript", "onnxslim", "pillow", "torch")
_FORGOTTEN_S: Final = 14 * 86400.0


def tool_versions() -> dict[str, str]:
    """Return the versions of edgepack and of the packages that shape an artifact."""
    versions = {"edgepack": packager.__version__}
    for name in _TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def stage_key(stage: str, **parts: Any) -> str:
    """Return the digest of a stage's name, the tools' versions and everything in `parts`."""
    wire = {"stage": stage, "tools": tool_versions(), **{k: wire_form(v) for k, v in parts.items()}}
    return sha256_of(canonical_json(wire))


def wire_form(value: Any) -> Any:
    """Return dataclasses, tuples and paths as what JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return wire_form(asdict(value))
    if isinstance(value, dict):
        return {str(key): wire_form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [wire_form(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def content_form(value: Any) -> Any:
    """Return the same, with files by the digest of their content instead of by their place.

    Paths, and words of the form `file.py:function`, become digests: what a function's file imports
    is not known and not in it.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: content_form(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): content_form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [content_form(item) for item in value]
    file, colon, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if file.endswith(".py") and Path(file).is_file():
        return f"{sha256_file(Path(file))}{colon}{function}"
    if isinstance(value, Path):
        return sha256_file(value) if value.is_file() else value.name
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class StageCache:
    """Folders of finished stages; one appears whole or not at all."""

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / "stages"

    def find(self, key: str) -> Path | None:
        """Return the finished stage's folder, or None."""
        folder = self._folder / key
        return folder if folder.is_dir() else None

    def unfinished(self, key: str) -> Path:
        """Return where a stage works that goes on after an interruption; its parent exists."""
        folder = self._folder.parent / "unfinished" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        _forget_old(folder.parent, keep=key)
        return folder

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
            shutil.rmtree(work, ignore_errors=True)
        return folder


def _forget_old(parent: Path, *, keep: str) -> None:
    """Remove what nobody went on with for weeks; a search under way writes its journal often."""
    oldest = time.time() - _FORGOTTEN_S
    for entry in parent.iterdir():
        with contextlib.suppress(OSError):
            if entry.stem == keep or entry.stat().st_mtime > oldest:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
