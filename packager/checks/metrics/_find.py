"""Finds a metric by the user's word."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

from packager.checks.metrics._boxes import AveragePrecision, BoxF1
from packager.checks.metrics._classes import Agreement, AreaUnderCurve, TopK
from packager.checks.metrics._function import TIMEOUT_S, find_function
from packager.checks.metrics._texts import ErrorRate
from packager.checks.metrics._values import Correlation, Cosine, MeanSquaredError
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from packager.checks.metrics._contract import Metric

_OVERLAPS: Final = tuple(0.5 + 0.05 * step for step in range(10))

METRICS: Final = (
    "top1", "top5", "agreement", "auc", "cosine", "mse", "mse-original", "spearman", "pearson",
    "map", "map50", "f1", "wer", "cer",
)  # fmt: skip
_FIXED_OUTPUTS: Final = ("map", "map50", "f1")


def find_metric(word: str, *, alphabet: Sequence[str] = (), timeout_s: float = TIMEOUT_S) -> Metric:
    """Return the metric that a word names.

    Args:
        word: One of METRICS, with `:OUTPUT` behind it to read another than the first output that
            fits; or `file.py:function`.
        alphabet: The text of each class number, for `wer` and `cer`.
        timeout_s: How long one call of the user's function may take.

    Raises:
        UsageError: there is no such metric, or the user's file or function cannot be loaded.
    """
    name, colon, output = word.partition(":")
    if word.rpartition(":")[0].endswith(".py"):
        return find_function(word, timeout_s=timeout_s)
    if name not in METRICS or (colon and not output):
        close = difflib.get_close_matches(name, METRICS, 1)
        raise UsageError(
            f"there is no metric `{word}`",
            accepted="one of " + ", ".join(METRICS) + ", or `file.py:function`",
            hint=f"did you mean `{close[0]}`?" if close else None,
        )
    if output and name in _FIXED_OUTPUTS:
        raise UsageError(f"`{name}` reads decoded boxes and takes no output's name", hint=name)
    makers: dict[str, Callable[[], Metric]] = {
        "top1": lambda: TopK(name=name, k=1, output=output),
        "top5": lambda: TopK(name=name, k=5, output=output),
        "agreement": lambda: Agreement(output=output),
        "auc": lambda: AreaUnderCurve(output=output),
        "cosine": lambda: Cosine(output=output),
        "mse": lambda: MeanSquaredError(name=name, needs_labels=True, output=output),
        "mse-original": lambda: MeanSquaredError(name=name, needs_labels=False, output=output),
        "spearman": lambda: Correlation(name=name, ranks=True, output=output),
        "pearson": lambda: Correlation(name=name, ranks=False, output=output),
        "map": lambda: AveragePrecision(name=name, overlaps=_OVERLAPS),
        "map50": lambda: AveragePrecision(name=name, overlaps=(0.5,)),
        "f1": BoxF1,
        "wer": lambda: ErrorRate(name=name, words=True, alphabet=tuple(alphabet), output=output),
        "cer": lambda: ErrorRate(name=name, words=False, alphabet=tuple(alphabet), output=output),
    }
    return makers[name]()
