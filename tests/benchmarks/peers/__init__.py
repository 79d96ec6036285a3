"""What NNCF with OpenVINO, and Olive, make of the same models and data.

    python tests/benchmarks peers
    python tests/benchmarks peers:minilm,efficientnet

Each has an environment of its own under `.cache/peers`, made on first use (2 GB of packages) from
`requirements.txt` and `requirements-olive.txt`. NNCF quantizes with its defaults, told that MiniLM
is a transformer; OpenVINO is timed in one process with float32 ONNX Runtime, in alternating pairs.
Olive's two passes have their defaults, and their files are measured like ours. NNCF's accuracy
control is run on EfficientNet-Lite0 under the same budget, to count what it costs. All of it takes
longer than `make bench`: `make bench-peers` runs it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.console import table
from tests.benchmarks.cases import CACHE, CASES, ONE, TWO, Case, make_case
from tests.benchmarks.compressing import (
    Made,
    answer,
    each_alone,
    figures_of,
    line_of,
    loaded,
    read_answers,
    shorter,
    top_lines,
    work_folder,
    write_samples,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.benchmarks.cases import Sample

ROWS: Final = tuple(CASES)
# Whose accuracy control is counted: the budget is in agreement with the original's classes.
COUNTED: Final = "efficientnet"
_MAX_DROP: Final = 0.03
_HERE: Final = Path(__file__).parent
_LIMIT_S: Final = 1200.0
_INSTALL_S: Final = 3600.0


def main(rows: Sequence[str] = ()) -> None:
    """Print the table of each model; one alone is measured in this process."""
    names = list(rows or ROWS)
    if len(names) == 1:
        measure(make_case(names[0]), counted=names[0] == COUNTED)
        return
    for requirements in ("requirements.txt", "requirements-olive.txt"):
        environment(requirements)
    each_alone("peers", names)


def measure(case: Case, *, counted: bool) -> None:
    """Have the other tools quantize one model, and print the table.

    Args:
        case: The model.
        counted: NNCF's accuracy control is run as well.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=work_folder()) as name:
        folder = Path(name)
        original = folder / f"{case.original.stem}.onnx"
        shutil.copyfile(case.original, original)
        for part in ("calibration", "search", "test"):
            write_samples(folder / f"{part}.npz", getattr(case, part))
        reference = answer(original, case.test)
        lines = top_lines(case, original, reference)
        columns = len(lines[0])
        for controlled in (False, True) if counted else (False,):
            made, figures = nncf(case, original, reference, folder, controlled=controlled)
            lines.append(line_of(made, figures, columns=columns))
        for mode in ("static", "dynamic"):
            made = olive(case, original, folder, mode)
            figures = figures_of(case, made, original, reference)
            lines.append(line_of(made, figures, columns=columns))
    print(case.title)
    for line in table(lines):
        print(f"  {line}")
    print(f"  all of this took {time.monotonic() - began:.0f} s")


def nncf(
    case: Case, original: Path, reference: Sequence[Sample], folder: Path, *, controlled: bool
) -> tuple[Made, dict[str, float]]:
    """Quantize with NNCF, and have OpenVINO answer and be timed."""
    import numpy as np

    title = "NNCF + OpenVINO" + (", accuracy control" if controlled else "")
    request = {
        "model": str(original),
        "calibration": str(folder / "calibration.npz"),
        "test": str(folder / "test.npz"),
        "validation": str(folder / "search.npz") if controlled else "",
        "max_drop": _MAX_DROP,
        "transformer": case.transformer,
    }
    place = folder / ("controlled" if controlled else "nncf")
    found = _ask("requirements.txt", "openvino_nncf.py", request, place)
    if isinstance(found, str):
        return Made(title=title, path=None, told=found), {}
    told = f"took {found['took_s']:.0f} s"
    if "counts" in found:
        counts = found["counts"]
        told += (
            f"; {counts.get('full', 0)} full evaluations, "
            f"{counts.get('items', 0)} items in the ranking"
        )
    with np.load(place / "answers.npz") as answers:
        got = read_answers(answers, "0/", len(case.test))
    figures = {"MB": found["size_bytes"] / 1e6, ONE: found["speedup_1"], TWO: found["speedup_2"]}
    return Made(title=title, path=None, told=told), figures | case.quality(reference, got)


def olive(case: Case, original: Path, folder: Path, mode: str) -> Made:
    """Quantize with Olive's pass for static or dynamic quantization."""
    title, place = f"Olive, {mode}", folder / f"olive-{mode}"
    request = {
        "model": str(original), "calibration": str(folder / "calibration.npz"), "mode": mode
    }  # fmt: skip
    found = _ask("requirements-olive.txt", "olive_quantization.py", request, place)
    if isinstance(found, str):
        return Made(title=title, path=None, told=found)
    return loaded(case, title, place / "model.onnx", f"took {found['took_s']:.0f} s")


def environment(requirements: str) -> Path:
    """Return the interpreter of an environment with these packages, made where it is missing."""
    file = _HERE / requirements
    folder = CACHE / "peers" / file.stem
    python, complete = folder / "bin" / "python", folder / "complete"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not complete.is_file() or complete.read_text(encoding="utf-8") != digest:
        venv.create(folder, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run(
            [*install, "-r", str(file)], check=True, stdout=sys.stderr, timeout=_INSTALL_S
        )
        complete.write_text(digest, encoding="utf-8")
    return python


def _ask(
    requirements: str, script: str, request: Mapping[str, Any], folder: Path
) -> dict[str, Any] | str:
    """Run a script in its environment; return its result, or what went wrong."""
    folder.mkdir()
    file = folder / "request.json"
    file.write_text(json.dumps({**request, "folder": str(folder)}), encoding="utf-8")
    try:
        done = subprocess.run(
            [str(environment(requirements)), str(_HERE / script), str(file)],
            cwd=folder, check=False, capture_output=True, text=True, timeout=_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done after {_LIMIT_S / 60:.0f} minutes"
    except subprocess.CalledProcessError as fault:
        return f"its environment cannot be made: exit {fault.returncode}"
    result = folder / "result.json"
    if done.returncode or not result.is_file():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"fails: {shorter(last)}"
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found
