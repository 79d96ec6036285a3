"""Figures as texts, the same way everywhere in the report."""

from __future__ import annotations

from packager.console import human_size
from packager.report.svg import short

UNKNOWN = "—"


def size(size_bytes: float | None) -> str:
    """Return a size as `18.7 MB`."""
    return UNKNOWN if size_bytes is None else human_size(round(size_bytes))


def milliseconds(value: float | None) -> str:
    """Return a time as `4.31 ms`."""
    return UNKNOWN if value is None else f"{short(value)} ms"


def times(value: float | None) -> str:
    """Return a ratio as `2.03 ×`."""
    return UNKNOWN if value is None else f"{value:.2f} ×"


def percent(value: float | None) -> str:
    """Return a share as `97.4 %`."""
    return UNKNOWN if value is None else f"{value * 100:.3g} %"


def plain(value: float | None) -> str:
    """Return a number with four digits that matter."""
    return UNKNOWN if value is None else f"{value:.4g}"


def signed(value: float | None) -> str:
    """Return a difference with its sign; a real minus, as it is read aloud."""
    if value is None:
        return UNKNOWN
    return f"{value:+.4g}".replace("-", "−")


def seconds(value: float | None) -> str:
    """Return a duration as `48 s` or `3 min 5 s`."""
    if value is None:
        return UNKNOWN
    if value < 120:
        return f"{short(value)} s"
    return f"{int(value) // 60} min {int(value) % 60} s"
