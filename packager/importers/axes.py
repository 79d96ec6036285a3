"""Plans which axes of the inputs may vary, from what the file declares and the recipe says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from packager.errors import ModelUnsupported, UsageError
from packager.importers.probe import dtype_name
from packager.recipe import DEFAULT_BATCH, DimRange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

BATCH: Final = "batch"
# A first axis that the file fixes to 1: perhaps a batch, which only a run can tell.
PROMOTED: Final = "batch?"
_IDENTIFIER: Final = re.compile(r"[A-Za-z_]\w*")
_BATCH_LIKE: Final = re.compile(r"n|b|bs|batch|batch_?size|batch_?dim|batch_axis", re.IGNORECASE)
_MEANINGLESS: Final = re.compile(
    r"unk\w*|\w*dynamic_?dim\w*|dynamic\w*|none|d_?\d+|dim_?\d*|s\d+|u\d+|\w*dynamic_axes\w*",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Symbol:
    """A dimension that may vary.

    Attributes:
        name: Of the dimension.
        range: What requests may have, None where nobody said.
        explicit: The user gave the range, so it must hold.
    """

    name: str
    range: DimRange | None = None
    explicit: bool = False


@dataclass(frozen=True, kw_only=True)
class InputPlan:
    """One input: its dtype and an integer or a symbol's name for each axis.

    Attributes:
        fixed: The recipe gave the shape, so its rank is not in doubt.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...]
    fixed: bool = False

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with every symbol replaced by its size."""
        return tuple(a if isinstance(a, int) else sizes[a] for a in self.axes)

    def renamed(self, renamed: Mapping[str, int | str]) -> InputPlan:
        """Return the plan with symbols replaced by other symbols or by sizes."""
        return replace(
            self, axes=tuple(renamed.get(a, a) if isinstance(a, str) else a for a in self.axes)
        )


@dataclass(frozen=True, kw_only=True)
class DeclaredInput:
    """What a file says about an input: a size, a name or None for each axis; None: no rank."""

    name: str
    dtype: str
    axes: tuple[int | str | None, ...] | None


def declared_input(value: onnx.ValueInfoProto) -> DeclaredInput:
    """Return what the file says about an input."""
    kind = value.type.tensor_type
    dtype = dtype_name(kind.elem_type)
    if dtype is None:
        raise ModelUnsupported(f"input `{value.name}` has an element type no request can carry")
    axes: tuple[int | str | None, ...] | None = None
    if kind.HasField("shape"):
        axes = tuple(_declared_axis(dim) for dim in kind.shape.dim)
    return DeclaredInput(name=value.name, dtype=dtype, axes=axes)


def _declared_axis(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None


@dataclass(kw_only=True)
class AxisPlan:
    """Every input's axes, the symbols they use, and what to tell the user.

    Attributes:
        settled: Dimensions whose range has one size, which are static.
    """

    inputs: tuple[InputPlan, ...]
    symbols: dict[str, Symbol]
    settled: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def substitute(self, renamed: Mapping[str, int | str]) -> None:
        """Replace symbols by other symbols or by sizes everywhere."""
        self.inputs = tuple(plan.renamed(renamed) for plan in self.inputs)
        for name in renamed:
            self.symbols.pop(name, None)


def plan_axes(
    declared: Sequence[DeclaredInput],
    *,
    shapes: Mapping[str, tuple[int | str, ...]],
    dims: Mapping[str, DimRange],
) -> AxisPlan:
    """Return which axes may vary: the recipe first, then the file, then the default.

    The default is that the first axis of an input is `batch` where the file leaves it open or
    says 1.

    Raises:
        UsageError: the recipe names an input or a dimension that does not exist, or names no shape
            for an input whose file has none.
    """
    names = [entry.name for entry in declared]
    for name in shapes:
        if name not in names:
            raise UsageError(
                f"the model has no input `{name}`", accepted=", ".join(f"`{n}`" for n in names)
            )
    for entry in declared:
        if entry.axes is None and entry.name not in shapes:
            raise UsageError(
                f"the file does not declare how many dimensions input `{entry.name}` has",
                hint=f"give its shape: `--shape {entry.name}=batch,16`",
            )
    named = _clean_names(declared, dims, shapes)
    plan = AxisPlan(inputs=(), symbols={})
    inputs: list[InputPlan] = []
    for entry in declared:
        given = shapes.get(entry.name)
        axes: list[int | str] = []
        source = given if given is not None else named[entry.name]
        for axis, value in enumerate(source):
            symbol = value
            if given is None and axis == 0 and value == 1:
                symbol = BATCH if BATCH in dims else PROMOTED
            axes.append(_add_symbol(plan, symbol, dims) if isinstance(symbol, str) else symbol)
        inputs.append(
            InputPlan(name=entry.name, dtype=entry.dtype, axes=tuple(axes), fixed=given is not None)
        )
    plan.inputs = tuple(inputs)
    used = (
        set(plan.symbols)
        | plan.settled
        | {a for axes in shapes.values() for a in axes if isinstance(a, str)}
    )
    for name in dims:
        if name not in used:
            raise UsageError(
                f"no input has a dimension `{name}`",
                accepted=", ".join(f"`{n}`" for n in plan.symbols) or "none: all sizes are fixed",
                hint=f"name it in a shape: `--shape {declared[0].name}={name},…`"
                if declared
                else None,
            )
    return plan


def _add_symbol(plan: AxisPlan, name: str, dims: Mapping[str, DimRange]) -> int | str:
    """Record the symbol and return it, or its size where its range has only one."""
    given = dims.get(name)
    if given is not None and given.min == given.max:
        plan.settled.add(name)
        return given.min
    default = DEFAULT_BATCH if name in (BATCH, PROMOTED) else None
    plan.symbols[name] = Symbol(name=name, range=given or default, explicit=given is not None)
    return name


def _clean_names(
    declared: Sequence[DeclaredInput],
    dims: Mapping[str, DimRange],
    shapes: Mapping[str, tuple[int | str, ...]],
) -> dict[str, tuple[int | str, ...]]:
    """Return the declared axes with sizes below 1 opened and every open axis well named."""
    wanted = set(dims) | {a for axes in shapes.values() for a in axes if isinstance(a, str)}
    elsewhere = {
        axis
        for entry in declared
        for axis in (entry.axes or ())[1:]
        if isinstance(axis, str) and _BATCH_LIKE.fullmatch(axis)
    }
    cleaned: dict[str, tuple[int | str, ...]] = {}
    for entry in declared:
        axes: list[int | str] = []
        for i, axis in enumerate(entry.axes or ()):
            if axis is not None and (axis in wanted or (isinstance(axis, int) and axis >= 1)):
                axes.append(axis)
            elif isinstance(axis, str) and _BATCH_LIKE.fullmatch(axis):
                axes.append(BATCH)
            elif isinstance(axis, str) and _is_telling(axis):
                axes.append(axis)
            elif i == 0 and not elsewhere:
                axes.append(BATCH)
            else:
                axes.append(_axis_name(entry.name, i, axis))
        cleaned[entry.name] = tuple(axes)
    return cleaned


def _is_telling(name: str) -> bool:
    return bool(_IDENTIFIER.fullmatch(name)) and not _MEANINGLESS.fullmatch(name)


def _axis_name(name: str, axis: int, declared: int | str | None) -> str:
    """Return a name for an open axis: from a formula, so that equal ones stay equal, or its place.

    Axes that turn out to vary only together are tied later.
    """
    telling = isinstance(declared, str) and not _MEANINGLESS.fullmatch(declared)
    word = re.sub(r"\W+", "_", str(declared) if telling else "", flags=re.ASCII).strip("_")
    word = word or f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_') or 'axis'}_{axis}"
    return word if not word[0].isdigit() else f"d_{word}"
