"""Metrics of boxes: mean average precision as COCO counts it, and F1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.checks.metrics._contract import Measured
from packager.checks.metrics._reading import described, finite, need_labels, with_labels
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from packager.checks.metrics._reading import Outputs
    from packager.model import Signature

_OUTPUTS: Final = {"boxes": 2, "scores": 1, "classes": 1, "batch": 1}
# As pycocotools: the 100 best of each class in a photo.
_MOST: Final = 100
_RECALLS: Final = 101


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """The mean over classes and overlaps of the average precision (COCO, Lin et al. 2014).

    Precision is taken at 101 recalls, as the best at that recall or a higher one; each box is
    matched, best score first, with the free box of its class that it overlaps most. Classes
    without a labelled box do not count.

    Attributes:
        overlaps: The intersections over union that a match needs, each with equal weight.
    """

    name: str
    overlaps: tuple[float, ...]
    higher_is_better: bool = True
    needs_labels: bool = True
    unit: str = "value"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model that gives no boxes, and labels that are none."""
        _check(self.name, signature, labels)

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return the mean average precision, in 0..1."""
        import numpy as np

        del references
        tally = _tally(self.name, outputs, labels, self.overlaps)
        values = [
            _average_precision(tally.scores[c], tally.matched[c], wanted)
            for c, wanted in sorted(tally.wanted.items())
            if wanted
        ]
        return Measured(value=float(np.mean(values)), rows=tally.photos)


@dataclass(frozen=True, kw_only=True)
class BoxF1:
    """The F1 of every box that the recipe's `min_score` lets through, at an overlap of 0.5.

    Hits, false alarms and misses are counted over all classes together.
    """

    name: str = "f1"
    higher_is_better: bool = True
    needs_labels: bool = True
    unit: str = "value"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model that gives no boxes, and labels that are none."""
        _check(self.name, signature, labels)

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return 2 hits / (2 hits + false alarms + misses), in 0..1."""
        del references
        tally = _tally(self.name, outputs, labels, (0.5,), most=None)
        hits = sum(int(m.sum()) for rows in tally.matched.values() for m in rows)
        given = sum(len(s) for rows in tally.scores.values() for s in rows)
        return Measured(value=2 * hits / (given + sum(tally.wanted.values())), rows=tally.photos)


@dataclass
class _Tally:
    """Per class: scores [n] and matches bool [overlaps, n] of each photo, and labelled boxes."""

    photos: int = 0
    wanted: dict[int, int] = field(default_factory=dict)
    scores: dict[int, list[NDArray[Any]]] = field(default_factory=dict)
    matched: dict[int, list[NDArray[Any]]] = field(default_factory=dict)


def overlap(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return intersection over union float64 [n, m] of boxes (x1, y1, x2, y2); 0 for empty ones."""
    import numpy as np

    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    shares: NDArray[Any] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return shares


def _check(metric: str, signature: Signature, labels: Sequence[Any] | None) -> None:
    _need_outputs(metric, signature)
    if not sum(len(b) for x in need_labels(metric, labels) for b, _ in _photos(metric, x)):
        raise _no_boxes(metric)


def _need_outputs(metric: str, source: Signature | Outputs) -> None:
    found = {output.name: output.rank for output in described(source)}
    missing = [name for name, rank in _OUTPUTS.items() if found.get(name) != rank]
    if missing:
        raise UsageError(
            f"`{metric}` needs decoded boxes, and the model's outputs are "
            + ", ".join(f"`{name}`" for name in found),
            accepted="`boxes` [n, 4], `scores` [n], `classes` [n] and `batch` [n]",
            hint="`[boxes]` in the recipe decodes them",
        )


def _photos(metric: str, label: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Give (boxes float64 [n, 4], classes int64 [n]) of each photo of one sample."""
    import numpy as np

    for photo in label if isinstance(label, list | tuple) else [label]:
        if not isinstance(photo, dict) or not {"boxes", "classes"} <= photo.keys():
            raise UsageError(
                f"`{metric}` needs boxes as labels",
                accepted="`boxes` [n, 4] as x1, y1, x2, y2 and `classes` [n] per photo",
            )
        boxes = np.asarray(photo["boxes"], np.float64).reshape(-1, 4)
        classes = np.asarray(photo["classes"]).reshape(-1)
        if len(boxes) != len(classes):
            raise UsageError(f"`{metric}` got {len(classes)} classes for {len(boxes)} boxes")
        if len(classes) and classes.dtype.kind not in "iu":
            raise UsageError(f"`{metric}` needs class numbers, not {classes.dtype}")
        if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
            raise UsageError(
                f"a labelled box for `{metric}` is no box", accepted="x1, y1, x2, y2 with x1 ≤ x2"
            )
        yield boxes, classes.astype(np.int64)


def _tally(
    metric: str,
    outputs: Iterable[Outputs],
    labels: Sequence[Any] | None,
    overlaps: tuple[float, ...],
    most: int | None = _MOST,
) -> _Tally:
    import numpy as np

    tally = _Tally()
    for answer, label in with_labels(metric, outputs, labels):
        _need_outputs(metric, answer)
        boxes = finite(metric, "boxes", answer["boxes"]).reshape(-1, 4)
        scores = finite(metric, "scores", answer["scores"])
        classes, batch = (answer[name].astype(np.int64) for name in ("classes", "batch"))
        photos = list(_photos(metric, label))
        if len(batch) and int(batch.max()) >= len(photos):
            raise UsageError(f"`{metric}` got labels of {len(photos)} photos for a batch of more")
        for index, (want, want_classes) in enumerate(photos):
            here = batch == index
            tally.photos += 1
            for c in np.union1d(classes[here], want_classes).tolist():
                mine = np.flatnonzero(here & (classes == c))
                mine = mine[np.argsort(-scores[mine], kind="stable")][:most]
                targets = want[want_classes == c]
                tally.wanted[c] = tally.wanted.get(c, 0) + len(targets)
                tally.scores.setdefault(c, []).append(scores[mine])
                tally.matched.setdefault(c, []).append(
                    np.stack([_match(overlap(boxes[mine], targets), t) for t in overlaps])
                )
    if not sum(tally.wanted.values()):
        raise _no_boxes(metric)
    return tally


def _match(overlaps: NDArray[Any], threshold: float) -> NDArray[Any]:
    """Tell which boxes, best score first, take a labelled box: bool [n] from overlaps [n, m]."""
    import numpy as np

    taken = np.zeros(overlaps.shape[1], bool)
    matched = np.zeros(len(overlaps), bool)
    for index, row in enumerate(overlaps):
        free = np.where(taken, -1.0, row)
        if free.size and free.max() >= threshold:
            # Of equal overlaps the last is taken, as pycocotools does.
            taken[len(free) - 1 - int(np.argmax(free[::-1]))] = matched[index] = True
    return matched


def _average_precision(
    scores: list[NDArray[Any]], matched: list[NDArray[Any]], wanted: int
) -> float:
    """Return the mean over overlaps of one class's average precision."""
    import numpy as np

    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.cumsum(np.concatenate(matched, axis=1)[:, order], axis=1)
    recalls = np.linspace(0, 1, _RECALLS)
    values = []
    for row in hits:
        precision = row / np.arange(1, len(row) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(row / wanted, recalls, side="left")
        values.append(float(np.append(best, 0.0)[np.minimum(places, len(best))].mean()))
    return float(np.mean(values))


def _no_boxes(metric: str) -> UsageError:
    return UsageError(f"`{metric}` is undefined: no photo has a labelled box")
