"""Writes SVG: elements with escaped attributes and texts, colours by class for both schemes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Iterable

# In units of the drawing: a phone shows one unit as about one pixel, a desktop as 1.5.
WIDTH: Final = 360


def element(name: str, *children: str | Markup, **attributes: str | float) -> Markup:
    """Return an element; `_` in an attribute's name stands for `-`, a last one is dropped."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
    )
    inside = Markup("").join(escape(child) for child in children)
    # The names are ours, never the record's.
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, inside)


def picture(
    identity: str, *, title: str, description: str, height: float, parts: Iterable[Markup]
) -> Markup:
    """Return a drawing of WIDTH units that a screen reader tells by its title and description."""
    return element(
        "svg",
        element("title", title, id=f"{identity}-title"),
        element("desc", description, id=f"{identity}-desc"),
        *parts,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_labelledby=f"{identity}-title {identity}-desc",
        class_="plot",
    )


def ticks(top: float, *, count: int = 4) -> list[float]:
    """Return round numbers from 0 that cover up to `top`, about `count` steps."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [step * index for index in range(math.ceil(top / step - 1e-9) + 1)]


def short(number: float) -> str:
    """Return a number with three digits that matter, without an exponent where it can be."""
    text = f"{number:.3g}"
    return f"{number:.0f}" if "e" in text and abs(number) >= 1 else text


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
