"""Metrics: how good a model's answers are, against labels or against the original's answers."""

from packager.checks.metrics._budget import (
    budget_in_unit,
    check_budget,
    drop,
    rows_needed,
)
from packager.checks.metrics._contract import Measured, Metric
from packager.checks.metrics._find import METRICS, find_metric

__all__ = [
    "METRICS",
    "Measured",
    "Metric",
    "budget_in_unit",
    "check_budget",
    "drop",
    "find_metric",
    "rows_needed",
]
