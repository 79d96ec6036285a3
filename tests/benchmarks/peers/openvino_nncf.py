"""Quantizes with NNCF and answers with OpenVINO: a script for the environment of requirements.txt.

    python openvino_nncf.py REQUEST.json

The request names the model, `calibration` and `test` (arrays named INDEX/NAME), `validation` and
`max_drop` for accuracy control, and a folder, in which `answers.npz` (0/INDEX/NAME) and
`result.json` are written.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nncf
import numpy as np
import onnxruntime
import openvino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Sample = dict[str, np.ndarray]

PAIRS = 60
TIMED_S = 8.0
WARM_UP_RUNS = 5


def main(request: dict[str, Any]) -> None:
    """Quantize as asked, answer, time, and write both."""
    folder, core = Path(request["folder"]), openvino.Core()
    calibration, test = read(request["calibration"]), read(request["test"])
    began = time.monotonic()
    model = core.read_model(request["model"])
    found: dict[str, Any] = {}
    kind = nncf.ModelType.TRANSFORMER if request["transformer"] else None
    dataset = nncf.Dataset(calibration)
    if request["validation"]:
        quantized, found["counts"] = controlled(model, dataset, request)
    else:
        quantized = nncf.quantize(model, dataset, model_type=kind)
    found["took_s"] = time.monotonic() - began
    openvino.save_model(quantized, folder / "model.xml")
    found["size_bytes"] = sum((folder / f"model.{s}").stat().st_size for s in ("xml", "bin"))
    original = session(request["model"], threads=1)
    names = [output.name for output in original.get_outputs()]
    compiled = core.compile_model(folder / "model.xml", "CPU", {"INFERENCE_NUM_THREADS": 2})
    answers = {}
    for index, sample in enumerate(test):
        for name, value in zip(names, compiled(sample).values(), strict=True):
            answers[f"0/{index}/{name}"] = np.array(value)
    np.savez(folder / "answers.npz", **answers)
    for threads in (1, 2):
        original = session(request["model"], threads=threads)
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        timed = core.compile_model(folder / "model.xml", "CPU", options).create_infer_request()
        found[f"speedup_{threads}"] = alternate(
            lambda run=original: run.run(None, test[0]),
            lambda run=timed: run.infer(test[0], share_inputs=True, share_outputs=True),
        )
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")


def controlled(model: Any, dataset: Any, request: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    """Quantize with accuracy control; the metric is the agreement with the original's classes.

    Returns:
        The model, and how often what was asked: `full` evaluations, and `items` of the ranking.
    """
    validation = read(request["validation"])
    counts: Counter[str] = Counter()
    reference = session(request["model"], threads=2)
    expected = [int(reference.run(None, sample)[0].argmax()) for sample in validation]
    labelled = list(zip(validation, expected, strict=True))

    def agreement(compiled: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        right = [float(int(compiled(s)[0].argmax()) == label) for s, label in items]
        counts["full" if len(right) == len(labelled) else "parts"] += 1
        counts["items"] += len(right) if len(right) < len(labelled) else 0
        return sum(right) / len(right), right

    quantized = nncf.quantize_with_accuracy_control(
        model,
        dataset,
        nncf.Dataset(labelled, lambda item: item[0]),
        agreement,
        max_drop=request["max_drop"],
    )
    return quantized, dict(counts)


def session(path: str, *, threads: int) -> Any:
    """Return an ONNX Runtime session as edgepack times one: spinning off."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def alternate(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """Return the median of time of the first / time of the second, run in pairs in turns."""
    runs = (first, second)
    for run in runs:
        for _ in range(WARM_UP_RUNS):
            run()
    once = max(min(seconds(run, 1) for _ in range(3)) for run in runs)
    repeats = max(1, round(0.002 / once))
    ratios, began = [], time.perf_counter()
    while len(ratios) < PAIRS and (time.perf_counter() - began < TIMED_S or len(ratios) < 3):
        order = (0, 1) if len(ratios) % 2 == 0 else (1, 0)
        took = {side: seconds(runs[side], repeats) for side in order}
        ratios.append(took[0] / took[1])
    return statistics.median(ratios)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the time of one run."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


def read(path: str) -> Sequence[Sample]:
    """Return the samples of a file of arrays named INDEX/NAME."""
    samples: dict[int, Sample] = {}
    with np.load(path) as file:
        for key in file.files:
            index, _, name = key.partition("/")
            samples.setdefault(int(index), {})[name] = file[key]
    return [samples[index] for index in sorted(samples)]


if __name__ == "__main__":
    nncf.set_log_level(logging.ERROR)
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
