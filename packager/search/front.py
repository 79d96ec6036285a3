"""The Pareto front of size, latency and quality, and the choice on it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from packager.search.forms import HALF_REST, PLAIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.artifact import Candidate
    from packager.search.forms import Form
    from packager.target import Target

# Figures this near are equal: a noisy machine measures such gaps between equal files.
_SAME_SPEED: Final = 0.9
# The same between files that were timed side by side for seconds.
_SAME_IN_RACE: Final = 0.97
# What a short timing may have misjudged: these are worth a race.
_RIVALS: Final = 0.75
_MOST_RIVALS: Final = 4
_SAME_SIZE: Final = 1.02


def loss_of(candidate: Candidate) -> float:
    """Return how much worse than the original it is: in the metric, else 1 - cosine."""
    if candidate.score is not None:
        return candidate.score.drop
    return 1.0 - candidate.parity.cosine if candidate.parity is not None else 0.0


def relative_time(candidate: Candidate) -> float:
    """Return its time as a share of the original's; 1 where it was not timed."""
    return 1.0 / candidate.latency.speedup if candidate.latency is not None else 1.0


def with_front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Mark the candidates than which no other is better in size, time and quality at once.

    Only those that load and were compared take part, whether they keep the budget or not.
    """
    measured = [c for c in candidates if c.path is not None and c.parity is not None]
    points = {c.name: (c.size_bytes, relative_time(c), loss_of(c)) for c in measured}

    def beaten(name: str) -> bool:
        mine = points[name]
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in points.values()
        )

    on_front = {name for name in points if not beaten(name)}
    return tuple(dataclasses.replace(c, on_front=c.name in on_front) for c in candidates)


def allowed(asked: str, found: Sequence[Candidate], forms: Mapping[str, Form]) -> list[Candidate]:
    """Return the candidates of the precision asked for that may be chosen.

    Args:
        asked: The recipe's precision. One asked for by name may gain nothing: that is said, not
            refused.
        found: Every candidate with its verdict.
        forms: By candidate name.
    """
    passed = [c for c in found if c.verdict == "passed"]
    if asked == PLAIN:
        return [c for c in passed if forms[c.name].precision == PLAIN]
    if asked != "auto":
        compressed = [c for c in found if forms[c.name].precision != PLAIN]
        if asked.endswith(HALF_REST):
            compressed = [c for c in compressed if forms[c.name].precision == asked]
        return [c for c in compressed if c.verdict == "passed"] or [
            c for c in compressed if c.verdict in ("slower", "larger")
        ]
    return passed


def rivals(
    candidates: Sequence[Candidate], objective: str, original_bytes: int
) -> tuple[Candidate, ...]:
    """Return those so near to the best that a short timing cannot tell which of them it is.

    Args:
        candidates: Those that may be chosen.
        objective: `latency`, `size` or `balanced`; by size nothing needs timing.
        original_bytes: Size of the original.

    Returns:
        The best first, at most four; none where there is nothing to decide.
    """
    timed = [c for c in candidates if c.latency is not None]
    if objective == "size" or len(timed) < 2:
        return ()
    cost = {c.name: _cost(c, objective, original_bytes) for c in timed}
    near = [c for c in timed if cost[c.name] * _RIVALS <= min(cost.values())]
    near = sorted(near, key=lambda c: cost[c.name])[:_MOST_RIVALS]
    return tuple(near) if len(near) > 1 else ()


def pick(
    candidates: Sequence[Candidate],
    forms: Mapping[str, Form],
    target: Target,
    *,
    objective: str,
    original_bytes: int,
    raced: bool = False,
) -> Candidate | None:
    """Return the candidate that is best at the objective; among equals the nearest to the original.

    Args:
        candidates: Those that may be chosen.
        forms: By candidate name.
        target: Its order of precisions decides where nothing was timed.
        objective: `latency`, `size` or `balanced` (the product of relative size and time).
        original_bytes: Size of the original.
        raced: They were timed side by side.
    """
    if not candidates:
        return None
    if objective == "size":
        least = min(c.size_bytes for c in candidates)
        return _nearest([c for c in candidates if c.size_bytes <= least * _SAME_SIZE])
    timed = [c for c in candidates if c.latency is not None]
    if not timed:
        return _by_precision(candidates, forms, target)
    cost = {c.name: _cost(c, objective, original_bytes) for c in timed}
    same = _SAME_IN_RACE if raced else _SAME_SPEED
    return _nearest([c for c in timed if cost[c.name] * same <= min(cost.values())])


def _cost(candidate: Candidate, objective: str, original_bytes: int) -> float:
    time = relative_time(candidate)
    return time if objective == "latency" else time * candidate.size_bytes / original_bytes


def _nearest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda c: (loss_of(c), c.size_bytes, c.name))


def _by_precision(
    passed: Sequence[Candidate], forms: Mapping[str, Form], target: Target
) -> Candidate:
    for wanted in target.precisions:
        group = [c for c in passed if forms[c.name].precision.startswith(wanted)]
        if group:
            rank = min(forms[c.name].rank for c in group)
            return _nearest([c for c in group if forms[c.name].rank == rank])
    return _nearest(passed)
