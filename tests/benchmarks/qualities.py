"""How near a model's answers are to another's, and to what is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Sample = dict[str, np.ndarray]


def first_output(answer: Sample) -> np.ndarray:
    """Return the first output."""
    return next(iter(answer.values()))


def top_classes(answers: Sequence[Sample]) -> np.ndarray:
    """Return the class with the largest score, per sample."""
    return np.array([int(first_output(answer)[0].argmax()) for answer in answers])


def worst_cosines(expected: Sequence[Sample], got: Sequence[Sample]) -> list[float]:
    """Return per sample the cosine of the output that differs most."""
    found = []
    for want, have in zip(expected, got, strict=False):
        pairs = [(want[n].ravel().astype(float), have[n].ravel().astype(float)) for n in want]
        found.append(
            min(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)) for a, b in pairs)
        )
    return found


def rank_correlation(
    vectors: Sequence[Sample], pairs: Sequence[int], ratings: Sequence[float]
) -> float:
    """Return Spearman's correlation of the pairs' cosines with what people said."""
    rows = [first_output(vectors[i])[0].astype(float) for i in pairs]
    rows = [row / np.linalg.norm(row) for row in rows]
    similar = [float(a @ b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    return float(np.corrcoef(_ranks(similar), _ranks(ratings))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse])
