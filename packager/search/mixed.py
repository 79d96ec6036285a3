"""Finds which layers of a quantized model go back to float, with few whole evaluations."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from packager.artifact import LayerChoice
from packager.passes.graph import constant_sizes
from packager.passes.revert_layers import quantized_layers
from packager.search.forms import HALF_REST
from packager.search.maker import NotMade
from packager.search.sensitivity import rank_layers
from packager.search.table import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from packager.artifact import Candidate
    from packager.search.forms import Form
    from packager.search.judge import Judge
    from packager.search.sensitivity import LayerSensitivity
    from packager.search.setting import Setting

# Samples that the layers are ranked on: a ranking needs an order, not a metric.
_RANKED_ON: Final = 4
_RANKING_S: Final = 60.0
_REFINED: Final = 3
# Why layers stay float, by what the search calls a set of them.
_WHY: Final = {
    "first": "one of the first layers, which see the widest ranges and gain little in int8",
    "depthwise-float": "a depthwise convolution, which gains nothing between float operators",
}


def rank(judge: Judge, setting: Setting, form: Form) -> tuple[LayerSensitivity, ...]:
    """Return the quantized layers of a form, the one that costs most accuracy first."""
    made = judge.maker.make(form)
    if isinstance(made, NotMade) or setting.calibration is None:
        return ()
    return rank_layers(
        made.model,
        made.reference,
        setting.calibration[:_RANKED_ON],
        workdir=setting.workdir,
        threads=setting.threads,
        reporter=setting.reporter,
        limit_s=_RANKING_S,
        fused=setting.target.tensorrt is None,
    )


def sets_to_try(
    ranking: Sequence[LayerSensitivity], in_order: Sequence[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield sets of layers to keep float, each with what it is called.

    First one and two layers from the input on, which see the widest ranges, hold the fewest
    weights and cost the least speed in float (none at all on EfficientNet-Lite0, where layers in
    the middle cost up to 21 %); then 1, 2, 4 … of the most sensitive, up to half of all.

    Args:
        ranking: Most sensitive first.
        in_order: The same layers as the graph runs them.
    """
    most = max(len(ranking) // 2, 1)
    names = [layer.name for layer in ranking]
    sets = [("first", tuple(in_order[:count])) for count in (1, 2)]
    count = 1
    while count <= most:
        sets.append(("mixed", tuple(names[:count])))
        count *= 2
    yielded = set()
    for called, layers in sets:
        if layers and len(layers) <= most and frozenset(layers) not in yielded:
            yielded.add(frozenset(layers))
            yield called, layers


def search_mixed(
    judge: Judge,
    form: Form,
    ranking: Sequence[LayerSensitivity],
    *,
    may_go_on: Callable[[], bool],
    tried: Callable[[Form, Candidate], None],
) -> None:
    """Judge forms with some layers in float, until one keeps the budget.

    The number of float layers doubles until a form passes; then a number between is tried, and the
    reverted layers with the most weights go back to int8 one by one while the budget holds.

    Args:
        judge: Passes the verdicts.
        form: Quantized throughout; it missed the budget.
        ranking: Its layers, most sensitive first.
        may_go_on: Asked before each evaluation.
        tried: Is told each form and its verdict.
    """
    made = judge.maker.make(form)
    if isinstance(made, NotMade):
        return
    kept: dict[frozenset[str], bool] = {}

    def holds(called: str, layers: tuple[str, ...]) -> bool:
        key = frozenset(layers)
        if key not in kept:
            mixed = form.with_float(layers, called)
            candidate = judge.judge(mixed, forced=True)
            tried(mixed, candidate)
            kept[key] = candidate.verdict in ("passed", "slower")
        return kept[key]

    best: tuple[str, ...] = ()
    before = 0
    in_order = tuple(quantized_layers(made.model, made.reference))
    for called, layers in sets_to_try(ranking, in_order):
        if not may_go_on():
            return
        if holds(called, layers):
            best = layers
            break
        before = len(layers) if called == "mixed" else 0
    names = [layer.name for layer in ranking]
    between = (before + len(best)) // 2
    if before < between < len(best) and may_go_on() and holds("mixed", tuple(names[:between])):
        best = tuple(names[:between])
    weights = {layer.name: layer.weights for layer in ranking}
    for turn, name in enumerate(sorted(best, key=lambda n: -weights[n])[:_REFINED]):
        fewer = tuple(n for n in best if n != name)
        if not fewer or not may_go_on():
            return
        best = fewer if holds(f"refined-{turn + 1}", fewer) else best


def layer_choices(
    ranking: Sequence[LayerSensitivity], form: Form, path: Path | None
) -> tuple[LayerChoice, ...]:
    """Return what became of each layer, those that stay float with the reason.

    Args:
        ranking: Of the form's family; empty where nobody ranked it.
        form: The chosen one.
        path: Its file, which tells of float layers that were not ranked.
    """
    why = next((why for called, why in _WHY.items() if f"-{called}-" in form.name), "")
    left = "fp16" if form.name.endswith(HALF_REST) else "fp32"
    found = []
    for place, layer in enumerate(ranking, start=1):
        choice = LayerChoice(
            name=layer.name,
            op_type=layer.op_type,
            weights=layer.weights,
            sqnr_db=layer.sqnr_db,
            precision="int8",
        )
        if layer.name in form.float_layers:
            heard = (
                "" if layer.sqnr_db is None else f", {layer.sqnr_db:.1f} dB with it alone in int8"
            )
            reason = joined(why, f"number {place} of {len(ranking)} in sensitivity{heard}")
            choice = dataclasses.replace(choice, precision=left, reason=reason)
        found.append(choice)
    known = {layer.name for layer in ranking}
    rest = [name for name in form.float_layers if name not in known]
    return (*found, *(_unranked(path, rest, why, left) if path is not None and rest else ()))


def _unranked(path: Path, names: Sequence[str], why: str, precision: str) -> Iterator[LayerChoice]:
    import onnx

    model = onnx.load(path)
    sizes = constant_sizes(model)
    nodes = {node.name: node for node in model.graph.node}
    for name in names:
        node = nodes.get(name)
        yield LayerChoice(
            name=name,
            op_type=node.op_type if node is not None else "",
            weights=max((sizes.get(i, 0) for i in node.input), default=0) if node else 0,
            sqnr_db=None,
            precision=precision,
            reason=why or "as the lock says",
        )
