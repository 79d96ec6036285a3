"""Makes the golden samples: inputs, the artifact's outputs and the original model's."""

from __future__ import annotations

import io
import lzma
import math
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.archive import Entry
from packager.bundle.device import detect_device
from packager.checks.latency import open_session
from packager.checks.parity import is_float
from packager.errors import BudgetMissed, ModelUnsupported
from packager.passes.outputs import decided_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.artifact import Artifact
    from packager.data import Samples
    from packager.model import TensorSpec
    from packager.recipe import Recipe

SAMPLES: Final = 4
MAX_COMPRESSED_BYTES: Final = 512_000
_DATE: Final = (1980, 1, 1, 0, 0, 0)
# One CPU level, one library: only the order of sums over threads can differ.
_SAME_CPU_RTOL: Final = 1e-4
_SAME_CPU_ATOL: Final = 1e-5
# Two neighbours among the numbers of 8 bits: a sum between them may be rounded to either.
_SAME_CPU_RTOL_BFLOAT16: Final = 2.0**-7
# Other kernels add up in another order; behind a quantizer that moves whole steps.
_OTHER_CPU_MIN_COSINE: Final = {"fp32": 0.9999}
_OTHER_CPU_MIN_COSINE_QUANTIZED: Final = 0.99
# Noise is harder on a quantized model than the data its budget was measured on.
_SYNTHETIC_SLACK: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The golden samples of a bundle.

    Attributes:
        entries: `golden/NNN.inputs.npz`, `NNN.artifact.npz` and `NNN.original.npz`, with arrays
            `i0`, `i1`, … and `o0`, … by position in the signature.
        table: `manifest["golden"]`: how many, from where, and the tolerances.
    """

    entries: tuple[Entry, ...]
    table: dict[str, Any]


def make_golden(
    artifact: Artifact,
    *,
    samples: Samples | None,
    seed: int,
    min_cosine: float,
    workdir: Path,
    recipe: Recipe | None = None,
    count: int = SAMPLES,
    cpu: str | None = None,
) -> Golden:
    """Run artifact and original on a few inputs, one thread each, and keep what comes out.

    The same arguments give the same bytes on CPUs of one level.

    Args:
        artifact: With its pre-processing, where it has one.
        samples: Real inputs to carry along; None makes synthetic ones from the signature.
        seed: Of the synthetic ones.
        min_cosine: The accuracy budget: how near the artifact has to be to the original.
        workdir: For the original with its pre-processing.
        recipe: Whose pre- and post-processing the artifact has; None for none.
        count: At most so many samples; fewer where they would take more than
            MAX_COMPRESSED_BYTES, but always one.
        cpu: This machine's CPU level; None to find out.

    Raises:
        ModelUnsupported: the artifact or the original does not run.
        BudgetMissed: on a real sample the artifact is further from the original than allowed.
    """
    origin, inputs = _inputs(artifact, recipe, samples, seed, count)
    specs = artifact.signature.outputs
    ask = _original(artifact, recipe, workdir)
    answers = [(feeds, _run_artifact(artifact, feeds), ask(feeds)) for feeds in inputs]
    entries, kept = _fitting(artifact, answers)
    decided = decided_outputs(recipe, artifact.model.signature) if recipe is not None else ()
    compared = [at for at, s in enumerate(artifact.signature.outputs) if s.name not in decided]
    nearest = min(
        (_cosine(expected[at], got[at]) for _, got, expected in kept for at in compared),
        default=1.0,
    )
    if nearest < min_cosine and samples is not None:
        raise BudgetMissed(
            f"on a golden sample the artifact has a cosine of {nearest:.4f} with the original",
            accepted=f"at least {min_cosine}, the recipe's budget",
            hint="build with `--precision fp32`, or choose other golden samples",
        )
    if nearest < min_cosine:
        min_cosine = math.floor((nearest - _SYNTHETIC_SLACK) * 100) / 100
    table = {
        "samples": len(kept),
        "origin": origin,
        "seed": seed,
        "cpu": cpu or str(detect_device()["cpu_level"]),
        "same_cpu": {"atol": _absolute_tolerance(kept), "rtol": _relative_tolerance(specs)},
        "other_cpu": {
            "min_cosine": _OTHER_CPU_MIN_COSINE.get(
                artifact.precision, _OTHER_CPU_MIN_COSINE_QUANTIZED
            )
        },
        "original": {"min_cosine": min_cosine},
    }
    if decided:
        table["decided"] = list(decided)
    return Golden(entries=entries, table=table)


_Arrays = list["NDArray[Any]"]
_Answer = tuple[dict[str, "NDArray[Any]"], _Arrays, _Arrays]


def _inputs(
    artifact: Artifact, recipe: Recipe | None, samples: Samples | None, seed: int, count: int
) -> tuple[str, Sequence[dict[str, NDArray[Any]]]]:
    if samples is None:
        from packager.data import synthetic
        from packager.passes.inputs import made_up

        if recipe is None:
            return "synthetic", synthetic(artifact.signature, count, seed)
        return "synthetic", made_up(artifact.signature, recipe, count, seed)
    return samples.origin, samples[:count]


def _original(
    artifact: Artifact, recipe: Recipe | None, workdir: Path
) -> Callable[[dict[str, NDArray[Any]]], _Arrays]:
    """Return what answers as the original with its pre- and post-processing."""
    model, specs = artifact.model, artifact.signature.outputs
    if recipe is None:
        return lambda feeds: _run(model.path, feeds, specs)
    if model.large:
        return _original_apart(artifact, recipe)
    from packager.passes.inputs import attach

    path = workdir / "original-attached.onnx"
    attach(model.path, model.signature, recipe, path)
    return lambda feeds: _run(path, feeds, specs)


def _original_apart(
    artifact: Artifact, recipe: Recipe
) -> Callable[[dict[str, NDArray[Any]]], _Arrays]:
    """Do the same with the steps apart, where they and the weights fit into no one file."""
    from packager.data import Samples
    from packager.passes.inputs import prepare
    from packager.passes.outputs import finisher

    model = artifact.model
    finish = finisher(recipe, model.signature)

    def ask(feeds: dict[str, NDArray[Any]]) -> _Arrays:
        sample = Samples((lambda: feeds,), digest="", origin="", kind="synthetic")
        taken = prepare(sample, recipe, model.signature)[0]
        raw = _run(model.path, taken, model.signature.outputs)
        named = {s.name: array for s, array in zip(model.signature.outputs, raw, strict=True)}
        named = finish(named) if finish is not None else named
        return [named[spec.name] for spec in artifact.signature.outputs]

    return ask


def _run_artifact(artifact: Artifact, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Return what the device computes: with the parts where a bundle carries those.

    What was written otherwise for TensorRT, as Q/DQ with zero points, may round otherwise.
    """
    names = [spec.name for spec in artifact.signature.outputs]
    parts = artifact.parts
    if parts is None:
        return _run(artifact.path, feeds, artifact.signature.outputs)
    values = dict(feeds)
    for path in (parts.head, parts.core, parts.tail):
        if path is not None:
            values.update(_run_part(path, values))
    return [values[name] for name in names]


