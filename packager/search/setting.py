"""What the verdicts on one model and target have in common: data, metric, budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.data import synthetic
from packager.errors import UsageError
from packager.search.answers import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.checks.metrics import Metric
    from packager.console import Reporter
    from packager.data import Samples
    from packager.model import Model, Signature
    from packager.recipe import Compression, Drop
    from packager.target import Target

    Sample = dict[str, NDArray[Any]]

HOLDOUT: Final = 0.3
MOST_CALIBRATION: Final = 256
MOST_COMPARISON: Final = 256
MADE_UP_SAMPLES: Final = 8


@dataclass(frozen=True, kw_only=True)
class SearchData:
    """What the search has to look at.

    Attributes:
        calibration: As the model itself takes it (`passes.inputs.prepare`); None for none.
        evaluation: The same with labels, for the metric; None for none.
        finish: The recipe's post-processing, which the metric sees the outputs after.
        outputs: The signature after it; None for the model's own.
        alphabet: Names of the classes, for metrics that read text.
        sources: Other models that training made of this one, by name.
        made_up: Inputs to compare on where there is no data; None for `data.synthetic`.
    """

    calibration: Samples | None = None
    evaluation: Samples | None = None
    finish: Callable[[Sample], Sample] | None = None
    outputs: Signature | None = None
    alphabet: tuple[str, ...] = ()
    sources: Mapping[str, Path] = field(default_factory=dict)
    made_up: Samples | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything the verdicts on one model and target have in common.

    Attributes:
        model: The original.
        data: What the user gave.
        calibration: Samples that ranges and roundings are found on; None for none.
        comparison: Samples that candidates are compared with the original on.
        confirmation: Samples that only the candidates to be chosen are held to; None for none.
        real: The samples are the user's, not made up.
        metric: What the budget is in; None where agreement and cosine decide.
        max_drop: The budget, where there is a metric.
        untimed: Why nothing is timed; empty where candidates are timed.
        deadline: On the clock of `time.monotonic`: no further candidate is begun after it.
    """

    model: Model
    target: Target
    compression: Compression
    data: SearchData
    calibration: Samples | None
    comparison: Samples
    confirmation: Samples | None
    real: bool
    metric: Metric | None
    max_drop: Drop | None
    threads: int
    workdir: Path
    reporter: Reporter
    seed: int
    untimed: str
    deadline: float = float("inf")

    @property
    def calibrated_rows(self) -> int:
        """Return how many samples there are to calibrate on; of a single one, its rows."""
        if self.calibration is None or len(self.calibration) != 1:
            return len(self.calibration or ())
        return rows_of(self.calibration[0])

    @property
    def over(self) -> bool:
        """Tell whether the time budget is spent."""
        return time.monotonic() > self.deadline


def split_data(model: Model, data: SearchData, seed: int) -> dict[str, Any]:
    """Return the fields of a Setting that say which sample is used for what.

    Where evaluation data is given, one half of it decides and the other confirms; the calibration
    data is used whole. Else a part of the calibration data is held out for the comparison.
    """
    calibration, evaluation = data.calibration, data.evaluation
    if evaluation is not None:
        from packager.data import split_halves

        choose, confirm = split_halves(evaluation, seed)
        parts: dict[str, Any] = {
            "calibration": calibration.spread(MOST_CALIBRATION)
            if calibration is not None
            else None,
            "comparison": choose,
            "confirmation": confirm,
        }
        return {**parts, "real": True}
    if calibration is None:
        made_up = data.made_up or synthetic(model.signature, MADE_UP_SAMPLES, seed)
        return {"calibration": None, "comparison": made_up, "confirmation": None, "real": False}
    part, held_out = calibration.split(HOLDOUT)
    return {
        "calibration": part.spread(MOST_CALIBRATION),
        "comparison": held_out.spread(MOST_COMPARISON),
        "confirmation": None,
        "real": calibration.kind != "random",
    }


def metric_and_budget(
    compression: Compression, model: Model, data: SearchData
) -> tuple[Metric | None, Drop | None]:
    """Return the metric and its budget; (None, None) where agreement and cosine decide.

    Raises:
        UsageError: no data for the metric, or labels that do not fit the model.
    """
    from packager.checks.metrics import find_metric
    from packager.recipe import Drop

    evaluation = data.evaluation
    labels = evaluation.labels if evaluation is not None else None
    word = compression.metric
    if not word and (compression.max_drop is not None or labels is not None):
        word = "top1" if labels is not None else "agreement"
    if not word:
        return None, None
    metric = find_metric(word, alphabet=data.alphabet)
    if evaluation is None and metric.needs_labels:
        raise UsageError(
            f"`{word}` needs labelled data", hint="give it with `--eval DATA`, or leave it out"
        )
    if evaluation is None and data.calibration is None:
        raise UsageError(
            f"`{word}` cannot be measured without data",
            hint="give some with `--eval DATA` or `-c DATA`",
        )
    metric.check(data.outputs or model.signature, labels)
    return metric, compression.max_drop or Drop(value=0.01)
