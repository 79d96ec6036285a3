"""What each section of the report shows, made from the record; None where nothing is known."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from packager.report import figures
from packager.report.plots import Bar, bars, distributions, quantile
from packager.report.reading import as_number, clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packager.report.candidates import Row
    from packager.report.reading import Part

_DRAWN: Final = 20
_LISTED: Final = 1000
_HIGHER: Final = ("fp32", "fp16", "bf16", "float32", "float16", "bfloat16", "float")

Section = dict[str, Any]


def summary(record: Part, manifest: Part, chosen: Row | None) -> Section:
    """Return what stands at the top: what was built, and the three figures that matter."""
    bundle, search = record.part("bundle"), record.part("search")
    original = search.part("original")
    before = original.number("size_bytes") or bundle.number("original_bytes")
    after = chosen.size_bytes if chosen is not None else None
    metric = search.text("metric")
    return {
        "name": manifest.text("name") or "without a name",
        "version": manifest.text("version"),
        "target": manifest.part("target").text("name") or bundle.text("target"),
        "source": manifest.part("model").text("source"),
        "digest": bundle.text("digest"),
        "edgepack": manifest.text("edgepack"),
        "began": record.text("began"),
        "took": figures.seconds(record.number("took_s")),
        "precision": bundle.text("precision") or (chosen.name if chosen else ""),
        "scheme": bundle.text("scheme"),
        "reason": chosen.reason if chosen else "",
        "cards": [
            _card("Model file", figures.size(before), figures.size(after), _smaller(before, after)),
            _latency_card(record, chosen),
            _metric_card(original, metric, chosen, budget_words(search)),
            {
                "title": "Bundle", "before": "", "after": figures.size(bundle.number("size_bytes")),
                "said": "with the engine and the server, as stored",
            },
        ],
    }  # fmt: skip


def budget_of(search: Part) -> float | None:
    """Return the budget that the plot of losses shows, in its unit."""
    if not search.text("metric"):
        least = search.part("limits").number("min_cosine")
        return None if least is None else 1.0 - least
    budget = search.part("budget")
    value = budget.number("value")
    if value is None or not budget.flag("relative"):
        return value
    original = _score(search.part("original"))
    return None if original is None else value * abs(original)


def budget_words(search: Part) -> str:
    """Return the budget as a sentence; empty where none is recorded."""
    value = search.part("budget").number("value")
    metric = search.text("metric")
    if metric and value is not None:
        if search.part("budget").flag("relative"):
            return f"{metric} may drop by {figures.percent(value)} of the original's value"
        return f"{metric} may drop by {figures.plain(value)}"
    limits = search.part("limits")
    cosine, agreement = limits.number("min_cosine"), limits.number("min_agreement")
    if cosine is None and agreement is None:
        return ""
    return (
        f"no metric: cosine at least {figures.plain(cosine)}, agreement with the original"
        f" at least {figures.plain(agreement)}"
    )


def plan(record: Part) -> list[dict[str, str]]:
    """Return the steps of the plan."""
    return [
        {
            "stage": step.text("stage"),
            "choice": step.text("choice", most=600),
            "reason": step.text("reason", most=600),
        }
        for step in record.part("plan").parts("steps")[:_LISTED]
    ]


def search_facts(search: Part) -> list[tuple[str, str]]:
    """Return how the search went, as names and texts."""
    facts = [
        ("objective", search.text("objective")),
        ("budget", budget_words(search)),
        ("full evaluations", _count(search.number("evaluations"))),
        ("layers measured one at a time", _count(search.number("probes"))),
        ("time", figures.seconds(search.number("took_s")) if search.number("took_s") else ""),
    ]
    return [(name, text) for name, text in facts if text]


def sensitivity(search: Part) -> Section | None:
    """Return the layers by what int8 costs in each, the worst first."""
    layers = search.parts("sensitivity")[:_LISTED]
    rows: list[Section] = [
        {
            "name": layer.text("name") or "without a name",
            "op_type": layer.text("op_type"),
            "weights": _count(layer.number("weights")),
            "sqnr_db": layer.number("sqnr_db"),
            "sqnr": _decibels(layer.number("sqnr_db")),
            "precision": layer.text("precision"),
            "reason": layer.text("reason", most=600),
            "higher": _is_higher(layer),
        }
        for layer in layers
    ]
    if not rows:
        return None
    measured = [row for row in rows if row["sqnr_db"] is not None]
    measured.sort(key=lambda row: row["sqnr_db"])
    drawn = [
        Bar(
            label=row["name"],
            said=row["sqnr"] + (f", {row['precision']}" if row["higher"] else ""),
            values=(row["sqnr_db"],),
            marked=row["higher"],
        )
        for row in measured[:_DRAWN]
    ]
    plot = bars(
        "sensitivity-plot",
        drawn,
        title="Sensitivity of the layers",
        description=(
            f"Signal to noise of the model's outputs in decibels with one layer in int8, the"
            f" {len(drawn)} most sensitive of {len(rows)} layers first; the table has every layer."
        ),
        series=("sqnr",),
    ) if drawn else None  # fmt: skip
    return {"rows": rows, "plot": plot, "drawn": len(drawn)}


def kept_layers(record: Part) -> Section | None:
    """Return the layers left in a higher precision, each with its reason.

    None where the record does not tell layers apart.
    """
    search = record.part("search")
    layers = search.parts("sensitivity")
    known = any(layer.text("precision") for layer in layers)
    if not known:
        found = search.parts("candidates") or record.part("bundle").parts("candidates")
        layers = next(
            (each.parts("layers") for each in found if each.text("verdict") == "chosen"), []
        )
        known = bool(layers)
    if not known:
        return None
    rows = [
        {
            "name": layer.text("name") or "without a name",
            "op_type": layer.text("op_type"),
            "precision": layer.text("precision"),
            "reason": layer.text("reason", most=600) or "no reason is recorded",
        }
        for layer in layers[:_LISTED]
        if _is_higher(layer)
    ]
    return {"rows": rows, "layers": len(layers)}


def sizes(record: Part) -> Section | None:
    """Return bytes before and after, by layer, by kind of layer, and by part of the bundle."""
    layers = [
        (
            each.text("layer") or "without a name",
            each.text("kind") or "other",
            each.number("bytes_before") or 0.0,
            each.number("bytes_after") or 0.0,
        )
        for each in record.part("search").parts("sizes")
    ]
    parts = [
        (clean(name), as_number(size) or 0.0)
        for name, size in record.part("bundle").part("parts").wire.items()
    ]
    parts.sort(key=lambda part: (-part[1], part[0]))
    if not layers and not parts:
        return None
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for _, kind, before, after in layers:
        for place, value in enumerate((1.0, before, after)):
            kinds[kind][place] += value
    by_kind = sorted(kinds.items(), key=lambda item: -item[1][1])
    largest = sorted(layers, key=lambda item: -max(item[2:]))
    plot = bars(
        "size-plot",
        [
            Bar(label=name, said=f"{figures.size(b)} → {figures.size(a)}", values=(b, a))
            for name, _, b, a in largest[:_DRAWN]
        ],
        title="Size by layer",
        description=(
            f"Bytes of weights before and after, of the {min(len(largest), _DRAWN)} largest of"
            f" {len(largest)} layers; the table has every layer."
        ),
        series=("original", "artifact"),
    ) if layers else None  # fmt: skip
    return {
        "plot": plot,
        "kinds": [
            (kind, f"{count:.0f}", figures.size(before), figures.size(after))
            for kind, (count, before, after) in by_kind
        ],
        "layers": [
            (name, kind, figures.size(before), figures.size(after))
            for name, kind, before, after in largest[:_LISTED]
        ],
        "parts": [(name, figures.size(size)) for name, size in parts],
    }


def disagreements(search: Part) -> list[dict[str, Any]]:
    """Return the samples that differ most, with the best answers of both."""
    return [
        {
            "sample": each.text("sample") or "without a name",
            "row": _count(each.number("row")),
            "distance": figures.plain(each.number("distance")),
            "changed": each.flag("changed"),
            "original": _answers(each.wire.get("original")),
            "artifact": _answers(each.wire.get("artifact")),
        }
        for each in search.parts("disagreements")[:100]
    ]


def latency(search: Part) -> Section | None:
    """Return the distribution of both latencies."""
    wire = search.part("latencies_ms")
    series = [
        (name, [value for value in wire.numbers(name) if value >= 0])
        for name in ("original", "artifact")
    ]
    series = [(name, values) for name, values in series if values]
    if not series:
        return None
    return {
        "plot": distributions("times-plot", series, title="Distribution of latency", unit="ms"),
        "rows": [
            (
                name,
                str(len(values)),
                *(figures.milliseconds(quantile(values, q)) for q in (0, 0.5, 0.9, 0.99, 1)),
            )
            for name, values in series
        ],
    }


def coverage(search: Part) -> list[tuple[str, ...]]:
    """Return the activations that leave their calibrated range, the worst first."""
    found = sorted(search.parts("coverage"), key=lambda each: -(each.number("share") or 0.0))
    return [
        (
            each.text("tensor") or "without a name",
            figures.percent(each.number("share")),
            _range(each, "low", "high"),
            _range(each, "seen_low", "seen_high"),
        )
        for each in found[:_LISTED]
    ]


def data(search: Part) -> list[tuple[str, ...]]:
    """Return which data was used for what."""
    found: list[tuple[str, ...]] = []
    for purpose, wire in list(search.part("data").wire.items())[:20]:
        part = search.part("data").part(purpose)
        if not isinstance(wire, dict):
            found.append((clean(purpose), "none", "", "", ""))
            continue
        found.append((
            clean(purpose), part.text("kind"), part.text("origin"), _count(part.number("samples")),
            part.text("digest"),
        ))  # fmt: skip
    return found


def environment(record: Part, manifest: Part) -> list[tuple[str, str]]:
    """Return the machine, the tools and how the model came in."""
    host, model = record.part("host"), record.part("model").part("provenance")
    engine = manifest.part("engine")
    found = [
        ("machine", host.text("platform")),
        ("cores", _count(host.number("cores"))),
        ("engine", " ".join(filter(None, (engine.text("name"), engine.text("version"))))),
        ("began", record.text("began")),
        ("model from", model.text("source")),
        ("model's digest", model.text("source_sha256")),
        ("exporter", model.text("exporter")),
        *(("import", note) for note in model.texts("notes")[:50]),
        *((f"tool {name}", value) for name, value in host.part("tools").pairs()),
        *((f"check {name}", value) for name, value in record.part("bundle").part("checks").pairs()),
        *((f"fact {name}", value) for name, value in record.part("facts").pairs()),
    ]
    return [(name, text) for name, text in found if text]


def _card(title: str, before: str, after: str, said: str) -> dict[str, str]:
    return {"title": title, "before": before, "after": after, "said": said}


def _latency_card(record: Part, chosen: Row | None) -> dict[str, str]:
    if chosen is None or chosen.p50_ms is None:
        return _card("Latency", "", figures.UNKNOWN, "not timed on this machine")
    found = record.part("search").parts("candidates") or record.part("bundle").parts("candidates")
    latency = next(
        (each.part("latency") for each in found if each.text("verdict") == "chosen"), None
    )
    before = latency.number("original_p50_ms") if latency is not None else None
    said = f"{figures.times(chosen.speedup)} as fast"
    if chosen.confidence is not None:
        said += f", faster with a confidence of {figures.percent(chosen.confidence)}"
    threads = latency.number("threads") if latency is not None else None
    if threads:
        said += f", {threads:.0f} thread{'s' if threads > 1 else ''}"
    return _card(
        "Median latency",
        figures.milliseconds(before),
        figures.milliseconds(chosen.p50_ms),
        said,
    )


def _metric_card(original: Part, metric: str, chosen: Row | None, budget: str) -> dict[str, str]:
    if chosen is None:
        return _card("Quality", "", figures.UNKNOWN, "no candidate is recorded as chosen")
    if metric and chosen.value is not None:
        before = _score(original)
        confirmed = (
            f"; {figures.plain(chosen.confirmed)} on data that chose nothing"
            if chosen.confirmed is not None
            else ""
        )
        return _card(metric, figures.plain(before), figures.plain(chosen.value), budget + confirmed)
    said = "cosine with the original's answers"
    if chosen.agreement is not None:
        said += f"; best class agrees on {figures.percent(chosen.agreement)}"
    return _card("Likeness", "", figures.plain(chosen.cosine), said)


def _score(original: Part) -> float | None:
    number = original.number("score")
    if number is not None:
        return number
    score = original.part("score")
    return score.number("original") if score.number("original") is not None else score.number(
        "value"
    )  # fmt: skip


def _smaller(before: float | None, after: float | None) -> str:
    if not before or not after:
        return ""
    return f"{figures.percent(after / before)} of the original"


def _is_higher(layer: Part) -> bool:
    return layer.text("precision").lower() in _HIGHER


def _range(wire: Part, low: str, high: str) -> str:
    return f"{figures.plain(wire.number(low))} to {figures.plain(wire.number(high))}"


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}".replace(",", " ")


def _decibels(number: float | None) -> str:
    return figures.UNKNOWN if number is None else f"{number:.1f} dB"


def _answers(wire: Any) -> Sequence[tuple[str, str]]:
    found = []
    for entry in wire[:5] if isinstance(wire, list) else []:
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
            score = as_number(entry[1])
            found.append((clean(entry[0]), "" if score is None else figures.plain(score)))
    return found