def _run_part(path: Path, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    try:
        session = open_session(path, 1)
        names = [value.name for value in session.get_outputs()]
        got = session.run(names, {value.name: values[value.name] for value in session.get_inputs()})
    except runtime_errors() as fault:
        raise ModelUnsupported(f"`{path.name}` does not run on a golden sample: {fault}") from fault
    return dict(zip(names, got, strict=True))


def _run(
    path: Path, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[TensorSpec]
) -> list[NDArray[Any]]:
    try:
        session = open_session(path, 1)
        got = session.run([spec.name for spec in outputs], dict(feeds))
    except runtime_errors() as fault:
        raise ModelUnsupported(f"`{path.name}` does not run on a golden sample: {fault}") from fault
    return list(got)


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises for a model that does not load or run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        RuntimeError, ValueError, state.EPFail, state.Fail, state.InvalidArgument,
        state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile, state.NotImplemented,
        state.RuntimeException,
    )  # fmt: skip


def _fitting(
    artifact: Artifact, answers: Sequence[_Answer]
) -> tuple[tuple[Entry, ...], list[_Answer]]:
    """Keep the samples that fit into MAX_COMPRESSED_BYTES, in order, and always the first."""
    entries: list[Entry] = []
    kept: list[_Answer] = []
    left = MAX_COMPRESSED_BYTES
    for answer in answers:
        feeds, got, expected = answer
        ordered = [feeds[spec.name] for spec in artifact.signature.inputs]
        files = {
            "inputs": pack_npz("i", ordered),
            "artifact": pack_npz("o", got),
            "original": pack_npz("o", expected),
        }
        size = sum(len(lzma.compress(data)) for data in files.values())
        if size > left and kept:
            continue
        stem = f"golden/{len(kept):03}"
        left -= size
        kept.append(answer)
        entries += [
            Entry(path=f"{stem}.{part}.npz", source=data, compress=True)
            for part, data in files.items()
        ]
    return tuple(entries), kept


def pack_npz(letter: str, arrays: Sequence[NDArray[Any]]) -> bytes:
    """Return arrays as an .npz whose bytes depend on them alone: numpy's own carry the date."""
    import numpy as np

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for position, array in enumerate(arrays):
            # ONNX Runtime gives strings as objects, which an .npy must not hold.
            plain = np.array(array, dtype=str) if array.dtype == object else array
            content = io.BytesIO()
            np.lib.format.write_array(
                content, np.ascontiguousarray(plain).reshape(plain.shape), allow_pickle=False
            )
            info = zipfile.ZipInfo(f"{letter}{position}.npy", _DATE)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, content.getvalue())
    return out.getvalue()


def _relative_tolerance(outputs: Sequence[TensorSpec]) -> float:
    rounded = any(spec.dtype == "bfloat16" for spec in outputs)
    return _SAME_CPU_RTOL_BFLOAT16 if rounded else _SAME_CPU_RTOL


def _absolute_tolerance(answers: Sequence[_Answer]) -> float:
    """Return _SAME_CPU_ATOL for outputs up to 1, and as much more as the largest output is."""
    import numpy as np

    largest = 1.0
    for _, got, _ in answers:
        for array in got:
            finite = array[np.isfinite(array)] if is_float(array) else array[:0]
            if finite.size:
                largest = max(largest, float(np.abs(finite).max()))
    # A power of ten, so that the table shows a tolerance and not a measurement.
    return float(f"1e{math.ceil(math.log10(_SAME_CPU_ATOL * largest) - 1e-9)}")


def _cosine(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Return the cosine of the angle of two outputs as vectors; 1.0 for what holds no floats."""
    import numpy as np

    if not is_float(expected) or expected.shape != got.shape:
        return 1.0 if expected.shape == got.shape else 0.0
    a = np.asarray(expected, np.float64).ravel()
    b = np.asarray(got, np.float64).ravel()
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    top_a, top_b = np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0)
    if top_a == 0.0 or top_b == 0.0:
        return 1.0 if top_a == top_b else 0.0
    a, b = a / top_a, b / top_b
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))
