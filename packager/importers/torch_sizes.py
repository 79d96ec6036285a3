"""Plans a torch module's dynamic dimensions and makes inputs of any size from its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from packager.errors import ModelUnsupported, UsageError
from packager.importers.axes import BATCH, AxisPlan, InputPlan, Symbol
from packager.recipe import DEFAULT_BATCH, DimRange

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    class Reference(Protocol):
        """What an export is compared with."""

        examples: dict[str, torch.Tensor]

        def outputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            """Return the outputs by name; raises ModelUnsupported where it does not run."""


MAX_PROBE_ELEMENTS: Final = 1 << 26

Sizes = dict[str, int]


def plan_torch_axes(
    examples: Mapping[str, torch.Tensor],
    *,
    shapes: Mapping[str, tuple[int | str, ...]],
    dims: Mapping[str, DimRange],
) -> AxisPlan:
    """Return which axes vary: the recipe's, else the first axis that the inputs have in common.

    Raises:
        UsageError: a shape of the wrong rank or size, or a dimension without a range.
    """
    refuse_unknown_names(examples, shapes)
    plan = AxisPlan(inputs=(), symbols={})
    rows = next((int(e.shape[0]) for e in examples.values() if e.ndim), None)
    inputs = []
    for name, example in examples.items():
        sizes = tuple(int(size) for size in example.shape)
        given = shapes.get(name)
        if given is None:
            shared = bool(sizes) and sizes[0] == rows
            if sizes and not shared:
                plan.notes.append(
                    f"`{name}` has {sizes[0]} rows, the first input {rows}: its size is fixed"
                )
            wanted: tuple[int | str, ...] = (BATCH, *sizes[1:]) if shared else sizes
        else:
            wanted = given
        _check_shape(name, wanted, sizes)
        axes = tuple(_axis(plan, axis, dims, name) for axis in wanted)
        inputs.append(InputPlan(name=name, dtype=_dtype(example), axes=axes, fixed=True))
    plan.inputs = tuple(inputs)
    named = {a for axes in shapes.values() for a in axes if isinstance(a, str)} | {BATCH}
    for name in dims:
        if name not in plan.symbols and name not in named:
            first = next(iter(examples))
            raise UsageError(
                f"no input has a dimension `{name}`",
                accepted=", ".join(f"`{n}`" for n in plan.symbols) or "none: all sizes are fixed",
                hint=f"name it in a shape: `--shape {first}={name},…`",
            )
    return plan


def refuse_unknown_names(
    examples: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int | str, ...]]
) -> None:
    """Refuse shapes of inputs that do not exist."""
    for name in shapes:
        if name not in examples:
            raise UsageError(
                f"the model has no input `{name}`", accepted=", ".join(f"`{n}`" for n in examples)
            )


def _check_shape(name: str, wanted: tuple[int | str, ...], sizes: tuple[int, ...]) -> None:
    if len(wanted) != len(sizes):
        raise UsageError(
            f"the shape of `{name}` has {len(wanted)} dimensions, its example has {len(sizes)}",
            accepted=",".join(map(str, sizes)),
        )
    for axis, (want, size) in enumerate(zip(wanted, sizes, strict=True)):
        if isinstance(want, int) and want != size:
            raise UsageError(
                f"dimension {axis} of `{name}` is {want} in its shape and {size} in its example"
            )


def _axis(plan: AxisPlan, axis: int | str, dims: Mapping[str, DimRange], name: str) -> int | str:
    if isinstance(axis, int):
        return axis
    given = dims.get(axis, DEFAULT_BATCH if axis == BATCH else None)
    if given is None:
        raise UsageError(
            f"dimension `{axis}` of `{name}` has no range", hint=f"`--dim {axis}=1..512`"
        )
    if given.min == given.max:
        return given.min
    plan.symbols[axis] = Symbol(name=axis, range=given, explicit=axis in dims)
    return axis


def _dtype(example: torch.Tensor) -> str:
    return str(example.dtype).removeprefix("torch.")


def export_sizes(plan: AxisPlan) -> Sizes:
    """Return one size a dimension for tracing: at least 2, since 0 and 1 are specialised.

    Different dimensions get different sizes where their ranges allow it, so that a tracer does
    not take one for the other.
    """
    sizes: Sizes = {}
    for name, symbol in plan.symbols.items():
        given = symbol.range or DEFAULT_BATCH
        size = max(2, given.min, given.opt)
        while size in sizes.values() and size < given.max:
            size += 1
        sizes[name] = min(size, given.max)
    return sizes


def check_points(plan: AxisPlan, reference: Reference) -> list[Sizes]:
    """Return the sizes to compare at, each run once by the reference itself.

    These are the optimum, each dimension's ends and one or two sizes between them, then all ends.
    An end has to run; between the ends a network with strides may take only some sizes.

    Raises:
        ModelUnsupported: the reference does not run at an end of a declared range.
    """
    ranges = {name: symbol.range or DEFAULT_BATCH for name, symbol in plan.symbols.items()}
    base = {name: given.opt for name, given in ranges.items()}
    points = [base]
    for name, given in ranges.items():
        points += [{**base, name: given.min}, {**base, name: given.max}]
    points.append({name: given.min for name, given in ranges.items()})
    points.append({name: given.max for name, given in ranges.items()})
    distinct: list[Sizes] = []
    left_out = 0
    for point in points:
        if point in distinct:
            continue
        if point is not base and elements(plan, point) > MAX_PROBE_ELEMENTS:
            left_out += 1
            continue
        reference.outputs(inputs_at(plan, reference.examples, point, seed=None))
        distinct.append(point)
    if left_out:
        plan.notes.append(f"{left_out} of the largest sizes were too large to compare at import")
    for name, given in ranges.items():
        distinct += [
            point
            for size in _middles(plan, reference, name, given, base)
            if (point := {**base, name: size}) not in distinct
        ]
    return distinct


def _middles(
    plan: AxisPlan, reference: Reference, name: str, given: DimRange, base: Sizes
) -> list[int]:
    """Return sizes inside a range that the reference runs at: one, or where all ends are even, two.

    An odd size tells a side that follows its input from one that is rounded on the way.
    """
    ends = {given.min % 2, given.max % 2, given.opt % 2}
    wanted = 2 if ends == {0} else 1
    middle = (given.min + given.max) // 2
    found: list[int] = []
    for step in (1, 2, 4, 8, 16, 32, 64):
        size = given.min + (middle - given.min) // step * step
        for candidate in (size | 1, size) if step == 1 else (size,):
            if not given.min < candidate < given.max or candidate in found:
                continue
            point = {**base, name: candidate}
            if elements(plan, point) > MAX_PROBE_ELEMENTS:
                continue
            try:
                reference.outputs(inputs_at(plan, reference.examples, point, seed=None))
            except ModelUnsupported:
                words = f"`{name}` does not run at every size of its range"
                if not any(note.startswith(words) for note in plan.notes):
                    plan.notes.append(f"{words}, as {candidate}")
                continue
            found.append(candidate)
            if len(found) == wanted:
                return found
        if found:
            break
    return found


def elements(plan: AxisPlan, sizes: Sizes) -> int:
    """Return how many values all inputs hold together at these sizes."""
    total = 0
    for entry in plan.inputs:
        count = 1
        for size in entry.sized(sizes):
            count *= size
        total += count
    return total


def inputs_at(
    plan: AxisPlan, examples: Mapping[str, torch.Tensor], sizes: Sizes, *, seed: int | None
) -> dict[str, torch.Tensor]:
    """Return inputs of the given sizes.

    Args:
        plan: The axes.
        examples: What they are made from.
        sizes: By dimension.
        seed: None repeats or cuts the examples; a number draws values like theirs: integers
            from between their least and greatest, floats with their mean and spread.
    """
    generator = torch.Generator().manual_seed(seed or 0)
    made = {}
    for entry in plan.inputs:
        value = examples[entry.name]
        for axis, size in enumerate(entry.sized(sizes)):
            have = value.shape[axis]
            if size > have:
                value = torch.cat([value] * -(-size // max(1, have)), dim=axis)
            value = value.narrow(axis, 0, size)
        made[entry.name] = value.clone() if seed is None else _redrawn(value, generator)
    return made


def _redrawn(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if value.numel() == 0:
        return value.clone()
    if value.dtype == torch.bool:
        return torch.rand(value.shape, generator=generator) < 0.5
    if not value.is_floating_point():
        low, high = int(value.min()), int(value.max())
        return torch.randint(low, high + 1, value.shape, generator=generator).to(value.dtype)
    double = value.double()
    spread = float(double.std()) if value.numel() > 1 else 0.0
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return (double.mean() + noise * (spread or 1.0)).to(value.dtype)
