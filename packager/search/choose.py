"""Tries the forms of a model and chooses the best that keeps the budget."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any, Final

from packager.artifact import Candidate
from packager.checks.pairs import kept_pairs
from packager.search.fit import is_this_machine, may_lack_vnni
from packager.search.journal import Journal
from packager.search.large import UNTIMED, refuse_quantized
from packager.search.outcome import Outcome
from packager.search.setting import SearchData, Setting, metric_and_budget, split_data
from packager.search.trying import Search

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from packager.console import Reporter
    from packager.model import Model
    from packager.recipe import Compression
    from packager.target import Target

AS_IT_CAME: Final = "quantized"


def choose(
    model: Model,
    target: Target,
    data: SearchData,
    compression: Compression,
    *,
    locked: Mapping[str, Any] | None = None,
    threads: int,
    workdir: Path,
    reporter: Reporter,
    seed: int = 0,
) -> Outcome:
    """Return every candidate with its verdict; exactly one is `chosen`.

    A candidate is made by passes, loaded, and compared with the original on samples that no
    calibration saw, or on made-up ones where there is no data. It has `drifted` when

    - a metric is named and falls by more than its budget on the first half of the evaluation data,
      or no metric is named and neither its top-1 agreement reaches 0.99 nor its cosine
      `compression.min_cosine`; or
    - at least 20 rows of real data were compared and their top-1 agreement is below
      `compression.min_agreement`; or
    - the model has no float output, and any answer changed.

    Where this machine could be the target, each is timed against the original in alternating runs,
    and is `slower` unless it wins with a confidence of 0.95 (objective `latency`), or `larger`
    where size counts and it gains none. Elsewhere nothing is timed (`latency: unmeasured`). Where
    static int8 misses the budget, layers go back to float (`search.mixed`). Of a model over 2 GB
    only forms made weight by weight are tried (`search.large`), untimed. The choice among those
    that pass is made on one half of the evaluation data; each must keep the budget on the other
    half as well.

    At most 20 candidates answer a whole set of samples. What was judged is kept in `workdir`: a
    search that was interrupted goes on there.

    Args:
        model: The original. An already quantized one is passed through as it came.
        target: Its scheme, limits and preferences.
        data: Samples as the model itself takes them, labels, post-processing.
        compression: Precision, objective, metric, budget, limits.
        locked: What an earlier build chose; it is made alone, held to the limits and not timed.
        threads: Intra-op threads of the engine; 0 for one per core.
        workdir: A folder that is ours; every candidate's file stays there.
        reporter: Is told what happens.
        seed: For made-up inputs and the halves of the evaluation data.

    Raises:
        BudgetMissed: the precision asked for, or locked, does not keep the budget.
        UsageError: it needs data that is not there, or is unknown; or a budget that is finer than
            one sample.
    """
    began = time.monotonic()
    if model.quantized:
        refuse_quantized(model)
        candidate = _as_it_came(model, target, workdir, reporter)
        return Outcome(candidates=(candidate,), lock={"precision": AS_IT_CAME})
    metric, max_drop = metric_and_budget(compression, model, data)
    untimed = "" if is_this_machine(target) else "latency: unmeasured"
    untimed = UNTIMED if model.large else untimed
    setting = Setting(
        model=model, target=target, compression=compression, data=data,
        **split_data(model, data, seed),
        metric=metric, max_drop=max_drop, threads=threads, workdir=workdir, reporter=reporter,
        seed=seed, untimed="locked, not timed again" if locked is not None else untimed,
        deadline=began + compression.time_budget_s,
    )  # fmt: skip
    search = Search(setting, Journal(workdir))
    chosen = search.repeat(locked) if locked is not None else search.run()
    return search.outcome(chosen, began=began)


def _as_it_came(model: Model, target: Target, workdir: Path, reporter: Reporter) -> Candidate:
    path = workdir / f"{AS_IT_CAME}.onnx"
    shutil.copyfile(model.path, path)
    reporter.note("the model came in quantized: it passes through as it came")
    if may_lack_vnni(target) and kept_pairs(path) == "saturating":
        reporter.note(
            "its weights take the full range of int8, whose products saturate on processors "
            "without VNNI: those run it in float, at float's speed"
        )
    return Candidate(
        name=AS_IT_CAME,
        path=path,
        size_bytes=path.stat().st_size,
        verdict="chosen",
        reason="the model came in quantized and passes through as it came",
    )
