"""Turns the cells of a table's row into a model's inputs."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.data._arrays import TEXT_KEY, wanted_inputs
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from packager.model import Signature, TensorSpec
    from packager.recipe import Recipe

    Sample = dict[str, NDArray[Any]]

_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUTH: Final = {"0": 0, "1": 1, "false": 0, "true": 1, "False": 0, "True": 1}
_SHOWN: Final = 12


@dataclass(frozen=True, kw_only=True)
class ColumnPlan:
    """Which columns become which input.

    Attributes:
        inputs: Column names by input name, in the order of the input's elements.
        label: The label's column; empty where there is none.
    """

    inputs: Mapping[str, tuple[str, ...]]
    label: str

    def columns(self) -> tuple[str, ...]:
        """Return every column that is read, once."""
        names = [name for part in self.inputs.values() for name in part]
        return tuple(dict.fromkeys([*names, self.label] if self.label else names))


def plan_columns(
    header: Sequence[str], signature: Signature, recipe: Recipe, where: str
) -> ColumnPlan:
    """Find the columns of every input.

    The recipe's `[input.NAME.columns]` names them; else they are named like the input, or `NAME.0`,
    `NAME.1` … for an input of several elements. Text is the column `text`, or the only one beside
    the label.

    Raises:
        UsageError: a column is missing, or there are two of its name.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    label = recipe.label if recipe.label in header and recipe.label not in specs else ""
    inputs: dict[str, tuple[str, ...]] = {}
    names = wanted_inputs(signature, recipe)
    for name in names:
        if name == TEXT_KEY and name not in specs:
            inputs[name] = (_text_column(header, label, alone=len(names) == 1, where=where),)
            continue
        inputs[name] = _input_columns(specs[name], header, recipe, where)
    plan = ColumnPlan(inputs=inputs, label=label)
    for column in plan.columns():
        if list(header).count(column) > 1:
            raise UsageError(f"{where} has several columns `{column}`")
    if label and any(label in part for part in inputs.values()):
        raise UsageError(f"{where}: `{label}` is the label and an input", accepted="one of both")
    return plan


def row_arrays(
    cells: Mapping[str, Any], plan: ColumnPlan, signature: Signature, where: str
) -> dict[str, NDArray[Any]]:
    """Return a row's cells as arrays with a batch axis of 1.

    Args:
        cells: By column: text from a CSV file, or a value from a Parquet file.
        plan: Which columns to read.
        signature: For dtypes and shapes.
        where: The file and the line, for messages.

    Raises:
        UsageError: an empty cell, or one that is no number of the input's dtype.
    """
    import numpy as np

    specs = {spec.name: spec for spec in signature.inputs}
    arrays = {}
    for name, columns in plan.inputs.items():
        spec = specs.get(name)
        if spec is None:
            arrays[name] = np.array([_text(cells[columns[0]], columns[0], where)])
            continue
        values: list[Any] = []
        for column in columns:
            cell = cells[column]
            parts = cell if isinstance(cell, list) else [cell]
            values += [_value(part, spec.dtype, column, where) for part in _flat(parts)]
        shape = _row_shape(spec, len(values), f"{where}: `{name}`")
        dtype = np.str_ if spec.dtype == "string" else _wide(spec.dtype)
        with np.errstate(over="ignore"):
            # What is too large for a half becomes infinity here, which is refused next.
            arrays[name] = np.array(values, dtype).reshape(shape)
    return arrays


def label_word(cells: Mapping[str, Any], plan: ColumnPlan, where: str) -> Any:
    """Return a row's label as `settle_labels` reads it; None where there is no such column.

    Raises:
        UsageError: the cell is empty.
    """
    import numpy as np

    if not plan.label:
        return None
    cell = cells[plan.label]
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise UsageError(f"{where}: the label `{plan.label}` is empty")
    return [cell] if isinstance(cell, str) else np.array([cell])


