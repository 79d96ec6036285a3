"""Times a candidate against the original in alternating runs, with a stated confidence."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from packager.artifact import Latency
from packager.checks.bfloat16 import with_bfloat16
from packager.checks.pairs import kept_pairs
from packager.checks.processor import products_saturate
from packager.model import data_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_WARM_UP_RUNS: Final = 3
# Runs of one measurement are repeated until they last this long, against the clock's own noise.
_MEASUREMENT_S: Final = 0.002
_RESAMPLES: Final = 1000
_LEAST_PAIRS: Final = 3
_MOST_ROUNDS: Final = 200
_CRASHING_OPTIMIZER: Final = "FuseFp16InitializerToFp32NodeTransformer"


def alternate(
    original: Path,
    candidate: Path,
    feeds: Mapping[str, NDArray[Any]],
    threads: int,
    *,
    min_pairs: int = 12,
    max_seconds: float = 6.0,
    target_confidence: float = 0.95,
) -> Latency:
    """Time both models on the same input in pairs, whose order turns with each pair.

    Stops when the sign of the gain is sure either way, else when the time is up. The decision is
    taken after `min_pairs` and then at each half more, at a stricter confidence than asked for,
    because looking often finds a gain by luck.

    Args:
        original: ONNX file.
        candidate: ONNX file with the same inputs.
        feeds: One input, usually with the batch at 1.
        threads: Intra-op threads of both; 0 for one per core. Spinning is off, as on the device.
        min_pairs: Pairs before the first decision.
        max_seconds: Limit of the timing, sessions and warm-up apart; three pairs are run at least.
        target_confidence: In 0.5..1.

    Raises:
        RuntimeError: from ONNX Runtime, if a model does not load or run.
    """
    import numpy as np

    runs = [_runner(path, feeds, threads) for path in (original, candidate)]
    for run in runs:
        for _ in range(_WARM_UP_RUNS):
            run()
    repeats = [_repeats(run) for run in runs]
    seconds: tuple[list[float], list[float]] = ([], [])
    strict = 1 - (1 - target_confidence) / 4
    began, next_look, confidence = time.perf_counter(), min_pairs, 0.5
    while True:
        order = (0, 1) if len(seconds[0]) % 2 == 0 else (1, 0)
        for side in order:
            seconds[side].append(_measure(runs[side], repeats[side]))
        pairs = len(seconds[0])
        over = time.perf_counter() - began > max_seconds and pairs >= _LEAST_PAIRS
        if pairs >= next_look or over:
            ratios = np.asarray(seconds[0]) / np.asarray(seconds[1])
            confidence = bootstrap_confidence(ratios)
            next_look = pairs + max(pairs // 2, 1)
            if over or confidence >= strict or confidence <= 1 - strict:
                break
    return Latency(
        p50_ms=float(np.median(seconds[1])) * 1e3,
        p90_ms=float(np.quantile(seconds[1], 0.9)) * 1e3,
        original_p50_ms=float(np.median(seconds[0])) * 1e3,
        speedup=float(np.median(ratios)),
        confidence=confidence,
        threads=threads,
        runs=len(seconds[0]),
    )


def race(
    original: Path,
    candidates: Sequence[Path],
    feeds: Mapping[str, NDArray[Any]],
    threads: int,
    *,
    seconds: float = 8.0,
) -> tuple[Latency, ...]:
    """Time several candidates against the original and each other, one round after the other.

    `alternate` ends as soon as the sign of a gain is sure, when its size is still uncertain. Here
    all sessions live together and every round runs each of them once, in a turning order, so that
    what disturbs the machine disturbs them alike: their order among each other is what counts.

    Args:
        original: ONNX file.
        candidates: ONNX files with the same inputs.
        feeds: One input, usually with the batch at 1.
        threads: Intra-op threads of all; 0 for one per core.
        seconds: How long to go on, to 200 rounds; three are run at least.

    Returns:
        One figure per candidate, in order.
    """
    import numpy as np

    runs = [_runner(path, feeds, threads) for path in (original, *candidates)]
    for run in runs:
        for _ in range(_WARM_UP_RUNS):
            run()
    repeats = [_repeats(run) for run in runs]
    rounds: list[list[float]] = []
    began = time.perf_counter()
    while len(rounds) < _MOST_ROUNDS and (
        len(rounds) < _LEAST_PAIRS or time.perf_counter() - began < seconds
    ):
        times = [0.0] * len(runs)
        first = len(rounds) % len(runs)
        for side in (*range(first, len(runs)), *range(first)):
            times[side] = _measure(runs[side], repeats[side])
        rounds.append(times)
    table = np.asarray(rounds)
    return tuple(
        Latency(
            p50_ms=float(np.median(table[:, side])) * 1e3,
            p90_ms=float(np.quantile(table[:, side], 0.9)) * 1e3,
            original_p50_ms=float(np.median(table[:, 0])) * 1e3,
            speedup=float(np.median(table[:, 0] / table[:, side])),
            confidence=bootstrap_confidence(table[:, 0] / table[:, side]),
            threads=threads,
            runs=len(rounds),
        )
        for side in range(1, len(runs))
    )


def distribution(
    original: Path,
    candidate: Path,
    feeds: Mapping[str, NDArray[Any]],
    threads: int,
    *,
    runs: int,
    max_seconds: float = 3.0,
) -> tuple[list[float], list[float]]:
    """Return the times of single runs of both models in milliseconds, in turns.

    Args:
        original: ONNX file.
        candidate: ONNX file with the same inputs.
        feeds: One input.
        threads: Intra-op threads of both; 0 for one per core.
        runs: Of each model.
        max_seconds: Stop earlier after this time; one run of each is made at least.
    """
    sides = [_runner(path, feeds, threads) for path in (original, candidate)]
    for run in sides:
        for _ in range(_WARM_UP_RUNS):
            run()
    found: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for _ in range(runs):
        for side, run in enumerate(sides):
            found[side].append(round(_measure(run, 1) * 1e3, 4))
        if time.perf_counter() - began > max_seconds:
            break
    return found


def bootstrap_confidence(ratios: NDArray[Any]) -> float:
    """Return the share of bootstrap resamples whose median ratio is above 1.

    The resamples are drawn from a fixed seed: equal measurements give an equal confidence.
    """
    import numpy as np

    picks = np.random.Generator(np.random.Philox(0)).integers(
        0, len(ratios), (_RESAMPLES, len(ratios))
    )
    return float((np.median(ratios[picks], axis=1) > 1.0).mean())


def open_session(path: Path, threads: int) -> Any:
    """Return an ONNX Runtime session on the CPU as a device opens it: spinning off, quiet.

    A model too large for one file runs on no device: its weights are neither packed nor folded, so
    that they stay views on their file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    leave_out_optimizers(options)
    kept = kept_pairs(path)
    if kept == "always" or (kept == "saturating" and products_saturate()):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if data_file(path).is_file():
        keep_outside(options)
    return with_bfloat16(
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    )


