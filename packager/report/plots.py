"""The report's plots: candidates, bars by layer, two distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from packager.report.svg import WIDTH, element, picture, short, ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from markupsafe import Markup

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 26, 46
_HEIGHT: Final = 260
_ROW: Final = 30
_BINS: Final = 36
_SHOWN_CHARACTERS: Final = 46
# Below, a loss is shown as none: the axis of losses is logarithmic above and linear below.
_SMALL_LOSS: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class Point:
    """One candidate in a plot.

    Attributes:
        number: Its row in the table.
        kind: `chosen`, `kept` (inside the budget) or `lost`.
        front: No other is better in everything.
    """

    number: int
    name: str
    x: float
    y: float
    kind: str
    front: bool


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart: a label, what is said of it, and one value per series."""

    label: str
    said: str
    values: tuple[float, ...]
    marked: bool = False


def scatter(
    identity: str,
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    limit: float | None = None,
    losses: bool = False,
) -> Markup:
    """Return candidates by size and by latency or loss; less is better on both axes.

    Args:
        identity: Of the drawing's title, unique in the page.
        points: At least one.
        title: For screen readers, with a description made of the points.
        x_label: With the unit.
        y_label: With the unit.
        limit: The budget, drawn as a line.
        losses: The y axis is logarithmic from 0.001 on.
    """
    width, height = WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    x_ticks = ticks(max(point.x for point in points) * 1.02)
    highest = max([point.y for point in points] + ([limit] if limit is not None else []))
    y_ticks = _loss_ticks(highest) if losses else ticks(highest * 1.02)
    squeeze: Callable[[float], float] = _squeezed if losses else float

    def x(value: float) -> float:
        return _LEFT + width * value / x_ticks[-1]

    def y(value: float) -> float:
        share = squeeze(max(value, 0.0)) / squeeze(y_ticks[-1])
        return _TOP + height * (1 - min(share, 1.0))

    parts = [
        element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y(t), y2=y(t), class_="grid")
        for t in y_ticks
    ]
    parts += [
        element("text", short(t), x=_LEFT - 6, y=y(t) + 4, text_anchor="end") for t in y_ticks
    ]
    parts += [
        element("text", short(t), x=x(t), y=_HEIGHT - _BOTTOM + 25, text_anchor="middle")
        for t in x_ticks
    ]
    middle = _LEFT + width / 2
    parts.append(element("text", x_label, x=middle, y=_HEIGHT - 5, text_anchor="middle"))
    parts.append(element("text", y_label, x=2, y=10))
    if limit is not None:
        parts += [
            element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y(limit), y2=y(limit), class_="limit"),
            element("text", "budget", x=WIDTH - _RIGHT, y=y(limit) - 4, text_anchor="end"),
        ]
    # The chosen one lies on top of others at its place.
    for point in sorted(points, key=lambda p: (p.kind == "chosen", -p.number)):
        parts.append(_marker(point, x(point.x), y(point.y)))
    told = "; ".join(
        f"{p.number}: {p.name}, {short(p.x)} and {short(p.y)}"
        + (", on the front" if p.front else "")
        + (", chosen" if p.kind == "chosen" else "")
        for p in points[:40]
    )
    described = f"Across: {x_label}. Up: {y_label}. {told}."
    return picture(identity, title=title, description=described, height=_HEIGHT, parts=parts)


def bars(
    identity: str, rows: Sequence[Bar], *, title: str, description: str, series: Sequence[str]
) -> Markup:
    """Return horizontal bars, each under its label; one bar per series and row.

    Args:
        identity: Of the drawing's title, unique in the page.
        rows: At least one; values at least 0.
        title: For screen readers.
        description: What the bars are, with their unit.
        series: Names of the classes `series-0`, `series-1`; only counted here.
    """
    top = max((max(row.values) for row in rows), default=0.0) or 1.0
    thickness, step = (9, _ROW) if len(series) == 1 else (6, _ROW + 4)
    parts: list[Markup] = []
    for index, row in enumerate(rows):
        place = index * step + 12
        parts.append(element("text", _cut(row.label), x=0, y=place))
        parts.append(element("text", row.said, x=WIDTH, y=place, text_anchor="end"))
        for number, value in enumerate(row.values):
            parts.append(
                element(
                    "rect",
                    x=0,
                    y=place + 4 + number * (thickness + 1),
                    width=max(WIDTH * max(value, 0.0) / top, 0.5),
                    height=thickness,
                    class_=f"bar series-{number}{' marked' if row.marked else ''}",
                )
            )
    height = len(rows) * step + 4
    return picture(identity, title=title, description=description, height=height, parts=parts)


