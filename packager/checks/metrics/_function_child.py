"""Runs in the child process: loads the user's metric, and calls it where there are values."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.checks.metrics._function import LAYOUT_FILE, REFUSED, RESULT_FILE, VALUES_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class _Refused(Exception):  # noqa: N818 - says what happened
    """A sentence for the user."""


def main(file: str, name: str, folder: str) -> int:
    """Write what the function says, or what it is, into `folder/result.json`."""
    sys.excepthook = _tell_own_lines
    try:
        function = _load(file, name)
        values = Path(folder, VALUES_FILE)
        if values.is_file():
            result: dict[str, Any] = {"value": _measure(function, Path(folder), file, name)}
        else:
            result = {
                "higher_is_better": bool(getattr(function, "higher_is_better", True)),
                "needs_labels": bool(getattr(function, "needs_labels", True)),
            }
    except _Refused as fault:
        sys.stderr.write(f"{fault}\n")
        return REFUSED
    Path(folder, RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    return 0


def _load(file: str, name: str) -> Callable[..., Any]:
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location("edgepack_metric", file)
    if spec is None or spec.loader is None:
        raise _Refused(f"`{Path(file).name}` is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise _Refused(f"`{Path(file).name}` has no function `{name}`")
    found: Callable[..., Any] = function
    return found


def _measure(function: Callable[..., Any], folder: Path, file: str, name: str) -> float:
    import numpy as np

    layout = json.loads((folder / LAYOUT_FILE).read_text(encoding="utf-8"))
    with np.load(folder / VALUES_FILE, allow_pickle=False) as arrays:
        outputs = [
            {key: arrays[str(number)] for key, number in answer} for answer in layout["outputs"]
        ]
        wire = layout["labels"]
        labels = None if wire is None else [_label(label, arrays) for label in wire]
    value = function(outputs, labels)
    word = f"{Path(file).name}:{name}"
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise _Refused(f"the metric `{word}` returned {_shown(value)}, not a number")
    try:
        number = float(value)
    except (TypeError, ValueError) as fault:
        raise _Refused(f"the metric `{word}` returned {_shown(value)}, not a number") from fault
    if not math.isfinite(number):
        raise _Refused(f"the metric `{word}` returned {number}, not a finite number")
    return number


def _label(wire: dict[str, Any], arrays: Any) -> Any:
    if "fields" in wire:
        return {key: _label(value, arrays) for key, value in wire["fields"]}
    if "array" in wire:
        return arrays[str(wire["array"])]
    if "list" in wire:
        return [_label(value, arrays) for value in wire["list"]]
    return wire["value"]


def _tell_own_lines(
    kind: type[BaseException], fault: BaseException, trace: TracebackType | None
) -> None:
    """Print what the user's code raised, without the frames that led there."""
    frames = [frame.filename for frame in traceback.extract_tb(trace)]
    own = frames.index(sys.argv[1]) if sys.argv[1] in frames else len(frames)
    for frame in traceback.extract_tb(trace)[own:]:
        sys.stderr.write(f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}\n")
    sys.stderr.write("".join(traceback.format_exception_only(kind, fault)))


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return f"`{text[:60]}` ({type(value).__name__})"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
