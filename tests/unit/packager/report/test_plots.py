"""Plots put values where they belong and let nothing out of a text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from packager.report.plots import Bar, Point, bars, distributions, quantile, scatter
from packager.report.svg import WIDTH, element, picture, short, ticks

if TYPE_CHECKING:
    from markupsafe import Markup

HOSTILE = "\"'><script>x</script>&"


def parsed(svg: Markup) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314


def test_texts_and_attributes_are_escaped() -> None:
    drawn = parsed(picture("p", title=HOSTILE, description=HOSTILE, height=9, parts=[
        element("text", HOSTILE, class_=HOSTILE),
    ]))  # fmt: skip
    assert [child.tag for child in drawn] == ["title", "desc", "text"]
    assert {child.text for child in drawn} == {HOSTILE}
    assert drawn[2].get("class") == HOSTILE
    assert (drawn.get("role"), drawn.get("aria-labelledby")) == ("img", "p-title p-desc")


@pytest.mark.parametrize("top", [0.0, 1e-9, 0.0031, 0.7, 1.0, 9.99, 18.7, 1234.5, 6e7])
def test_ticks_are_few_and_cover_the_values(top: float) -> None:
    found = ticks(top)
    assert found[0] == 0
    assert found[-1] >= top
    assert 2 <= len(found) <= 7
    assert found[-1] <= max(top * 2.6, 1.0)


def test_numbers_are_short_and_without_exponents() -> None:
    assert [short(x) for x in (0, 0.5, 1234.5, 123456, 0.00312)] == [
        "0", "0.5", "1234", "123456", "0.00312",
    ]  # fmt: skip


def point(number: int, x: float, y: float, kind: str = "kept", *, front: bool = False) -> Point:
    return Point(number=number, name=HOSTILE, x=x, y=y, kind=kind, front=front)


def test_less_lies_left_and_down() -> None:
    svg = scatter("s", [point(1, 18, 9), point(2, 5, 4)], title="t", x_label="x", y_label="y")
    groups = {g.findtext("text"): g for g in parsed(svg).findall("g")}
    first, second = groups["1"][0], groups["2"][0]
    assert float(second.get("cx") or 0) < float(first.get("cx") or 0)
    assert float(second.get("cy") or 0) > float(first.get("cy") or 0)
    for circle in (first, second):
        assert 0 < float(circle.get("cx") or 0) < WIDTH


def test_the_chosen_and_the_front_differ_in_shape_and_not_in_colour_alone() -> None:
    points = [point(1, 5, 0.1, "chosen", front=True), point(2, 5, 0.1), point(3, 9, 0.2, "lost")]
    drawn = parsed(scatter("s", points, title="t", x_label="x", y_label="y", losses=True))
    groups = drawn.findall("g")
    shapes = {g.findtext("text"): [e.get("class") for e in g if e.tag != "text"] for g in groups}
    assert shapes == {"1": ["front", "point chosen"], "2": ["point kept"], "3": ["point lost"]}
    assert groups[-1].findtext("text") == "1"
    described = drawn.findtext("desc") or ""
    assert f"1: {HOSTILE}, 5 and 0.1, on the front, chosen" in described


def test_losses_are_told_apart_at_every_size() -> None:
    losses = [-0.02, 0.0, 0.001, 0.01, 0.1, 1.0]
    points = [point(i, 1, loss) for i, loss in enumerate(losses)]
    drawn = parsed(
        scatter("s", points, title="t", x_label="x", y_label="y", limit=0.005, losses=True)
    )
    heights = {int(g.findtext("text") or 0): float(g[0].get("cy") or 0) for g in drawn.findall("g")}
    assert heights[0] == heights[1]
    gaps = [heights[i] - heights[i + 1] for i in range(1, 5)]
    assert min(gaps) > 15
    line = next(e for e in drawn.iter("line") if e.get("class") == "limit")
    assert heights[3] < float(line.get("y1") or 0) < heights[2]


def test_bars_are_as_long_as_their_values() -> None:
    rows = [
        Bar(label=HOSTILE, said="x", values=(10.0, 5.0)),
        Bar(label="b", said="y", values=(0, -3)),
    ]
    drawn = parsed(bars("b", rows, title="t", description="d", series=("one", "two")))
    widths = [float(r.get("width") or 0) for r in drawn.findall("rect")]
    assert widths == [WIDTH, WIDTH / 2, 0.5, 0.5]
    longest = bars("b", [Bar(label="x" * 90 + "/end", said="", values=(1,))], title="t",
                   description="d", series=("one",))  # fmt: skip
    assert re.search("…x+/end", longest)


def test_a_distribution_counts_every_value_once() -> None:
    values = [1.0] * 30 + [2.0] * 10 + [900.0]
    svg = distributions("d", [("original", values)], title="t", unit="ms")
    drawn = parsed(svg)
    heights = [float(r.get("height") or 0) for r in drawn.findall("rect")]
    tallest = max(heights)
    assert [round(h / tallest * 30) for h in heights] == [30, 10, 1]
    assert "median 1, 90 % below 2, from 1 to 900 ms" in (drawn.findtext("desc") or "")


def test_quantiles_interpolate() -> None:
    assert [quantile([3, 1, 2, 4], q) for q in (0, 0.5, 1)] == [1, 2.5, 4]
    assert quantile([7], 0.9) == 7
