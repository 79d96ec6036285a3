"""The user's own metric: `file.py:function(outputs, labels)`, called in a limited child process."""

from __future__ import annotations

import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.checks.metrics._contract import Measured
from packager.checks.metrics._reading import need_labels
from packager.errors import ExternalToolError, UsageError
from packager.process import Limits, describe, python_argv, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from packager.checks.metrics._reading import Outputs
    from packager.model import Signature

TIMEOUT_S: Final = 300.0
_MEMORY_MIB: Final = 16 << 10
# What the child returns when what it says is a sentence for the user.
REFUSED: Final = 3
VALUES_FILE: Final = "values.npz"
LAYOUT_FILE: Final = "layout.json"
RESULT_FILE: Final = "result.json"


@dataclass(frozen=True, kw_only=True)
class UserFunction:
    """A function of the user's: the outputs as a list of dicts of arrays, the labels as a list.

    It returns one finite number. `function.higher_is_better = False` turns the direction, and
    `function.needs_labels = False` lets it run without labels (it gets None).

    Attributes:
        name: `file.py:function` without a folder.
        file, function: What is called.
        timeout_s: How long one call may take.
    """

    name: str
    file: Path
    function: str
    higher_is_better: bool
    needs_labels: bool
    timeout_s: float = TIMEOUT_S
    unit: str = "value"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse missing labels, where the function wants some."""
        del signature
        if self.needs_labels:
            need_labels(self.name, labels)

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Call the function in a child process and return its number."""
        del references
        if self.needs_labels:
            need_labels(self.name, labels)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = _write(folder, outputs, labels)
            if labels is not None and rows != len(labels):
                raise UsageError(f"`{self.name}` got {len(labels)} labels for {rows} samples")
            found = _call(self.name, self.file, self.function, folder, timeout_s=self.timeout_s)
        return Measured(value=float(found["value"]), rows=rows)


def find_function(word: str, *, timeout_s: float = TIMEOUT_S) -> UserFunction:
    """Load the user's file in a child process and return the function it names.

    Raises:
        UsageError: there is no such file or function, or the file fails when it is imported.
    """
    path, _, function = word.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise UsageError(
            f"`{word}` names no metric: `{file.name}` does not exist",
            accepted="`file.py:function(outputs, labels)`, returning a number",
        )
    name = f"{file.name}:{function}"
    with tempfile.TemporaryDirectory() as folder:
        found = _call(name, file, function, Path(folder), timeout_s=timeout_s)
    return UserFunction(
        name=name,
        file=file.resolve(),
        function=function,
        higher_is_better=bool(found["higher_is_better"]),
        needs_labels=bool(found["needs_labels"]),
        timeout_s=timeout_s,
    )


def _call(
    name: str, file: Path, function: str, folder: Path, *, timeout_s: float
) -> dict[str, Any]:
    command = python_argv(
        "packager.checks.metrics._function_child", file.resolve(), function, folder
    )
    try:
        done = run(command, timeout_s=timeout_s, check=False, limits=Limits(memory_mib=_MEMORY_MIB))
    except ExternalToolError as fault:  # with `check=False` only the time limit is left
        raise UsageError(
            f"the metric `{name}` did not end within {timeout_s:g} s", hint="measure fewer samples"
        ) from fault
    lines = done.stderr.strip().splitlines()
    if done.returncode == REFUSED and lines:
        raise UsageError(lines[-1])
    result = folder / RESULT_FILE
    if done.returncode != 0 or not result.is_file():
        last = f": {lines[-1].strip()}" if lines else " and said nothing"
        raise UsageError(f"the metric `{name}` failed{last}\n{describe(done)}")
    wire: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return wire


def _write(folder: Path, outputs: Iterable[Outputs], labels: Sequence[Any] | None) -> int:
    """Write outputs and labels for the child, one sample in memory at a time.

    Arrays go into one archive by number; the layout names them.

    Returns:
        The number of samples.
    """
    layout: dict[str, Any] = {"outputs": [], "labels": None}
    with zipfile.ZipFile(folder / VALUES_FILE, "w") as archive:
        arrays = _Arrays(archive)
        for answer in outputs:
            layout["outputs"].append([[name, arrays.put(a)] for name, a in answer.items()])
        if labels is not None:
            layout["labels"] = [_wire_label(label, arrays) for label in labels]
    (folder / LAYOUT_FILE).write_text(json.dumps(layout), encoding="utf-8")
    return len(layout["outputs"])


class _Arrays:
    """Arrays in an archive, by number."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._count = 0

    def put(self, array: NDArray[Any]) -> int:
        import numpy as np

        array = np.asarray(array)
        if array.dtype.kind == "O":  # ONNX Runtime's strings; objects would have to be pickled
            array = array.astype(np.str_)
        elif array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        with self._archive.open(f"{self._count}.npy", "w") as stream:
            np.lib.format.write_array(stream, array, allow_pickle=False)
        self._count += 1
        return self._count - 1


def _wire_label(label: Any, arrays: _Arrays) -> Any:
    if isinstance(label, dict):
        return {"fields": [[key, _wire_label(value, arrays)] for key, value in label.items()]}
    if hasattr(label, "dtype"):
        return {"array": arrays.put(label)}
    if isinstance(label, list | tuple):
        return {"list": [_wire_label(value, arrays) for value in label]}
    return {"value": label}
