"""Imports a `.pt2` exported program: dimensions from the program, answers compared with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from packager.errors import ModelUnsupported
from packager.importers.axes import BATCH, AxisPlan, InputPlan, Symbol
from packager.importers.explain import Refusal
from packager.importers.export_check import check_export
from packager.importers.graph_walk import set_io_names
from packager.importers.ladder import to_onnx
from packager.importers.onnx_file import normalise, write_model
from packager.importers.pt2_archive import load_program, rewrite_pt2
from packager.importers.request import SCRATCH_FOLDER, Imported, ImportRequest
from packager.importers.torch_calls import flatten, unique_names
from packager.importers.torch_sizes import check_points, refuse_unknown_names
from packager.model import Provenance
from packager.recipe import DEFAULT_BATCH, DimRange

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNBOUNDED_PROBE = 64


def import_exported_program(request: ImportRequest, workdir: Path) -> Imported:
    """Import the `.pt2` file that the request names.

    Raises:
        UsageError: shapes or dimensions that the program does not have.
        ModelUnsupported: hostile, broken, without example inputs, or not exportable.
    """
    path = Path(request.path)
    clean = workdir / SCRATCH_FOLDER / "clean.pt2"
    rewrite_pt2(path, clean, source=request.source)
    program = load_program(clean, source=request.source)
    reference = _Program(program, request.source)
    plan = _plan(program, reference.examples, request)
    points = check_points(plan, reference)
    try:
        model = to_onnx(program)
        set_io_names(
            model.graph, inputs=list(reference.examples), outputs=list(reference.output_names)
        )
        notes, _ = normalise(model)
        signature, checks = check_export(model, reference, plan, points, workdir=workdir)
    except Refusal as refusal:
        raise ModelUnsupported(
            f"`{request.source}` cannot be converted: {refusal}", hint=refusal.hint
        ) from refusal
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return write_model(
        model,
        signature,
        workdir=workdir,
        provenance=Provenance(
            kind="exported-program",
            source=request.source,
            source_sha256=digest,
            exporter="torch.export",
            rungs=(("torch.export", checks),),
            notes=(*plan.notes, *notes),
        ),
    )


class _Program:
    """The loaded program as the reference that its ONNX form is compared with."""

    def __init__(self, program: Any, source: str) -> None:
        self._source = source
        self._module = program.module(check_guards=False)
        self._in_spec = program.call_spec.in_spec
        names = list(program.graph_signature.user_inputs)
        values = _example_values(program)
        if values is None or len(values) != len(names):
            raise ModelUnsupported(
                f"`{source}` carries no example inputs",
                hint="save it again with `torch.export.save` of a fresh `torch.export.export`",
            )
        if not all(isinstance(value, torch.Tensor) for value in values):
            raise ModelUnsupported(f"`{source}` has inputs that are not tensors")
        self.examples: dict[str, torch.Tensor] = dict(zip(names, values, strict=True))
        named = flatten(self._call(self.examples))
        self.output_names = unique_names([name for name, _ in named], set(names))

    def _call(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        leaves = [value.clone() for value in inputs.values()]
        arguments, keywords = torch.utils._pytree.tree_unflatten(leaves, self._in_spec)
        try:
            with torch.no_grad():
                return self._module(*arguments, **keywords)
        except Exception as fault:  # the user's own operators may raise anything
            sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise ModelUnsupported(
                f"`{self._source}` fails on inputs of its own ranges ({sizes})\n"
                f"  {type(fault).__name__}: {str(fault)[:1000]}",
                hint="narrow the range of the dimension, as `--dim batch=2..8`",
            ) from fault

    def outputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the program and return its outputs by name."""
        values = [value for _, value in flatten(self._call(inputs))]
        return dict(zip(self.output_names, values, strict=True))


def _example_values(program: Any) -> list[Any] | None:
    if program.example_inputs is None:
        return None
    arguments, keywords = program.example_inputs
    return [*torch.utils._pytree.tree_leaves((arguments, keywords))]


def _plan(program: Any, examples: Mapping[str, torch.Tensor], request: ImportRequest) -> AxisPlan:
    """Return the program's axes; the recipe may name its dimensions and narrow their ranges."""
    refuse_unknown_names(examples, request.shapes)
    plan = AxisPlan(inputs=(), symbols={})
    names: dict[str, str] = {}
    inputs = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in examples:
            continue
        given = request.shapes.get(node.name)
        axes: list[int | str] = []
        for i, size in enumerate(node.meta["val"].shape):
            if not isinstance(size, torch.SymInt):
                axes.append(int(size))
                continue
            key = str(size.node.expr)
            if key not in names:
                wanted = given[i] if given is not None and i < len(given) else None
                names[key] = _name(wanted, node.name, i, set(names.values()))
                _record(plan, names[key], program, size, request)
            axes.append(names[key])
        dtype = str(examples[node.name].dtype).removeprefix("torch.")
        inputs.append(InputPlan(name=node.name, dtype=dtype, axes=tuple(axes), fixed=True))
    plan.inputs = tuple(inputs)
    return plan


def _name(wanted: int | str | None, input_name: str, axis: int, taken: set[str]) -> str:
    if isinstance(wanted, str):
        return wanted
    return BATCH if axis == 0 and BATCH not in taken else f"{input_name}_{axis}"


def _record(
    plan: AxisPlan, name: str, program: Any, size: torch.SymInt, request: ImportRequest
) -> None:
    bounds = program.range_constraints.get(size.node.expr)
    low = max(1, int(bounds.lower)) if bounds is not None else 1
    top = int(bounds.upper) if bounds is not None and "oo" not in str(bounds.upper) else None
    given = request.dims.get(name)
    if given is None:
        if top is None:
            given = (
                DEFAULT_BATCH
                if name == BATCH
                else DimRange(min=low, max=max(low, _UNBOUNDED_PROBE), opt=low)
            )
            plan.notes.append(f"the program sets no upper bound for `{name}`: {given.max} is taken")
        else:
            given = DimRange(min=low, max=top, opt=low)
    plan.symbols[name] = Symbol(name=name, range=given, explicit=name in request.dims)
