"""The candidates of a search, as the report shows them: the table and the two plots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.report import figures
from packager.report.plots import Point, scatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packager.report.reading import Part

_KEPT: Final = ("chosen", "passed", "slower", "larger")
_MOST: Final = 200
_MEGABYTE: Final = 1e6


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate: what is shown of it, and its place in the plots.

    Attributes:
        loss: Drop of the metric, or 1 − cosine where there is no metric.
        kept: It was compared and loses no more than it may.
    """

    number: int
    name: str
    verdict: str
    reason: str
    scheme: str
    front: bool
    size_bytes: float | None
    p50_ms: float | None
    speedup: float | None
    confidence: float | None
    value: float | None
    confirmed: float | None
    loss: float | None
    cosine: float | None
    agreement: float | None

    @property
    def kept(self) -> bool:
        """Return whether it keeps the budget."""
        return self.verdict in _KEPT

    @property
    def cells(self) -> dict[str, str]:
        """Return the figures as texts."""
        return {
            "size": figures.size(self.size_bytes or None),
            "p50": figures.milliseconds(self.p50_ms),
            "speedup": figures.times(self.speedup),
            "confidence": figures.percent(self.confidence),
            "value": figures.plain(self.value),
            "confirmed": figures.plain(self.confirmed),
            "loss": figures.plain(self.loss),
            "cosine": figures.plain(self.cosine),
            "agreement": figures.percent(self.agreement),
        }


def rows_of(record: Part) -> list[Row]:
    """Return the candidates of the search, or those of the bundle where no search is recorded."""
    search = record.part("search")
    found = search.parts("candidates") or record.part("bundle").parts("candidates")
    front = set(search.texts("front"))
    return [_row(index, each, front) for index, each in enumerate(found[:_MOST], 1)]


def chosen_of(rows: Sequence[Row]) -> Row | None:
    """Return the chosen candidate."""
    return next((row for row in rows if row.verdict == "chosen"), None)


def plots_of(rows: Sequence[Row], *, metric: str, budget: float | None) -> list[dict[str, Any]]:
    """Return the plots that the figures allow, each with a heading.

    Args:
        rows: The candidates.
        metric: Its name, or empty where the cosine decides.
        budget: In the metric's unit, or the cosine's distance from 1.
    """
    sizes = "size in MB"
    loss = f"drop of {metric}" if metric else "1 − cosine"
    plots = []
    timed = _points(rows, "p50_ms")
    if len(timed) > 1:
        title = "Size and latency of the candidates"
        plots.append({
            "title": "Size and latency",
            "svg": scatter(
                "latency-plot", timed, title=title, x_label=sizes, y_label="median ms"
            ),
        })  # fmt: skip
    compared = _points(rows, "loss")
    if len(compared) > 1:
        plots.append({
            "title": "Size and loss",
            "svg": scatter(
                "loss-plot", compared, title="Size and loss of the candidates", x_label=sizes,
                y_label=loss, limit=budget, losses=True,
            ),
        })  # fmt: skip
    return plots


def _points(rows: Sequence[Row], field: str) -> list[Point]:
    found = []
    for row in rows:
        y = getattr(row, field)
        if not row.size_bytes or y is None:
            continue
        kind = row.verdict if row.verdict == "chosen" else "kept" if row.kept else "lost"
        found.append(
            Point(
                number=row.number, name=row.name, x=row.size_bytes / _MEGABYTE, y=y, kind=kind,
                front=row.front,
            )
        )  # fmt: skip
    return found


def _row(number: int, wire: Part, front: set[str]) -> Row:
    parity, latency, score = wire.part("parity"), wire.part("latency"), wire.part("score")
    cosine = parity.number("cosine")
    loss = score.number("drop") if score else None
    if loss is None and cosine is not None:
        loss = 1.0 - cosine
    return Row(
        number=number,
        name=wire.text("name") or "without a name",
        verdict=wire.text("verdict"),
        reason=wire.text("reason", most=600),
        scheme=wire.text("scheme"),
        front=wire.flag("on_front") or wire.text("name") in front,
        size_bytes=wire.number("size_bytes"),
        p50_ms=latency.number("p50_ms"),
        speedup=latency.number("speedup"),
        confidence=latency.number("confidence"),
        value=score.number("value"),
        confirmed=wire.part("confirmed").number("value"),
        loss=loss,
        cosine=cosine,
        agreement=parity.number("top1_agreement"),
    )
