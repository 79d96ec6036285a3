"""Finds the data files: runtime, templates and targets, in a checkout or in the installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_dir(kind: str) -> Path:
    """Return the folder of `runtime`, `templates`, `targets` or `examples`.

    A checkout's own folder comes first, then the copy inside the wheel.
    """
    checkout = _PACKAGE.parent / ("docs/examples" if kind == "examples" else kind)
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / "_data" / kind


def default_cache_dir() -> Path:
    """Return the folder for engine libraries and finished stages (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgepack"