def distributions(
    identity: str, series: Sequence[tuple[str, Sequence[float]]], *, title: str, unit: str
) -> Markup:
    """Return histograms above each other on one axis, with the median of each as a line.

    Args:
        identity: Of the drawing's title, unique in the page.
        series: (name, values), each with at least one value.
        title: For screen readers.
        unit: Of the values.
    """
    # A few slow runs would press all others into one bin: they are counted in the last one.
    high = max(min(max(values), 1.8 * quantile(values, 0.9)) for _, values in series) or 1.0
    axis = ticks(high)
    width, panel = WIDTH - 2 * _RIGHT, 74

    def x(value: float) -> float:
        return _RIGHT + width * min(value / axis[-1], 1.0)

    parts: list[Markup] = []
    told = []
    for index, (name, values) in enumerate(series):
        base = (index + 1) * panel
        counts = [0] * _BINS
        for value in values:
            counts[min(int(value / axis[-1] * _BINS), _BINS - 1)] += 1
        tallest = max(counts)
        for place, count in enumerate(counts):
            if count:
                size = (panel - 30) * count / tallest
                parts.append(
                    element(
                        "rect",
                        x=_RIGHT + width * place / _BINS,
                        y=base - size,
                        width=width / _BINS - 0.5,
                        height=size,
                        class_=f"bar series-{index}",
                    )
                )
        median = quantile(values, 0.5)
        parts += [
            element("line", x1=_RIGHT, x2=WIDTH - _RIGHT, y1=base, y2=base, class_="grid"),
            element("line", x1=x(median), x2=x(median), y1=base - panel + 26, y2=base,
                    class_="limit"),
            element("text", f"{name}: median {short(median)} {unit}", x=_RIGHT,
                    y=base - panel + 16),
        ]  # fmt: skip
        told.append(
            f"{name}: median {short(median)}, 90 % below {short(quantile(values, 0.9))},"
            f" from {short(min(values))} to {short(max(values))} {unit}"
        )
    bottom = len(series) * panel
    parts += [element("text", short(t), x=x(t), y=bottom + 15, text_anchor="middle") for t in axis]
    parts.append(element("text", unit, x=WIDTH / 2, y=bottom + 31, text_anchor="middle"))
    return picture(
        identity, title=title, description="; ".join(told) + ".", height=bottom + 36, parts=parts
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile by linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _marker(point: Point, x: float, y: float) -> Markup:
    shape = (
        element("rect", x=x - 9, y=y - 9, width=18, height=18, rx=2, class_="point chosen")
        if point.kind == "chosen"
        else element("circle", cx=x, cy=y, r=9, class_=f"point {point.kind}")
    )
    ring = [element("circle", cx=x, cy=y, r=13.5, class_="front")] if point.front else []
    number = element(
        "text", str(point.number), x=x, y=y + 3.5, text_anchor="middle",
        class_=f"number {point.kind}",
    )  # fmt: skip
    return element("g", *ring, shape, number)


def _squeezed(loss: float) -> float:
    return math.log10(1 + loss / _SMALL_LOSS)


def _loss_ticks(highest: float) -> list[float]:
    found, value = [0.0, _SMALL_LOSS], _SMALL_LOSS
    while value < highest:
        value *= 10
        found.append(value)
    return found


def _cut(label: str) -> str:
    if len(label) <= _SHOWN_CHARACTERS:
        return label
    # The end of a layer's name tells it from its neighbours.
    return f"…{label[-_SHOWN_CHARACTERS + 1 :]}"
