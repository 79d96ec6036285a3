"""Measures whether requests that wait are worth running as one batch."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.checks.parity import is_float
from packager.model import Dim, Signature

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# What a request costs besides the model: measured 70 to 100 us of JSON and HTTP, and a share of
# the hand-over to a thread.
REQUEST_S: Final = 120e-6
LEAST_GAIN: Final = 2.0
ROWS: Final = 16
_MEASURING_S: Final = 0.4
_LEAST_ROUNDS: Final = 5
# Sixteen rows that each take longer would keep the first of them waiting too long.
_LONGEST_ROW_S: Final = 0.02
# Rows alone and in company may differ by the order of float additions, not by more.
_TOLERANCE: Final = 1e-3
_COUPLING: Final = "DynamicQuantizeLinear"


@dataclass(frozen=True, kw_only=True)
class BatchChoice:
    """Whether the server batches, and why.

    Attributes:
        rows: The most rows of a batch; 0: it does not batch.
        gain: Requests per second with batches over those without, as estimated from the times of
            the model and the cost of a request; None where nothing was measured.
        reason: In words.
    """

    rows: int
    reason: str
    gain: float | None = None


def batchable_rows(signature: Signature) -> int:
    """Return the most rows a batch may have; 0 where requests cannot be joined.

    They can where every input and output has one and the same open dimension as its first axis
    and nowhere else.
    """
    specs = (*signature.inputs, *signature.outputs)
    firsts = {spec.shape[0].name if spec.shape and spec.shape[0].size is None else None
              for spec in specs}  # fmt: skip
    if len(firsts) != 1 or None in firsts or not signature.inputs:
        return 0
    (name,) = firsts
    if any(dim.name == name and dim.size is None for spec in specs for dim in spec.shape[1:]):
        return 0
    limits = [spec.shape[0].max or ROWS for spec in signature.inputs]
    return min(limits) if min(limits) > 1 else 0


def choose_batching(
    path: Path, signature: Signature, *, threads: int, rows: int = 0, forced: bool = False
) -> BatchChoice:
    """Decide whether a model's requests are worth joining, by running it.

    Args:
        path: The ONNX file as the engine loads it.
        signature: Its own.
        threads: Intra-op threads; 0 for one per core.
        rows: The most rows of a batch; 0 for 16, or fewer where the model takes fewer.
        forced: The user asked for it: only what would make wrong answers keeps it off.
    """
    from packager.checks.latency import open_session

    most = batchable_rows(signature)
    if not most:
        return BatchChoice(rows=0, reason="requests of this signature cannot be joined")
    rows = min(rows or ROWS, most)
    if rows < 2:
        return BatchChoice(rows=0, reason="one row is all that a batch may have")
    if _couples_rows(path):
        reason = "dynamic int8 scales all rows of a batch together: company would change answers"
        return BatchChoice(rows=0, reason=reason)
    session = open_session(path, threads)
    samples = _single_rows(signature, rows)
    quickest_s = min(_time(session, samples[0]) for _ in range(3))
    if quickest_s > _LONGEST_ROW_S:
        reason = f"a row takes {quickest_s * 1e3:.3g} ms: too long to wait for others"
        return BatchChoice(rows=0, reason=reason)
    joined = _join(samples)
    if not _same(session, samples, joined):
        return BatchChoice(rows=0, reason="a row's answer changes with the rows beside it")
    alone_s, together_s = _race(session, samples[0], joined)
    gain = (REQUEST_S + alone_s) / (REQUEST_S + together_s / rows)
    told = (
        f"a row takes {alone_s * 1e3:.3g} ms alone and {together_s / rows * 1e3:.3g} ms among "
        f"{rows}: about {gain:.2g} x the requests"
    )
    if gain < LEAST_GAIN and not forced:
        return BatchChoice(rows=0, reason=told, gain=gain)
    return BatchChoice(rows=rows, reason=told, gain=gain)


def _couples_rows(path: Path) -> bool:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return any(node.op_type == _COUPLING for node in graph.node)


def _single_rows(signature: Signature, count: int) -> list[dict[str, NDArray[Any]]]:
    """Return different inputs of one row each, all other dimensions at their usual size."""
    from packager.data import synthetic

    def one_row(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
        usual = [d if d.size is not None else Dim(size=d.opt or d.min) for d in dims[1:]]
        return (Dim(size=1), *usual)

    single = Signature(
        inputs=tuple(
            dataclasses.replace(spec, shape=one_row(spec.shape)) for spec in signature.inputs
        ),
        outputs=signature.outputs,
    )
    made = synthetic(single, count, 0)
    return [made[index] for index in range(count)]


def _join(samples: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    import numpy as np

    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _same(
    session: Any, samples: list[dict[str, NDArray[Any]]], joined: Mapping[str, NDArray[Any]]
) -> bool:
    import numpy as np

    together = session.run(None, dict(joined))
    for row, sample in enumerate(samples):
        for alone, among in zip(session.run(None, sample), together, strict=True):
            if alone.shape[:1] != (1,) or among.shape[:1] != (len(samples),):
                return False
            one, other = alone[0], among[row]
            if not is_float(alone):
                if not np.array_equal(one, other):
                    return False
                continue
            scale = float(np.max(np.abs(one), initial=1e-6))
            if not np.allclose(one, other, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
                return False
    return True


def _race(
    session: Any, alone: dict[str, NDArray[Any]], joined: dict[str, NDArray[Any]]
) -> tuple[float, float]:
    """Return the seconds of both, run in turns: the tenth quickest of a hundred.

    What else the machine does only ever adds to a run.
    """
    import numpy as np

    seconds: tuple[list[float], list[float]] = ([], [])
    for feeds in (alone, joined):
        session.run(None, feeds)
    began = time.perf_counter()
    while len(seconds[0]) < _LEAST_ROUNDS or time.perf_counter() - began < _MEASURING_S:
        for side, feeds in enumerate((alone, joined)):
            seconds[side].append(_time(session, feeds))
    return float(np.quantile(seconds[0], 0.1)), float(np.quantile(seconds[1], 0.1))


def _time(session: Any, feeds: dict[str, NDArray[Any]]) -> float:
    before = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - before
