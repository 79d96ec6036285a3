"""Columns of a table as an input: mean and standard deviation in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.errors import UsageError
from packager.model import Dim, TensorSpec
from packager.passes.steps import Steps, compile_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from packager.recipe import ColumnsInput

LEAST_OPSET: Final = 13


def check_columns(columns: ColumnsInput, spec: TensorSpec) -> None:
    """Check that an input takes rows of so many columns.

    Raises:
        UsageError: it does not.
    """
    name = spec.name
    if len(spec.shape) != 2 or spec.shape[1].size not in {None, len(columns.names)}:
        raise UsageError(
            f"`input.{name}.columns` names {len(columns.names)} columns",
            accepted=f"what the model takes, `{spec}`",
        )
    normalized = bool(columns.mean or columns.std)
    if normalized and "float" not in spec.dtype:
        raise UsageError(
            f"the input `{name}` is {spec.dtype}, which cannot be normalized",
            accepted="a float input, or no `mean` and `std`",
        )
    if 0.0 in columns.std:
        at = columns.std.index(0.0)
        raise UsageError(
            f"`input.{name}.columns.std` is 0 for `{columns.names[at]}`",
            accepted="numbers other than 0",
            hint="a column that never changes tells the model nothing: its `std` may be 1",
        )


def column_steps(
    steps: Steps, columns: ColumnsInput, source: str, result: str, spec: TensorSpec
) -> None:
    """Append `(source - mean) / std` per column, computed in float32 or better."""
    import numpy as np

    wide = "float64" if spec.dtype == "float64" else "float32"
    values = source if spec.dtype == wide else steps.cast(source, wide)
    for operator, word, numbers in (("Sub", "mean", columns.mean), ("Div", "std", columns.std)):
        if numbers:
            values = steps.add(operator, [values, steps.constant(word, np.asarray(numbers, wide))])
    if spec.dtype == wide:
        steps.add("Identity", [values], result)
    else:
        steps.cast(values, spec.dtype, result)


def columns_session(
    columns: ColumnsInput, spec: TensorSpec
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function from [n, columns] to what the model takes.

    It runs the very nodes that `inputs.attach` puts into the graph.
    """
    steps = Steps(prefix="columns", opset=LEAST_OPSET)
    column_steps(steps, columns, "columns", "prepared", spec)
    shape = (Dim(name="n"), Dim(size=len(columns.names)))
    source, made = (
        TensorSpec(name=name, dtype=spec.dtype, shape=shape) for name in ("columns", "prepared")
    )
    run = compile_steps(steps, [source], [made])
    return lambda rows: run({"columns": rows})["prepared"]
