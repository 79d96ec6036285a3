"""The figures of compression: what `edgepack compress` makes of six models, and what others do.

    python tests/benchmarks compressing
    python tests/benchmarks compressing:minilm,digits

Each model goes through the command line with an empty cache, for a CPU with VNNI and for any other
x86-64 one; ONNX Runtime's own `quantize_static` and `quantize_dynamic` get the same model and data.
Each file is then timed against the float32 one in alternating pairs, and its quality is measured on
samples that neither calibration nor search saw; on the first few of them also under an emulated
Haswell. A model that fails costs no other its rows: each has a process of its own.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.console import table
from tests.benchmarks.cases import CASES, ONE, ROOT, TWO, Case, make_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.benchmarks.cases import Sample

TARGETS: Final = ("cpu-x86_64-vnni", "cpu-x86_64")
ROWS: Final = tuple(CASES)
_TIME_BUDGET: Final = "10m"
_TIMED_S: Final = 4.0
# So many that time ends the timing: medians of short runs differ from minute to minute.
_LEAST_PAIRS: Final = 400
_LIMIT_S: Final = 1800.0
_EMULATED_CPU: Final = "Haswell"
# CPU time after which no further sample is begun: emulated arithmetic is a hundred times slower.
_EMULATED_S: Final = 90.0
_NAN: Final = float("nan")


@dataclass(frozen=True, kw_only=True)
class Made:
    """One file to be measured, or why there is none.

    Attributes:
        title: Who made it.
        path: The ONNX file; None where it could not be made.
        told: What is known about how it was made, or why it was not.
        reason: Of the choice, where there is more to say than fits into the table.
        emulate: Its quality under the emulator is of interest, as it is quantized or trained.
        must_reach: The case's goals are for it.
    """

    title: str
    path: Path | None
    told: str = ""
    reason: str = ""
    emulate: bool = False
    must_reach: bool = False


def main(rows: Sequence[str] = ()) -> None:
    """Print the table of each model; one alone is measured in this process."""
    names = list(rows or ROWS)
    if len(names) == 1:
        measure(make_case(names[0]))
    else:
        each_alone("compressing", names)


def each_alone(benchmark: str, names: Sequence[str]) -> None:
    """Run a benchmark once per row, each in a process of its own."""
    for name in names:
        sys.stdout.flush()
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "benchmarks"), f"{benchmark}:{name}"],
            check=False, capture_output=True, text=True, timeout=_LIMIT_S,
        )  # fmt: skip
        # Its first lines say which machine this is.
        print(done.stdout.partition("\n\n")[2].rstrip())
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            print(f"{name}: failed with {done.returncode}: {last}")
        print()


def measure(case: Case) -> None:
    """Compress one model in every way, and print the table."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=work_folder()) as name:
        folder = Path(name)
        original = folder / f"{case.original.stem.lower()}.onnx"
        shutil.copyfile(case.original, original)
        _write(folder / "calibration", case.calibration, ())
        _write(folder / "search", case.search, case.labels)
        made = [compress(case, original, target, folder) for target in TARGETS]
        if case.pruned:
            made.append(prune(case, folder))
        made += [
            quantize(case, original, "quantize_static", folder),
            quantize(case, original, "quantize_dynamic", folder),
        ]
        reference = answer(original, case.test)
        lines, missed = top_lines(case, original, reference), []
        for file in made:
            figures = figures_of(case, file, original, reference)
            lines.append(line_of(file, figures, columns=len(lines[0])))
            if file.must_reach:
                missed += [
                    f"{file.title}, {column}" for column, goal in case.goals.items()
                    if not goal.is_met(figures.get(column, _NAN))
                ]  # fmt: skip
        emulated = emulate(case, [file for file in made if file.emulate], reference, folder)
    print(case.title)
    reasons = [f"{file.title}: {file.reason}" for file in made if file.reason]
    for line in [*table(lines), *reasons, *emulated]:
        print(f"  {line}")
    if case.goals:
        print(f"  missed: {'; '.join(missed) or 'nothing'}")
    print(f"  all of this took {time.monotonic() - began:.0f} s")


