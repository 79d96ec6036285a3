"""A table of figures beside what they should reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Row:
    """One figure, its unit, and what it should stay within (empty: only told), or come up to."""

    what: str
    value: float
    unit: str
    reach: str = ""
    at_least: bool = False


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print aligned columns under a title."""
    width = max(len(row.what) for row in rows)
    print(title)
    for row in rows:
        sign = "≥" if row.at_least else "≤"
        reach = f"   reach {sign} {row.reach}" if row.reach else ""
        print(f"  {row.what.ljust(width)}  {row.value:10.3f} {row.unit}{reach}")
