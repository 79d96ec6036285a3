"""Ranks with ties, and what is made of them: the area under the curve, correlations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def midranks(values: NDArray[Any]) -> NDArray[Any]:
    """Return the rank of each value from 1; equal values share the mean of their ranks."""
    import numpy as np

    _, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[Any] = (last - (counts - 1) / 2)[positions]
    return ranks


def area_under_curve(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    """Return the chance that a positive scores above a negative, a tie counting half.

    It is the Mann-Whitney statistic over the number of pairs (Hanley and McNeil 1982).

    Args:
        scores: Float [n].
        positive: Bool [n], with both values in it.
    """
    first = int(positive.sum())
    pairs = first * (len(positive) - first)
    return float((midranks(scores)[positive].sum() - first * (first + 1) / 2) / pairs)


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Return Pearson's correlation of two vectors; None where one of them is constant."""
    import numpy as np

    a, b = a - a.mean(), b - b.mean()
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if norms == 0:
        return None
    return max(-1.0, min(1.0, float(np.dot(a, b)) / norms))