def compress(case: Case, original: Path, target: str, folder: Path) -> Made:
    """Run the command line for a target, with a cache of its own."""
    recipe = folder / "limits.toml"
    recipe.write_text(case.limits, encoding="utf-8")
    return _run(
        f"edgepack {target}",
        [
            str(original), "-t", target, *(("-r", str(recipe)) if case.limits else ()),
            "-c", str(folder / "calibration"),
            "--eval", str(folder / "search"), *case.budget,
        ],
        folder / target,
        must_reach=target == TARGETS[0],
    )  # fmt: skip


def prune(case: Case, folder: Path) -> Made:
    """Run the command line with the recipe that prunes and trains."""
    recipe = folder / "pruned.toml"
    recipe.write_text(case.pruned, encoding="utf-8")
    arguments = ["-r", str(recipe), "-t", TARGETS[0]]
    return _run("edgepack, pruned by half", arguments, folder / "pruned", must_reach=True)


def quantize(case: Case, original: Path, function: str, folder: Path) -> Made:
    """Make a file with a function of ONNX Runtime at its defaults, and see whether it loads."""
    from onnxruntime import quantization

    from packager.passes.contract import first_line, tool_faults

    title, path = f"ONNX Runtime's {function}", folder / f"{function}.onnx"
    work: dict[str, Callable[[], None]] = {
        "quantize_static": lambda: quantization.quantize_static(
            original, path, _reader(case.calibration)
        ),
        "quantize_dynamic": lambda: quantization.quantize_dynamic(original, path),
    }
    try:
        work[function]()
    except tool_faults() as fault:
        return Made(title=title, path=None, told=f"is not made: {shorter(first_line(fault))}")
    return loaded(case, title, path)


def loaded(case: Case, title: str, path: Path, told: str = "") -> Made:
    """Return a file that loads and answers, or why it does not."""
    from packager.checks.latency import open_session
    from packager.passes.contract import first_line, tool_faults

    try:
        open_session(path, 1).run(None, case.test[0])
    except tool_faults() as fault:
        return Made(title=title, path=None, told=f"does not load: {shorter(first_line(fault))}")
    return Made(title=title, path=path, told=told)


def answer(path: Path, samples: Sequence[Sample]) -> list[Sample]:
    """Return the outputs of a model for each sample, by name."""
    from packager.checks.latency import open_session

    session = open_session(path, 2)
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, sample), strict=True)) for sample in samples]


