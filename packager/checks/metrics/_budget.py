"""Budgets: how much worse a metric got, and whether the data can tell so small a difference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from packager.errors import UsageError

if TYPE_CHECKING:
    from packager.checks.metrics._contract import Measured, Metric
    from packager.recipe import Drop

# 1/200 and 0.005 differ in the last bit.
_ROUNDING: Final = 1e-9


def drop(metric: Metric, original: float, value: float) -> float:
    """Return how much worse `value` is than `original`, in the metric's unit; below 0 if better."""
    return original - value if metric.higher_is_better else value - original


def budget_in_unit(drop: Drop, original_value: float) -> float:
    """Return a budget in the metric's unit, at least 0."""
    return drop.value * abs(original_value) if drop.relative else drop.value


def rows_needed(metric: Metric, budget: float) -> int | None:
    """Return the fewest rows on which a drop of `budget` shows as one row.

    Args:
        metric: Of any kind; a metric that is no share can show any drop.
        budget: In the metric's unit.

    Returns:
        None where no number of rows is needed or helps: another unit, or a budget of zero, which
        asks for no loss at all and can be held on any number of rows.
    """
    if metric.unit != "share" or budget <= 0:
        return None
    return math.ceil(1 / budget * (1 - _ROUNDING))


def check_budget(metric: Metric, measured: Measured, budget: float) -> None:
    """Refuse a budget finer than one answer in the evaluation data.

    Args:
        metric: What `measured` is of.
        measured: Of the original, on the data that the budget is held on.
        budget: In the metric's unit; 0 asks for no loss at all and is never too fine.

    Raises:
        UsageError: with the number of rows needed.
    """
    if measured.step is None or budget <= 0 or budget >= measured.step * (1 - _ROUNDING):
        return
    needed = math.ceil(measured.rows * measured.step / budget * (1 - _ROUNDING))
    raise UsageError(
        f"a budget of {budget:.6g} in `{metric.name}` is finer than one answer in the"
        f" {measured.rows} rows it is measured on",
        accepted=f"at least {measured.step:.6g} with this data, or 0 for no loss at all",
        hint=f"give at least {needed} rows to measure a budget of {budget:.6g}",
    )
