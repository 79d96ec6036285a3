"""Compares a candidate's outputs with the original's: distance, cosine and top-1 agreement."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from packager.artifact import Parity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Outputs = Mapping[str, NDArray[Any]]

# Below, the direction of one sample's output says little (a scalar's cosine is always 1 or -1), so
# the cosine is taken over all samples as one vector.
_FEW_ELEMENTS: Final = 8


def compare(expected: Iterable[Outputs], got: Iterable[Outputs]) -> Parity:
    """Compare two sequences of outputs, sample by sample, holding one pair at a time.

    A sample that `contradiction` objects to makes the result `max_abs` infinite and `cosine` 0.
    Top-1 agreement counts rows of float outputs of shape [n, classes] with at least two classes,
    unless all rows are unit vectors (embeddings, whose largest element means nothing); with several
    such outputs the worst counts.

    Raises:
        ValueError: the sequences differ in length, or are empty.
    """
    import numpy as np

    cosines: dict[str, list[float]] = {}
    short: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    rows: dict[str, list[tuple[int, int]]] = {}
    unit: dict[str, bool] = {}
    samples, max_abs, exact, broken = 0, 0.0, True, False
    for want, have in zip(expected, got, strict=True):
        samples += 1
        if contradiction(want, have) is not None:
            broken = True
            continue
        for name, reference in want.items():
            if not is_float(reference):
                exact = exact and np.array_equal(reference, have[name])
                continue
            a, b = _finite_pair(reference, have[name])
            if a.size == 0:
                continue
            max_abs = max(max_abs, float(np.abs(a - b).max()))
            if a.size < _FEW_ELEMENTS:
                short.setdefault(name, []).append((a, b))
            else:
                cosines.setdefault(name, []).append(cosine_similarity(a, b))
            if reference.ndim == 2 and reference.shape[1] >= 2:
                same = np.argmax(reference, axis=1) == np.argmax(have[name], axis=1)
                rows.setdefault(name, []).append((int(same.sum()), len(same)))
                unit[name] = unit.get(name, True) and _unit_rows(reference)
    if samples == 0:
        raise ValueError("nothing to compare")
    for name, pairs in short.items():
        a, b = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        cosines.setdefault(name, []).append(cosine_similarity(a, b))
    shares = [
        sum(same for same, _ in counts) / sum(total for _, total in counts)
        for name, counts in rows.items()
        if not unit[name]
    ]
    return Parity(
        samples=samples,
        max_abs=math.inf if broken else max_abs,
        cosine=0.0 if broken else min((sum(c) / len(c) for c in cosines.values()), default=1.0),
        top1_agreement=min(shares, default=None),
        exact=exact and not broken,
    )


def contradiction(expected: Outputs, got: Outputs) -> str | None:
    """Return why two outputs cannot be compared as numbers, or None.

    A name, dtype or shape that differs, or a NaN or infinity where the original has another value.
    """
    import numpy as np

    for name, reference in expected.items():
        if name not in got:
            return f"the output `{name}` is missing"
        other = got[name]
        if reference.shape != other.shape:
            return f"`{name}` has the shape {list(other.shape)}, not {list(reference.shape)}"
        if reference.dtype != other.dtype:
            return f"`{name}` is {other.dtype}, not {reference.dtype}"
        if not is_float(reference):
            continue
        wide_reference, wide_other = _wide(reference), _wide(other)
        bad = ~np.isfinite(wide_other)
        if not np.array_equal(wide_reference[bad], wide_other[bad], equal_nan=True):
            return f"`{name}` holds NaN or infinity where the original has numbers"
        if not np.isfinite(wide_reference[~bad]).all():
            return f"`{name}` holds numbers where the original has NaN or infinity"
    return None


def cosine_similarity(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the cosine of two vectors; 1 for two zero vectors, 0 for one."""
    import numpy as np

    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if norm_a == 0.0 or norm_b == 0.0:
        return float(norm_a == norm_b)
    return min(float(np.dot(a / norm_a, b / norm_b)), 1.0)


def is_float(array: NDArray[Any]) -> bool:
    """Tell whether an array holds floats; ml_dtypes' bfloat16, whose kind is `V`, included."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return array.astype(np.float64)


def _finite_pair(reference: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    import numpy as np

    a, b = _wide(reference).ravel(), _wide(other).ravel()
    finite = np.isfinite(a)
    return a[finite], b[finite]


def _unit_rows(reference: NDArray[Any]) -> bool:
    import numpy as np

    norms = np.linalg.norm(_wide(reference), axis=1)
    # A probability row has the length 1 only when one class takes all of it.
    return bool(np.allclose(norms, 1.0, atol=1e-3) and (reference < 0).any())
