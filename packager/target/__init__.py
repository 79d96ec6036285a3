"""A target: one class of device, read from a TOML file in `targets/`."""

from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING

from packager.errors import TargetError
from packager.resources import data_dir
from packager.target._nouns import (
    Engine,
    EngineLibrary,
    Flash,
    Quantization,
    Target,
    TensorRT,
)
from packager.target._read import SCHEMA, read_target

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "SCHEMA",
    "Engine",
    "EngineLibrary",
    "Flash",
    "Quantization",
    "Target",
    "TensorRT",
    "all_targets",
    "find_target",
    "read_target",
]


@cache
def _files() -> dict[str, Path]:
    files = {path.stem: path for path in data_dir("targets").glob("*.toml")}
    return {name: files[name] for name in sorted(files)}


@cache
def all_targets() -> tuple[Target, ...]:
    """Return every target that edgepack ships, by name, a Jetson with its default JetPack."""
    return tuple(read_target(path) for path in _files().values())


@cache
def find_target(name: str) -> Target:
    """Return the target called `name`, which may end in `@JETPACK`.

    Raises:
        TargetError: there is none, or not for this JetPack; the hint names the nearest.
    """
    module, at, jetpack = name.partition("@")
    files = _files()
    if module in files:
        return read_target(files[module], jetpack=jetpack if at else None)
    close = difflib.get_close_matches(module, files, 1, 0.5)
    raise TargetError(
        f"there is no target `{name}`",
        accepted="one of " + ", ".join(files),
        hint=f"did you mean `{close[0]}{at}{jetpack}`?" if close else "edgepack targets list",
    )