def emulate(
    case: Case, made: Sequence[Made], reference: Sequence[Sample], folder: Path
) -> list[str]:
    """Return lines about the quality of files under the emulated processor, and here."""
    import numpy as np

    emulator = shutil.which("qemu-x86_64")
    files = [(file.title, file.path) for file in made if file.path is not None]
    if not files:
        return []
    if emulator is None or platform.machine() != "x86_64":
        return ["nothing was emulated: qemu-x86_64 is missing"]
    few = case.test[: case.emulated]
    inputs, outputs = folder / "few.npz", folder / "answers.npz"
    write_samples(inputs, few)
    done = subprocess.run(
        [
            emulator, "-cpu", _EMULATED_CPU, sys.executable,
            str(Path(__file__).with_name("answers.py")), str(inputs), str(outputs),
            str(_EMULATED_S), *(str(path) for _, path in files),
        ],
        check=False, capture_output=True, text=True, timeout=_LIMIT_S,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [f"the emulated {_EMULATED_CPU} failed: {last}"]
    lines = []
    with np.load(outputs) as found:
        count = len({key.split("/")[1] for key in found.files})
        for number, (title, path) in enumerate(files):
            answers = read_answers(found, f"{number}/", count), answer(path, few[:count])
            there, here = (case.quality(reference[:count], each) for each in answers)
            told = ", ".join(f"{key} {_figure(there[key])} ({_figure(here[key])})" for key in there)
            lines.append(f"{title}: {told}")
    which = f"under an emulated {_EMULATED_CPU}, on {count} of the samples (and here)"
    return [f"{which}:", *(f"  {line}" for line in lines)]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples into one `.npz` file, arrays named INDEX/NAME."""
    import numpy as np

    arrays = {f"{i}/{name}": array for i, s in enumerate(samples) for name, array in s.items()}
    np.savez(path, **arrays)


def read_answers(found: Any, prefix: str, count: int) -> list[Sample]:
    """Return what `answers.py` wrote of one model, by sample and output."""
    answers: list[Sample] = [{} for _ in range(count)]
    for key in found.files:
        if key.startswith(prefix):
            index, _, name = key.removeprefix(prefix).partition("/")
            answers[int(index)][name] = found[key]
    return answers


def _run(title: str, arguments: Sequence[str], folder: Path, *, must_reach: bool) -> Made:
    done = subprocess.run(
        [
            sys.executable, "-m", "packager", "compress", *arguments,
            "--time-budget", _TIME_BUDGET, "--cache-dir", str(folder / "cache"),
            "-o", str(folder / "dist"), "--json", "-q",
        ],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=_LIMIT_S,
    )  # fmt: skip
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), "it said nothing")
        told = f"exit {done.returncode}: {shorter(said)}"
        return Made(title=title, path=None, told=told, must_reach=must_reach)
    (item,) = json.loads(done.stdout)
    record = json.loads(Path(item["record"]).read_text(encoding="utf-8"))
    search = record["search"]
    told = (
        f"{item['precision']}; {search['evaluations']} evaluations, "
        f"{len(search['candidates'])} candidates, {search['took_s']:.0f} s"
    )
    trained = record["facts"].get("training", {}).get(item["precision"])
    if trained:
        told += (
            f"; {trained['parameters_before']} → {trained['parameters_after']} parameters, "
            f"trained {trained['trained_s']:.0f} s"
        )
    (reason,) = (c["reason"] for c in search["candidates"] if c["verdict"] == "chosen")
    return Made(
        title=title, path=Path(item["path"]), told=told, reason=reason,
        emulate=not item["precision"].startswith("fp32"), must_reach=must_reach,
    )  # fmt: skip


def _write(folder: Path, samples: Sequence[Sample], labels: Sequence[Any]) -> None:
    """Write samples as the command line reads them: a folder of `.npz` files."""
    import numpy as np

    folder.mkdir()
    for index, sample in enumerate(samples):
        label = {"label": np.atleast_1d(labels[index])} if len(labels) else {}
        np.savez(folder / f"{index:04}.npz", **sample, **label)


def _reader(samples: Sequence[Sample]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Sample] = iter(samples)

        def get_next(self) -> Sample | None:
            return next(self._left, None)

    return Reader()


def figures_of(
    case: Case, file: Made, original: Path, reference: Sequence[Sample]
) -> dict[str, float]:
    """Return the size, the speed in alternating pairs with the original, and the quality."""
    from packager.checks.latency import alternate

    if file.path is None:
        return {}
    figures = {"MB": file.path.stat().st_size / 1e6}
    for threads, column in ((1, ONE), (2, TWO)):
        figures[column] = alternate(
            original, file.path, case.test[0], threads, min_pairs=_LEAST_PAIRS,
            max_seconds=_TIMED_S, target_confidence=0.9999,
        ).speedup  # fmt: skip
    return figures | case.quality(reference, answer(file.path, case.test))


def top_lines(case: Case, original: Path, reference: Sequence[Sample]) -> list[list[str]]:
    """Return the heading, what should be reached, and the original's figures."""
    own = {"MB": original.stat().st_size / 1e6, ONE: 1.0, TWO: 1.0}
    own |= case.quality(reference, reference)
    goals = [case.goals.get(column) for column in own]
    return [
        ["", *own, ""],
        ["reach", *(f"{g.sign} {g.value:g}" if g else "" for g in goals), ""],
        ["float32", *(_figure(value) for value in own.values()), ""],
    ]


def line_of(file: Made, figures: Mapping[str, float], *, columns: int) -> list[str]:
    """Return a line of the table, its cells empty where there is no file."""
    cells = [_figure(value) for value in figures.values()] or [""] * (columns - 2)
    return [file.title, *cells, file.told]


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def shorter(text: str) -> str:
    """Return a text that fits into a line."""
    return text if len(text) < 100 else f"{text[:97]}…"


def work_folder() -> Path:
    """Return where files lie while they are measured."""
    folder = ROOT / ".cache" / "compressing"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
