"""Exports a torch module down a ladder of exporters; a rung counts once its file answers alike."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import onnx
import torch

from packager.errors import EdgepackError, ModelUnsupported
from packager.importers.explain import Refusal, explain
from packager.importers.export_check import check_export
from packager.importers.graph_walk import set_io_names
from packager.importers.onnx_file import normalise
from packager.importers.torch_sizes import (
    check_points,
    export_sizes,
    inputs_at,
    plan_torch_axes,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from packager.importers.axes import AxisPlan
    from packager.importers.request import ImportRequest
    from packager.importers.torch_calls import Callee
    from packager.model import Signature

# 18 is what the exporter writes without converting versions; the older tracer's is 17, which
# every engine of the targets reads.
OPSET: Final = 18
TRACER_OPSET: Final = 17


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The rung that passed: its normalised model, every rung's outcome, and the signature."""

    model: onnx.ModelProto
    signature: Signature
    rung: str
    rungs: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def climb(callee: Callee, request: ImportRequest, workdir: Path) -> Taken:
    """Try the exporters in order and take the first whose file computes what the module does.

    Raises:
        UsageError: shapes or dimensions that do not fit the module.
        ModelUnsupported: no rung passed; names the operator or reason, the user's line, and
            what to change.
    """
    plan = plan_torch_axes(callee.examples, shapes=request.shapes, dims=request.dims)
    points = check_points(plan, callee)
    rungs: list[tuple[str, str]] = []
    refusals: list[Refusal] = []
    ladder: tuple[tuple[str, Callable[[], onnx.ModelProto]], ...] = (
        ("torch.export", lambda: _by_export(callee, plan, strict=False)),
        ("torch.export-strict", lambda: _by_export(callee, plan, strict=True)),
        ("torchscript", lambda: _by_tracer(callee, plan, workdir)),
    )
    for name, export in ladder:
        if name != "torchscript" and callee.scripted:
            rungs.append((name, "not tried: a scripted module has no Python code to export"))
            continue
        if name == "torchscript" and callee.branches:
            refusals.append(Refusal.branch(callee.branches[0]))
            rungs.append((name, f"not tried: it would freeze the branch at {callee.branches[0]}"))
            continue
        try:
            model = _export(export)
            outputs = list(callee.output_names)
            set_io_names(model.graph, inputs=list(callee.examples), outputs=outputs)
            notes, _ = normalise(model)
            signature, checks = check_export(model, callee, plan, points, workdir=workdir)
        except Refusal as refusal:
            refusals.append(refusal)
            rungs.append((name, str(refusal)))
            continue
        rungs.append((name, checks))
        return Taken(
            model=model,
            signature=signature,
            rung=name,
            rungs=tuple(rungs),
            notes=(*plan.notes, *notes),
        )
    raise _refused(request.source, refusals, rungs, callee)


def _export(export: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """Run one exporter with its warnings silenced.

    Raises:
        Refusal: it failed; every exception of an exporter means that.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return export()
    except (EdgepackError, MemoryError, Refusal):
        raise
    except Exception as fault:  # exporters raise whatever their parts raise
        raise explain(fault) from fault


def _arguments(callee: Callee, plan: AxisPlan) -> tuple[torch.Tensor, ...]:
    return tuple(inputs_at(plan, callee.examples, export_sizes(plan), seed=None).values())


def _by_export(callee: Callee, plan: AxisPlan, *, strict: bool) -> onnx.ModelProto:
    dims = {
        name: torch.export.Dim(name, min=s.range.min, max=s.range.max)
        for name, s in plan.symbols.items()
        if s.range is not None
    }
    specs = tuple(
        {i: dims[a] for i, a in enumerate(entry.axes) if isinstance(a, str)}
        for entry in plan.inputs
    )
    program = torch.export.export(
        callee.wrapper(),
        _arguments(callee, plan),
        dynamic_shapes={"tensors": specs} if dims else None,
        strict=strict,
    )
    return to_onnx(program)


def to_onnx(program: Any) -> onnx.ModelProto:
    """Return an exported program as ONNX.

    Names of outputs are not handed to the exporter: with `output_names` torch 2.13 can save a
    file that defines a name twice.

    Raises:
        Refusal: an operator has no ONNX form; names it with the user's line.
    """
    try:
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as fault:  # exporters raise whatever their parts raise
        raise explain(fault, program=program) from fault
    if exported is None:
        raise Refusal("the exporter returned nothing")
    proto: onnx.ModelProto = exported.model_proto
    return proto


def _by_tracer(callee: Callee, plan: AxisPlan, workdir: Path) -> onnx.ModelProto:
    path = workdir / "traced.onnx"
    names = [f"in_{i}" for i in range(len(plan.inputs))]
    results = [f"out_{i}" for i in range(len(callee.output_names))]
    dynamic = {
        name: {i: a for i, a in enumerate(entry.axes) if isinstance(a, str)}
        for name, entry in zip(names, plan.inputs, strict=True)
    }
    try:
        torch.onnx.export(
            callee.module if callee.scripted else callee.wrapper(),
            _arguments(callee, plan),
            path,
            dynamo=False,
            input_names=names,
            output_names=results,
            dynamic_axes=dynamic,
            opset_version=TRACER_OPSET,
        )
        return onnx.load(path)
    finally:
        path.unlink(missing_ok=True)


def _refused(
    source: str, refusals: list[Refusal], rungs: list[tuple[str, str]], callee: Callee
) -> ModelUnsupported:
    """Return the error for a module that no rung exports: the most telling reason first."""
    best = max(refusals, key=lambda refusal: refusal.weight)
    where = best.where
    if where is None and best.kind == "branch" and callee.branches:
        where = callee.branches[0]
    lines = [f"`{source}` cannot be exported: {best.reason}" + (f" at {where}" if where else "")]
    lines += [f"  {name}: {outcome.splitlines()[0][:300]}" for name, outcome in rungs]
    return ModelUnsupported("\n".join(lines), hint=best.hint)
