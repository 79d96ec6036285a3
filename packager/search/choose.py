"""Tries every form of a model and chooses one."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Final

from packager.artifact import Candidate
from packager.console import human_size, table
from packager.errors import BudgetMissed, UsageError
from packager.search.forms import PLAIN, Form, forms
from packager.search.judge import ENOUGH_ROWS, Judge, describe, is_this_machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from packager.console import Reporter
    from packager.data import Samples
    from packager.model import Model
    from packager.recipe import Compression
    from packager.target import Target

AS_IT_CAME: Final = "quantized"
# Medians this near are one speed: a noisy machine measures gaps of this size between equal files.
_SAME_SPEED: Final = 0.9


def choose(
    model: Model,
    target: Target,
    samples: Samples | None,
    compression: Compression,
    *,
    locked: str | None,
    threads: int,
    workdir: Path,
    reporter: Reporter,
    seed: int = 0,
) -> tuple[Candidate, ...]:
    """Return every candidate with its verdict; exactly one is `chosen`.

    A candidate is made by passes, loaded, and compared with the original on samples that no
    calibration saw, or on synthetic ones where there is no data. It has `drifted` when

    - its cosine is below `compression.min_cosine`, or
    - at least 20 rows of real data were compared and their top-1 agreement is below
      `compression.min_agreement`, or
    - the model has no float output, and any answer changed.

    Where this machine could be the target it is then timed against the original, and is `slower`
    unless it wins with a confidence of 0.95. Of those that pass, the fastest is chosen; among
    candidates within a tenth of its speed, the one nearest to the original. Elsewhere nothing is
    timed (`latency: unmeasured`), and the first of the target's `precisions` that passed is taken.

    Args:
        model: The original. An already quantized one is passed through as it came.
        target: Its scheme, limits and preferences.
        samples: Data as the model itself takes it (`passes.image.prepare`); None for none.
        compression: What the recipe allows. A precision it names must keep the limits; being slower
            is then only said.
        locked: The name of the candidate that an earlier build chose; it is made alone, held to the
            limits and not timed.
        threads: Intra-op threads of the engine; 0 for one per core.
        workdir: A folder that is ours; every candidate's file stays there.
        reporter: Is told what happens.
        seed: For synthetic inputs.

    Raises:
        BudgetMissed: the precision asked for, or locked, does not keep the limits.
        UsageError: it needs data that is not there, or is unknown.
    """
    if model.quantized:
        return (_as_it_came(model, workdir, reporter),)
    asked = locked or compression.precision
    tried = [form for form in forms(compression) if _is_tried(form, compression, locked)]
    if not tried:
        names = [form.name for form in forms(compression)]
        raise UsageError(f"there is no candidate `{locked}`", accepted=", ".join(names))
    forced = asked not in ("auto", PLAIN)
    if forced and samples is None and all(f.needs_samples for f in tried if f.name != PLAIN):
        raise UsageError(f"`{asked}` needs calibration data", hint="give a folder with `-c FOLDER`")
    untimed = "" if is_this_machine(target) else "latency: unmeasured"
    if locked is not None:
        untimed = "locked, not timed again"
    judge = Judge(
        model=model, target=target, data=samples, compression=compression, threads=threads,
        workdir=workdir, reporter=reporter, seed=seed,
        untimed=untimed,
    )  # fmt: skip
    if samples is None:
        reporter.note("there is no data: candidates are compared on synthetic inputs")
    elif judge.compared_rows < ENOUGH_ROWS:
        reporter.note(
            f"only {judge.compared_rows} samples are left to compare on: their top-1 agreement is "
            f"shown, and enforced from {ENOUGH_ROWS} on"
        )
    candidates = []
    for form in tried:
        reporter.stage(f"try {form.name}")
        candidate = judge.judge(form, forced=forced)
        if form.variant and candidate.verdict == "skipped" and locked is None:
            continue
        reporter.note(describe(candidate))
        candidates.append(candidate)
    best = _best(candidates, tried, target, asked)
    if best is None:
        reasons = "; ".join(c.reason for c in candidates if c.name != PLAIN or asked == PLAIN)
        raise BudgetMissed(
            f"`{asked}` does not keep the limits: {reasons}\n" + "\n".join(as_table(candidates)),
            hint="give more calibration data, or leave the choice open with `--precision auto`",
        )
    return tuple(
        dataclasses.replace(c, verdict="chosen", reason=_why(c)) if c is best else c
        for c in candidates
    )


def as_table(candidates: Sequence[Candidate]) -> list[str]:
    """Return the candidates as lines of aligned columns."""
    rows = [("candidate", "size", "cosine", "agreement", "speed-up", "verdict", "reason")]
    for c in candidates:
        agreement = c.parity.top1_agreement if c.parity else None
        rows.append((
            c.name,
            human_size(c.size_bytes) if c.path else "-",
            f"{c.parity.cosine:.4f}" if c.parity else "-",
            f"{agreement:.1%}" if agreement is not None else "-",
            f"{c.latency.speedup:.2f} ×" if c.latency else "-",
            c.verdict,
            c.reason,
        ))  # fmt: skip
    return table(rows)


def _is_tried(form: Form, compression: Compression, locked: str | None) -> bool:
    if locked is not None:
        return form.name == locked
    return form.name == PLAIN or form.asked_by(compression.precision)


def _best(
    candidates: Sequence[Candidate], tried: Sequence[Form], target: Target, asked: str
) -> Candidate | None:
    form = {form.name: form for form in tried}
    passed = [c for c in candidates if c.verdict == "passed"]
    compressed = [c for c in passed if c.name != PLAIN]
    plain = next((c for c in passed if c.name == PLAIN), None)
    if asked == PLAIN:
        return plain
    if asked != "auto":
        # Asked for by name: slower is said, not refused.
        kept = compressed or [c for c in candidates if c.verdict == "slower" and c.name != PLAIN]
        return _nearest_of_fastest(kept, form)
    timed = [c for c in compressed if c.latency is not None]
    if timed:
        return _nearest_of_fastest(timed, form)
    for wanted in target.precisions:
        if wanted == PLAIN:
            return plain
        group = [c for c in compressed if form[c.name].precision.startswith(wanted)]
        if group:
            return _nearest_of_fastest(group, form)
    return plain


def _nearest_of_fastest(
    candidates: Sequence[Candidate], form: Mapping[str, Form]
) -> Candidate | None:
    if not candidates:
        return None
    if all(c.latency is not None for c in candidates):
        speeds = {c.name: c.latency.speedup for c in candidates if c.latency is not None}
        limit = max(speeds.values()) * _SAME_SPEED
        fastest = [c for c in candidates if speeds[c.name] >= limit]
    else:
        rank = min(form[c.name].rank for c in candidates)
        fastest = [c for c in candidates if form[c.name].rank == rank]
    return max(fastest, key=lambda c: c.parity.cosine if c.parity is not None else 0.0)


def _why(candidate: Candidate) -> str:
    if candidate.verdict == "slower":
        return f"asked for by name, though it has {candidate.reason}"
    return candidate.reason


def _as_it_came(model: Model, workdir: Path, reporter: Reporter) -> Candidate:
    path = workdir / f"{AS_IT_CAME}.onnx"
    shutil.copyfile(model.path, path)
    reporter.note("the model came in quantized: it passes through as it came")
    return Candidate(
        name=AS_IT_CAME,
        path=path,
        size_bytes=path.stat().st_size,
        verdict="chosen",
        reason="the model came in quantized and passes through as it came",
    )
