"""Runs an exported file beside its module, at every size and seed that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from packager.checks.bfloat16 import with_bfloat16
from packager.checks.parity import is_float
from packager.importers.explain import Refusal
from packager.importers.output_shapes import Observation, output_specs
from packager.importers.probe import engine_errors, kernel_hint, reason
from packager.importers.torch_sizes import elements, inputs_at
from packager.model import Dim, Signature, TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    import torch

    from packager.importers.axes import AxisPlan
    from packager.importers.torch_sizes import Reference, Sizes

_SEEDS: Final = (0, 1)
# Inputs above this are compared once a size: a batch of 32 photos costs seconds.
_MANY_ELEMENTS: Final = 1 << 20
_EXTRA_SEEDS: Final = (2, 3, 4)
# Largest difference allowed, relative to the largest value of the output.
_RELATIVE: Final = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_ABSOLUTE: Final = 1e-6


def check_export(
    model: onnx.ModelProto,
    reference: Reference,
    plan: AxisPlan,
    points: list[Sizes],
    *,
    workdir: Path,
) -> tuple[Signature, str]:
    """Compare the file with the module and return its signature and a sentence on what was tried.

    Args:
        model: The export.
        reference: The module or program it came from.
        plan: The axes.
        points: Sizes to compare at, the optimum first; there the examples themselves are compared
            as well, everywhere else seeded inputs.
        workdir: For temporary files.

    Raises:
        Refusal: the file does not load or run, or answers differently.
    """
    session = _open(model, workdir)
    base, *others = points
    trials: list[tuple[Sizes, int | None]] = [(base, None)]
    trials += [(base, seed) for seed in (*_SEEDS, *_EXTRA_SEEDS)]
    for point in others:
        seeds = _SEEDS if elements(plan, point) <= _MANY_ELEMENTS else _SEEDS[:1]
        trials += [(point, seed) for seed in seeds]
    seen: list[Observation] = []
    worst = 0.0
    for sizes, seed in trials:
        inputs = inputs_at(plan, reference.examples, sizes, seed=seed)
        expected = reference.outputs(inputs)
        got = _run(session, inputs, sizes)
        for name, tensor in expected.items():
            worst = max(worst, _difference(name, tensor, got[name], sizes))
        seen.append(Observation.of(sizes, got))
    dims = {
        name: Dim(name=name, min=s.range.min, max=s.range.max, opt=s.range.opt)
        for name, s in plan.symbols.items()
        if s.range is not None
    }
    inputs_ = tuple(
        TensorSpec(
            name=entry.name,
            dtype=entry.dtype,
            shape=tuple(Dim(size=a) if isinstance(a, int) else dims[a] for a in entry.axes),
        )
        for entry in plan.inputs
    )
    signature = Signature(inputs=inputs_, outputs=output_specs(model, seen, dims))
    sizes_text = f"{len(trials)} inputs at {len({tuple(s.items()) for s, _ in trials})} sizes"
    return signature, f"passed: {sizes_text} differ by at most {worst:.1e} of the largest value"


def _open(model: onnx.ModelProto, workdir: Path) -> Any:
    import onnxruntime

    from packager.checks.latency import leave_out_optimizers

    path = workdir / "rung.onnx"
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    leave_out_optimizers(options)
    options.log_severity_level = 4
    try:
        return with_bfloat16(
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        )
    except engine_errors() as fault:
        raise Refusal(
            f"ONNX Runtime does not load the export: {reason(fault)}",
            hint=kernel_hint(model, fault),
        ) from fault
    finally:
        path.unlink()


def _run(session: Any, inputs: dict[str, torch.Tensor], sizes: dict[str, int]) -> dict[str, Any]:
    wanted = {entry.name for entry in session.get_inputs()}
    feeds = {name: _numpy(value) for name, value in inputs.items() if name in wanted}
    names = [entry.name for entry in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except engine_errors() as fault:
        raise Refusal(
            f"the export does not run at {_words(sizes)}: {reason(fault)}",
            kind="dimension" if sizes else "other",
            hint=_static_hint(sizes),
        ) from fault


def _difference(name: str, expected: torch.Tensor, got: Any, sizes: dict[str, int]) -> float:
    """Return the largest difference relative to the largest value.

    Raises:
        Refusal: past the tolerance of the dtype, or another dtype or shape.
    """
    want = _numpy(expected.detach())
    where = f"output `{name}` at {_words(sizes)}"
    if want.dtype != got.dtype or want.shape != got.shape:
        raise Refusal(
            f"{where} is {got.dtype}{list(got.shape)} in the export and "
            f"{want.dtype}{list(want.shape)} in the module",
            kind="answers",
            hint=_static_hint(sizes),
        )
    if want.size == 0:
        return 0.0
    if not is_float(want):
        if not np.array_equal(want, got):
            raise Refusal(
                f"{where} differs from the module's", kind="answers", hint=_static_hint(sizes)
            )
        return 0.0
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)) or not np.array_equal(
        want[~finite], got[~finite], equal_nan=True
    ):
        raise Refusal(f"{where} has infinities or NaN in other places", kind="answers")
    a, b = want[finite].astype(np.float64), got[finite].astype(np.float64)
    if a.size == 0:
        return 0.0
    largest = float(np.abs(a).max())
    gap = float(np.abs(a - b).max())
    if gap > _RELATIVE[str(want.dtype)] * largest + _ABSOLUTE:
        raise Refusal(
            f"{where} differs from the module's by up to {gap:.2g}, its values reach {largest:.2g}",
            kind="answers",
            hint=_static_hint(sizes),
        )
    return gap / largest if largest else 0.0


def _numpy(tensor: torch.Tensor) -> Any:
    """Return a tensor as an array; torch gives none of bfloat16, so its bits change hands."""
    import torch

    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.contiguous().view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))


def _words(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items()) or "its fixed sizes"


def _static_hint(sizes: dict[str, int]) -> str | None:
    if not sizes:
        return None
    name, size = next(iter(sizes.items()))
    return f"if `{name}` need not vary, declare it static: `--dim {name}={size}`"
