"""Finds the user's own line in a failure: in a traceback, a message, or a node's stack trace."""

from __future__ import annotations

import linecache
import re
import site
import sysconfig
import traceback
from pathlib import Path
from typing import Final

# Not the whole package: the examples that travel with it are somebody's code.
_OURS: Final = tuple(
    str(Path(__file__).resolve().parents[1] / name) for name in ("importers", "training")
)
_FRAME: Final = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def user_frame(fault: BaseException) -> str | None:
    """Return `file.py:12 (code)` of the innermost frame that is the user's, None without one."""
    if isinstance(fault, SyntaxError) and fault.filename:
        return f"{Path(fault.filename).name}:{fault.lineno}"
    frames = [
        (frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(fault.__traceback__)
    ]
    return _innermost(frames)


def frame_in_text(text: str) -> str | None:
    """Return the innermost user's frame named in a message or a stack trace's text."""
    return _innermost([(m["file"], int(m["line"])) for m in _FRAME.finditer(text)])


def is_user_file(name: str) -> bool:
    """Return whether a file is neither the standard library's, an installed package's nor ours."""
    if not name or name.startswith(("<", *_OURS)):
        return False
    return not any(name.startswith(folder) for folder in _installed())


def place(name: str, line: int) -> str:
    """Return `file.py:12 (the code there)`."""
    code = linecache.getline(name, line).strip()
    return f"{Path(name).name}:{line}" + (f" `{code}`" if code else "")


def _innermost(frames: list[tuple[str, int]]) -> str | None:
    own = [frame for frame in frames if is_user_file(frame[0])]
    return place(*own[-1]) if own else None


def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return (*site.getsitepackages(), paths["stdlib"], paths["purelib"], paths["platlib"])