def keep_outside(options: Any) -> None:
    """Set session options so that external weights stay views on their file.

    Neither copies nor transposed or widened twins of them are made. Without fusions as well, a
    Transpose of each weight would be computed at run time and all be held at once.
    """
    options.add_session_config_entry("session.disable_prepacking", "1")
    leave_out_optimizers(options, "ConstantFolding")


def leave_out_optimizers(options: Any, *names: str) -> None:
    """Set which of ONNX Runtime's graph optimizers do not run: these, and one that crashes.

    1.32 ends the process with SIGSEGV where a constant of fp16 is the second factor of a MatMul
    behind a Transpose; without the optimizer that widens such constants it does not. The device's
    runtime sets the same.
    """
    off = ";".join((_CRASHING_OPTIMIZER, *names))
    options.add_session_config_entry("optimization.disable_specified_optimizers", off)


def _runner(path: Path, feeds: Mapping[str, NDArray[Any]], threads: int) -> Callable[[], None]:
    session = open_session(path, threads)
    inputs = dict(feeds)

    def run() -> None:
        session.run(None, inputs)

    return run


def _repeats(run: Callable[[], None]) -> int:
    once = min(_measure(run, 1) for _ in range(3))
    return max(1, min(1000, round(_MEASUREMENT_S / max(once, 1e-6))))


def _measure(run: Callable[[], None], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats
