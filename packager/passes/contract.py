"""The contract of a pass: requires → run → ensures, and the loop that holds every pass to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from packager.checks.latency import open_session
from packager.checks.parity import compare, contradiction, is_float

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.console import Reporter
    from packager.data import Samples
    from packager.target import Target

# An exact pass may change the order of a sum, never more: differences are taken relative to the
# largest output, as a small element of a long sum carries the whole sum's rounding.
_EXACT_RELATIVE: Final = 1e-4


class PassBroken(Exception):  # noqa: N818 - a state, like the `left out` it leads to
    """A pass left a model that does not hold what the pass promises."""


@dataclass(frozen=True, kw_only=True)
class PassContext:
    """What passes are given.

    Attributes:
        samples: Calibration data as the model takes it; None where there is none.
        probes: A few inputs to run every changed model on.
        workdir: The only folder a pass may write to.
        seed: For passes that draw numbers.
    """

    target: Target
    samples: Samples | None
    probes: Sequence[dict[str, NDArray[Any]]]
    workdir: Path
    reporter: Reporter
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """The model after a pass; `modified` is False only where it is the same graph.

    Attributes:
        twin: A model that computes the same and loads here, where the result itself does not, as
            in a precision that only the target's engine knows. It is run in its place.
    """

    model: Any
    modified: bool
    notes: tuple[str, ...] = ()
    twin: Any = None


class Pass(Protocol):
    """Graph → graph, one job. The attributes are readable without importing onnx.

    Attributes:
        name: As the plan and the record show it.
        summary: What it does, in a few words.
        precision: What the model is afterwards (`int8-static` …); None leaves it as it was.
        exact: The outputs stay the same up to the order of floating-point sums.
        needs_samples: It cannot run without calibration data.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    precision: ClassVar[str | None]
    exact: ClassVar[bool]
    needs_samples: ClassVar[bool]

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Return why the pass does not apply to this model, or None."""

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the changed model; the one given is not touched."""

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check what the pass promises beyond loading and parity.

        Raises:
            PassBroken: the promise does not hold; the message says which.
        """


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """What became of one pass: `applied`, `unchanged`, `skipped` or `left out`, and why."""

    name: str
    status: str
    reason: str = ""
    notes: tuple[str, ...] = ()


def apply(
    passes: Sequence[Pass], model: Any, context: PassContext
) -> tuple[Any, tuple[PassReport, ...]]:
    """Run passes in order; one that does not apply, fails or breaks the model is left out.

    After each pass that modified the model, the result must load and run on the probes, and for an
    exact pass give the outputs of before. Where it does not, the report names the node at which it
    goes wrong.

    Args:
        passes: In order.
        model: An `onnx.ModelProto`; it is not changed.
        context: What they are given.

    Returns:
        The last model that held, and one report per pass.
    """
    reports: list[PassReport] = []
    outputs: list[dict[str, NDArray[Any]]] | None = None
    faults: tuple[type[Exception], ...] = (PassBroken, *tool_faults())
    for position, step in enumerate(passes):
        context.reporter.progress(position, len(passes), step.summary)
        reason = step.requires(model, context)
        if reason is None and step.needs_samples and context.samples is None:
            reason = "there is no calibration data"
        if reason is not None:
            reports.append(PassReport(name=step.name, status="skipped", reason=reason))
            continue
        ran = None
        try:
            result = step.run(model, context)
            if result.modified:
                outputs = outputs if outputs is not None else run_model(model, context)
                ran = result.model if result.twin is None else result.twin
                changed = run_model(ran, context)
                _check_outputs(outputs, changed, exact=step.exact)
                step.ensures(model, result.model, context)
                model, outputs = result.model, changed
        except faults as fault:
            why = first_line(fault)
            if ran is not None:
                why += _where(model, ran, context, faults, exact=step.exact)
            context.reporter.note(f"{step.name} was left out: {why}")
            reports.append(PassReport(name=step.name, status="left out", reason=why))
            continue
        status = "applied" if result.modified else "unchanged"
        reports.append(PassReport(name=step.name, status=status, notes=result.notes))
    return model, tuple(reports)


def run_model(model: Any, context: PassContext) -> list[dict[str, NDArray[Any]]]:
    """Return the outputs of an `onnx.ModelProto` for every probe.

    Raises:
        Exception: one of `tool_faults()`, where it does not load or run.
    """
    import onnx

    path = context.workdir / "probe.onnx"
    try:
        onnx.save(model, path)
        session = open_session(path, 1)
    finally:
        path.unlink(missing_ok=True)
    names = [output.name for output in session.get_outputs()]
    return [
        dict(zip(names, session.run(names, dict(probe)), strict=True)) for probe in context.probes
    ]


def tool_faults() -> tuple[type[Exception], ...]:
    """Return the exceptions with which onnx, onnxslim and ONNX Runtime refuse a model.

    None of them documents its own; these are what malformed and unusual graphs raise from inside.
    `OSError` is not among them: a full disk is no fault of the pass.
    """
    import onnx
    from google.protobuf.message import Error as ProtobufError
    from onnxruntime.capi import onnxruntime_pybind11_state as engine

    return (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        ProtobufError,
        RuntimeError,
        TypeError,
        ValueError,
        engine.EPFail,
        engine.Fail,
        engine.InvalidArgument,
        engine.InvalidGraph,
        engine.InvalidProtobuf,
        engine.NotImplemented,
        engine.RuntimeException,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    )


def first_line(fault: BaseException) -> str:
    """Return an exception's first line as a reason: without codes, our own paths, final period."""
    lines = str(fault).strip().splitlines()
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0] if lines else "")
    line = re.sub(r"^Load model from \S+ failed: ?", "it does not load: ", line)
    return (line.strip().rstrip(".:") or type(fault).__name__)[:300]


def opset_of(model: Any) -> int:
    """Return the version of the default operator domain that a model imports."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _where(
    before: Any,
    after: Any,
    context: PassContext,
    faults: tuple[type[Exception], ...],
    *,
    exact: bool,
) -> str:
    from packager.passes.bisect import first_broken

    if not context.probes:
        return ""
    relative = _EXACT_RELATIVE if exact else None
    found = first_broken(
        before, after, context.probes[0], context.workdir, faults=faults, relative=relative
    )
    return f", {found}" if found else ""


def _check_outputs(
    before: Sequence[Mapping[str, NDArray[Any]]],
    after: Sequence[Mapping[str, NDArray[Any]]],
    *,
    exact: bool,
) -> None:
    for want, have in zip(before, after, strict=True):
        broken = contradiction(want, have)
        if broken is not None:
            raise PassBroken(broken)
    if not exact:
        return
    parity = compare(before, after)
    if not parity.exact:
        raise PassBroken("an integer or string output changed")
    largest = max((_largest(output) for output in before), default=0.0)
    if parity.max_abs > _EXACT_RELATIVE * max(largest, 1.0):
        raise PassBroken(f"an output changed by {parity.max_abs:.3g}")


def _largest(outputs: Mapping[str, NDArray[Any]]) -> float:
    import numpy as np

    top = 0.0
    for array in outputs.values():
        if is_float(array) and array.size:
            finite = array[np.isfinite(array)]
            top = max(top, float(np.abs(finite).max(initial=0.0)))
    return top