def _input_columns(
    spec: TensorSpec, header: Sequence[str], recipe: Recipe, where: str
) -> tuple[str, ...]:
    declared = recipe.columns.get(spec.name)
    if declared is not None:
        missing = next((name for name in declared.names if name not in header), None)
        if missing is not None:
            close = difflib.get_close_matches(missing, header, 1)
            raise UsageError(
                f"{where} has no column `{missing}`, which `[input.{spec.name}.columns]` names",
                accepted=_shown(header),
                hint=f"did you mean `{close[0]}`?" if close else None,
            )
        return declared.names
    if spec.name in header:
        return (spec.name,)
    counted = [f"{spec.name}.{index}" for index in range(len(header))]
    found = tuple(name for name in counted if name in header)
    if found and found == tuple(counted[: len(found)]):
        return found
    raise UsageError(
        f"{where} has no column for the input `{spec.name}`",
        accepted=f"`{spec.name}`, or `{spec.name}.0`, `{spec.name}.1` …; it has {_shown(header)}",
        hint=f'name them in the recipe: `[input.{spec.name}.columns]` with `names = ["A", "B"]`',
    )


def _text_column(header: Sequence[str], label: str, *, alone: bool, where: str) -> str:
    others = [name for name in header if name != label]
    if TEXT_KEY in header:
        return TEXT_KEY
    if alone and len(others) == 1:
        return others[0]
    raise UsageError(f"{where} has no column `{TEXT_KEY}`", accepted=_shown(header))


def _row_shape(spec: TensorSpec, count: int, place: str) -> list[int]:
    """Return a row's shape: the input's, the batch at 1, one free axis filled by what is there."""
    if not spec.shape:
        raise UsageError(f"{place} has no batch axis", accepted="a folder of `.npz` files")
    sizes = [dim.size for dim in spec.shape[1:]]
    known = math.prod(size for size in sizes if size is not None)
    free = sizes.count(None)
    if free > 1 or count % known or (not free and count != known):
        raise UsageError(f"{place} gets {count} cells", accepted=str(spec))
    return [1, *(count // known if size is None else size for size in sizes)]


def _value(cell: Any, dtype: str, column: str, where: str) -> Any:
    place = f"{where}: `{column}`"
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise UsageError(f"{place} is empty", accepted="a value in every cell")
    if dtype == "string":
        return _text(cell, column, where)
    if not isinstance(cell, str):
        if not isinstance(cell, bool | int | float):
            raise UsageError(f"{place} is {type(cell).__name__}", accepted=dtype)
        return _number(cell, dtype, place)
    word = cell.strip()
    if dtype == "bool" or (word in _TRUTH and word.isalpha()):
        if word not in _TRUTH:
            raise UsageError(f"{place} is `{cell}`", accepted="0, 1, false or true")
        return _TRUTH[word]
    if not _NUMBER.fullmatch(word):
        raise UsageError(f"{place} is `{_short(cell)}`", accepted=f"a number ({dtype})")
    whole = word.lstrip("+-").isdigit()
    return _number(int(word) if whole else float(word), dtype, place)


def _number(value: float, dtype: str, place: str) -> float:
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{place} is {value}", accepted="finite numbers")
    if dtype == "bool":
        if value not in {0, 1}:
            raise UsageError(f"{place} is {value}", accepted="0, 1, false or true")
        return bool(value)
    if "float" in dtype:
        return float(value)
    import numpy as np

    limits = np.iinfo(dtype)
    if value != int(value) or not limits.min <= value <= limits.max:
        raise UsageError(
            f"{place} is {value}", accepted=f"integers from {limits.min} to {limits.max}"
        )
    return int(value)


def _text(cell: Any, column: str, where: str) -> str:
    if not isinstance(cell, str):
        raise UsageError(f"{where}: `{column}` is {type(cell).__name__}", accepted="text")
    if not cell.strip():
        raise UsageError(f"{where}: `{column}` is empty", accepted="a value in every cell")
    return cell


def _flat(values: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        flat += _flat(value) if isinstance(value, list) else [value]
    return flat


def _wide(dtype: str) -> Any:
    """Return the dtype that holds what was read, before it is checked and narrowed."""
    import numpy as np

    if "float" in dtype:
        # A cell has as many digits as its input's dtype can hold: the narrowing says nothing.
        return np.dtype("float32" if dtype == "bfloat16" else dtype)
    return np.dtype(dtype)


def _shown(header: Sequence[str]) -> str:
    rest = len(header) - _SHOWN
    names = ", ".join(f"`{name}`" for name in header[:_SHOWN])
    return names + (f" and {rest} more" if rest > 0 else "")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
