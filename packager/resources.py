"""Finds the data files: runtime, templates and targets, in a checkout or in the installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# The head of a program that uses the runtime; its first argument is `data_dir("runtime")`. Loads
# the package from its folder alone, so that nothing beside it can be imported by accident.
RUNTIME_LOADER = """\
import sys
from importlib.util import module_from_spec, spec_from_file_location
folder = sys.argv.pop(1)
spec = spec_from_file_location("runtime", folder + "/__init__.py",
                               submodule_search_locations=[folder])
sys.modules["runtime"] = package = module_from_spec(spec)
spec.loader.exec_module(package)
"""


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
