"""Candidates in words: one line each, or a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packager.console import human_size, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packager.artifact import Candidate


def as_table(candidates: Sequence[Candidate]) -> list[str]:
    """Return the candidates as lines of aligned columns; `*` marks the Pareto front."""
    metric = next((c.score.metric for c in candidates if c.score is not None), None)
    agreeing = [] if metric == "agreement" else ["agreement"]
    head = ["candidate", "size", *([metric] if metric else []), "cosine", *agreeing, "speed-up",
            "verdict", "reason"]  # fmt: skip
    rows = [head]
    for c in candidates:
        agreement = c.parity.top1_agreement if c.parity else None
        rows.append([
            c.name + " *" * c.on_front,
            human_size(c.size_bytes) if c.size_bytes else "-",
            *([f"{c.score.value:.4f}" if c.score else "-"] if metric else []),
            f"{c.parity.cosine:.4f}" if c.parity else "-",
            *([f"{agreement:.1%}" if agreement is not None else "-"] if agreeing else []),
            f"{c.latency.speedup:.2f} ×" if c.latency else "-",
            c.verdict,
            c.reason,
        ])  # fmt: skip
    return table(rows)


def describe(candidate: Candidate) -> str:
    """Return a candidate, its figures and its verdict as one line."""
    parts = [candidate.verdict]
    if candidate.path is not None:
        parts.append(human_size(candidate.size_bytes))
    if candidate.score is not None:
        parts.append(f"{candidate.score.metric} {candidate.score.value:.4f}")
    if candidate.parity is not None:
        parts.append(f"cosine {candidate.parity.cosine:.4f}")
        if candidate.parity.top1_agreement is not None:
            parts.append(f"top-1 agreement {candidate.parity.top1_agreement:.1%}")
    if candidate.latency is not None:
        parts.append(
            f"{candidate.latency.p50_ms:.2f} ms, {candidate.latency.speedup:.2f} × as fast"
        )
    return f"{candidate.name}: " + joined(", ".join(parts), candidate.reason)


def joined(first: str, second: str) -> str:
    """Return two remarks as one."""
    return f"{first}; {second}" if first and second else first or second
