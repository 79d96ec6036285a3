"""Runs a model with its pre- and post-processing and compares it with the model between them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.checks.latency import open_session
from packager.checks.parity import compare, contradiction, is_float
from packager.errors import ModelUnsupported
from packager.passes.contract import first_line, tool_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from packager.data import Samples
    from packager.model import Signature

    Outputs = dict[str, NDArray[Any]]

_PARITY: Final = 1e-3
_ROUNDING: Final = 1e-5


def check_attached(
    model_path: Path,
    attached_path: Path,
    attached: Signature,
    *,
    samples: Samples,
    raw: Mapping[str, str],
    prepare: Callable[[Samples], Samples],
    finish: Callable[[Outputs], Outputs] | None,
    raised: tuple[int, int] | None,
) -> None:
    """Run both on made-up inputs: the pre-processing, the model and the post-processing agree.

    The raw outputs are compared first, as numbers; the post-processing then has to make of the
    attached model's own raw outputs exactly what that model makes of them, because a class or a box
    turns on the last digit.

    Args:
        model_path: The model alone.
        attached_path: With its pre- and post-processing.
        attached: The latter's signature.
        samples: Made-up inputs of the attached model.
        raw: Names of its raw outputs' values, by the model's output.
        prepare: The pre-processing alone.
        finish: The post-processing alone.
        raised: Opsets before and after, where it was raised.

    Raises:
        ModelUnsupported: it does not run, or computes something else.
    """
    hint = f"export the model with opset {raised[1]} or later" if raised is not None else None
    try:
        expected = _run(model_path, prepare(samples))
        got = _run_with_raw(attached_path, samples, raw)
    except tool_faults() as fault:
        raise ModelUnsupported(
            f"the model does not run with its pre- and post-processing: {first_line(fault)}",
            hint=hint,
        ) from fault
    named = [{name: outputs[raw.get(name, name)] for name in expected[0]} for outputs in got]
    parity = compare(expected, named)
    if parity.cosine < 1 - _PARITY or not parity.exact:
        why = (
            f"once opset {raised[0]} was raised to {raised[1]}"
            if raised is not None
            else "behind its pre-processing"
        )
        raise ModelUnsupported(
            f"the model computes something else {why} (cosine {parity.cosine:.4f})", hint=hint
        )
    for outputs, plain in zip(got, named, strict=True):
        finished = finish(plain) if finish is not None else plain
        _check_finished(finished, {spec.name: outputs[spec.name] for spec in attached.outputs})


def _check_finished(expected: Outputs, got: Outputs) -> None:
    import numpy as np

    for name, array in expected.items():
        other = got[name]
        why = contradiction({name: array}, {name: other})
        if why is None and is_float(array):
            close = np.allclose(array, other, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)
            why = None if close else f"`{name}` differs"
        elif why is None and not np.array_equal(array, other):
            why = f"`{name}` differs"
        if why is not None:
            raise ModelUnsupported(
                f"the post-processing computes something else in the graph: {why}"
            )


def _run_with_raw(
    path: Path, samples: Iterable[Mapping[str, NDArray[Any]]], raw: Mapping[str, str]
) -> list[Outputs]:
    """Return the outputs of each sample, the raw values among them."""
    import onnx

    if not raw:
        return _run(path, samples)
    model = onnx.load(path)
    for value in raw.values():
        model.graph.output.append(onnx.ValueInfoProto(name=value))
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.onnx")
        onnx.save(model, probe)
        del model
        return _run(probe, samples)


def _run(path: Path, samples: Iterable[Mapping[str, NDArray[Any]]]) -> list[Outputs]:
    session = open_session(path, 0)
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(s)), strict=True)) for s in samples]
