"""Finds the samples on which an artifact's answers differ most from the original's."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any, Final

from packager.checks.metrics._classes import is_scores, ranked_classes
from packager.checks.metrics._reading import described
from packager.checks.metrics._texts import decode
from packager.checks.parity import cosine_similarity, is_float

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Outputs = Mapping[str, NDArray[Any]]

_BOXES: Final = {"boxes", "scores", "classes", "batch"}
_SHOWN_CLASSES: Final = 3
_MOST_CHARACTERS: Final = 200


def most_different(
    expected: Iterable[Outputs],
    got: Iterable[Outputs],
    names: Iterable[str],
    *,
    count: int = 8,
    labels: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the samples whose outputs differ most, the worst first.

    A sample whose best class (or text) changed comes before all others; then the cosine distance
    decides, the largest of the float outputs'. Samples that are equal in everything are left out.

    Args:
        expected: The original's outputs, one dict per sample, after post-processing.
        got: The artifact's.
        names: Of the samples.
        count: How many to return at most.
        labels: Names of the classes, or the text of each class number of decoded texts.

    Returns:
        Per sample: `sample`, its name; `row`, its row that differs most; `distance`, 1 − cosine, in
        0..2; `changed`; `original` and `artifact`, the best classes as [label, score] in that row,
        a text as [text, null], empty where the model gives neither.

    Raises:
        ValueError: the sequences differ in length.
    """
    worst: list[tuple[bool, float, int, dict[str, Any]]] = []
    for index, (want, have, name) in enumerate(zip(expected, got, names, strict=True)):
        row, changed, distance = _worst_row(want, have)
        if not changed and distance <= 0:
            continue
        found = {
            "sample": name,
            "row": row,
            "distance": distance,
            "changed": changed,
            "original": _shown(want, row, labels),
            "artifact": _shown(have, row, labels),
        }
        # The index makes equal distances keep their order, and dicts are never compared.
        entry = (changed, distance, -index, found)
        if len(worst) < count:
            heapq.heappush(worst, entry)
        elif worst:
            heapq.heappushpop(worst, entry)
    return [found for *_, found in sorted(worst, key=lambda entry: entry[:3], reverse=True)]


def _worst_row(want: Outputs, have: Outputs) -> tuple[int, bool, float]:
    """Return the row that differs most, whether its best class changed, and by how much."""
    import numpy as np

    if want.keys() >= _BOXES:
        # Boxes of a photo are a list of any length, not rows.
        same = all(name in have and have[name].shape == want[name].shape for name in want)
        changed = not same or not (want["classes"] == have["classes"]).all()
        pairs = [(want[n].ravel(), have[n].ravel()) for n in ("boxes", "scores")] if same else []
        return 0, changed, max((_distance(a, b) for a, b in pairs), default=2.0)
    sizes = {len(array) if array.ndim else 1 for array in want.values()}
    count = sizes.pop() if len(sizes) == 1 else 1
    worst = (False, 0.0, 0)
    for row in range(count):
        changed, distance = False, 0.0
        for name, array in want.items():
            other = have.get(name)
            if other is None or other.shape != array.shape:
                return row, True, 2.0
            # A row of a rank-1 array of strings is no array by itself.
            parts = (np.asarray(x[row] if count > 1 or x.ndim > 1 else x) for x in (array, other))
            one_changed, one_distance = _compare(*parts, beside=ranked_classes(want, name))
            changed, distance = changed or one_changed, max(distance, one_distance)
        worst = max(worst, (changed, distance, -row))
    return -worst[2], worst[0], worst[1]


def _compare(
    want: NDArray[Any], have: NDArray[Any], *, beside: NDArray[Any] | None
) -> tuple[bool, float]:
    import numpy as np

    if not is_float(want):
        return not np.array_equal(want, have), 0.0
    classes = want.ndim == 1 and want.size >= 2 and beside is None and not _unit(want)
    changed = classes and int(np.argmax(want)) != int(np.argmax(have))
    return changed, _distance(want.ravel(), have.ravel())


def _distance(want: NDArray[Any], have: NDArray[Any]) -> float:
    import numpy as np

    a, b = want.astype(np.float64), have.astype(np.float64)
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 2.0
    return max(0.0, 1.0 - cosine_similarity(a, b))


def _shown(outputs: Outputs, row: int, labels: Sequence[str] | None) -> list[list[Any]]:
    import numpy as np

    if outputs.keys() >= _BOXES:
        best = np.argsort(-outputs["scores"], kind="stable")[:_SHOWN_CLASSES]
        return _pairs(outputs["classes"][best], outputs["scores"][best], labels)
    for found in described(outputs):
        array = outputs[found.name]
        if found.rank == 0 or len(array) <= row:
            continue
        if is_scores(found) and not _unit(array[row]):
            beside = ranked_classes(outputs, found.name)
            if beside is not None:
                return _pairs(beside[row][:_SHOWN_CLASSES], array[row][:_SHOWN_CLASSES], labels)
            best = np.argsort(-array[row].astype(np.float64), kind="stable")[:_SHOWN_CLASSES]
            return _pairs(best, array[row][best], labels)
        if found.kind == "string":
            return [[str(array.reshape(len(array), -1)[row, 0])[:_MOST_CHARACTERS], None]]
        if found.kind == "int" and found.rank == 1:
            return [[_label(int(array[row]), labels), None]]
        if found.kind == "int" and found.rank == 2 and labels and array.max() < len(labels):
            (text,) = decode(array[row : row + 1], labels, output=found.name)
            return [[text[:_MOST_CHARACTERS], None]]
    return []


def _pairs(
    numbers: NDArray[Any], scores: NDArray[Any], labels: Sequence[str] | None
) -> list[list[Any]]:
    return [
        [_label(int(number), labels), float(score) if math.isfinite(score) else None]
        for number, score in zip(numbers, scores, strict=True)
    ]


def _label(number: int, labels: Sequence[str] | None) -> str:
    return labels[number] if labels and 0 <= number < len(labels) else str(number)


def _unit(row: NDArray[Any]) -> bool:
    import numpy as np

    # The largest element of an embedding means nothing.
    length = float(np.linalg.norm(row.astype(np.float64)))
    return abs(length - 1.0) < 1e-3 and bool((row < 0).any())
