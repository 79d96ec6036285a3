"""Metrics of classes: top-k, agreement with the original, area under the curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.checks.metrics._contract import Measured
from packager.checks.metrics._ranks import area_under_curve
from packager.checks.metrics._reading import (
    class_numbers,
    described,
    finite,
    need_labels,
    pick,
    same_rows,
    with_labels,
)
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from packager.checks.metrics._reading import Described, Outputs
    from packager.model import Signature

_SCORES: Final = "scores [batch, classes] of at least two classes, or class numbers [batch]"
_CLASSES_SUFFIX: Final = "_classes"


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The share of rows whose label is among the k best classes; NaN scores are never right.

    Attributes:
        output: The output to read; empty for the first that holds scores, else class numbers.
    """

    name: str
    k: int
    output: str = ""
    higher_is_better: bool = True
    needs_labels: bool = True
    unit: str = "share"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model without scores of classes, and labels that are no class of it."""
        found = self._pick(signature)
        ranked = _ranked_beside(signature, found.name)
        size = (ranked or found).sizes[-1] if found.rank == 2 else None
        if size is not None and self.k > size:
            raise UsageError(
                f"`{self.name}` cannot be measured on the {size} classes of `{found.name}`",
                hint=f"`top_k = {self.k}` or more in the recipe" if ranked else None,
            )
        for label in need_labels(self.name, labels):
            _check_range(class_numbers(self.name, label), None if ranked else size, found.name)

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return the share of rows that are right."""
        del references
        right, rows = 0, 0
        for answer, label in with_labels(self.name, outputs, labels):
            found = self._pick(answer)
            best, classes = _best_classes(answer, found.name, self.k)
            wanted = class_numbers(self.name, label)
            same_rows(self.name, len(best), len(wanted))
            _check_range(wanted, classes, found.name)
            right += int((best == wanted[:, None]).any(axis=1).sum())
            rows += len(wanted)
        return share(self.name, right, rows)

    def _pick(self, source: Signature | Outputs) -> Described:
        fits = (is_scores, is_class_numbers) if self.k == 1 else (is_scores,)
        return pick(source, metric=self.name, wanted=self.output, fits=fits, needs=_SCORES)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The share of rows to which the original gives the same best class.

    Where the model gives no scores, two rows agree if they are equal in every element.
    """

    output: str = ""
    name: str = "agreement"
    higher_is_better: bool = True
    needs_labels: bool = False
    unit: str = "share"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model whose outputs have no best class and are no whole numbers or texts."""
        del labels
        self._pick(signature)

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return the share of rows that agree; a row whose scores hold NaN does not."""
        import numpy as np

        del labels
        same, rows = 0, 0
        for answer, reference in zip(outputs, references, strict=True):
            found = self._pick(reference)
            if is_scores(found):
                wanted, _ = _best_classes(reference, found.name, 1)
                best, _ = _best_classes(answer, found.name, 1)
            else:
                wanted, best = (
                    np.asarray(side[found.name]).reshape(len(side[found.name]), -1)
                    for side in (reference, answer)
                )
            rows += len(wanted)
            if best.shape == wanted.shape:
                same += int((best == wanted).all(axis=1).sum())
        return share(self.name, same, rows)

    def _pick(self, source: Signature | Outputs) -> Described:
        needs = "scores [batch, classes], class numbers or texts"
        fits = (is_scores, _is_exact)
        return pick(source, metric=self.name, wanted=self.output, fits=fits, needs=needs)


@dataclass(frozen=True, kw_only=True)
class AreaUnderCurve:
    """The area under the receiver operating characteristic, one class against the rest.

    Two classes: the score of class 1, as a column of its own or among two. More classes: the mean
    over the classes that the labels hold; scores outside 0..1 pass through a softmax first, since
    one class's logits alone do not rank rows.
    """

    output: str = ""
    name: str = "auc"
    higher_is_better: bool = True
    needs_labels: bool = True
    unit: str = "value"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model without scores, and labels of one class only."""
        found = self._pick(signature)
        size = found.sizes[-1] if found.rank == 2 else 1
        classes = None if size is None else max(size, 2)
        seen: set[int] = set()
        for label in need_labels(self.name, labels):
            numbers = class_numbers(self.name, label)
            _check_range(numbers, classes, found.name)
            seen.update(numbers.tolist())
        _need_two_classes(seen)

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return the area, in 0..1."""
        import numpy as np

        del references
        scores, wanted, name = [], [], ""
        for answer, label in with_labels(self.name, outputs, labels):
            name = self._pick(answer).name
            rows = finite(self.name, name, answer[name])
            wanted.append(class_numbers(self.name, label))
            scores.append(rows.reshape(len(rows), -1))
            same_rows(self.name, len(rows), len(wanted[-1]))
        every, classes = np.concatenate(scores), np.concatenate(wanted)
        _check_range(classes, max(every.shape[1], 2), name)
        seen = sorted(set(classes.tolist()))
        _need_two_classes(set(seen))
        every = _comparable(every)
        if every.shape[1] == 1:
            value = area_under_curve(every[:, 0], classes == 1)
        else:
            areas = [area_under_curve(every[:, c], classes == c) for c in seen]
            value = float(np.mean(areas))
        return Measured(value=value, rows=len(classes))

    def _pick(self, source: Signature | Outputs) -> Described:
        needs = "scores [batch], [batch, 1] or [batch, classes]"
        fits = (lambda d: d.kind == "float" and d.rank in (1, 2),)
        return pick(source, metric=self.name, wanted=self.output, fits=fits, needs=needs)


def is_scores(output: Described) -> bool:
    """Tell whether an output holds scores of at least two classes, a row each."""
    return output.kind == "float" and output.rank == 2 and output.sizes[1] not in (0, 1)


def is_class_numbers(output: Described) -> bool:
    """Tell whether an output holds one class number a row."""
    return output.kind == "int" and (output.rank == 1 or output.sizes[1:] == (1,))


def ranked_classes(answer: Outputs, output: str) -> NDArray[Any] | None:
    """Return the class numbers int64 [rows, k] beside scores that `top_k` replaced, best first."""
    beside = _ranked_beside(answer, output)
    return None if beside is None else answer[beside.name]


def share(metric: str, count: int, rows: int) -> Measured:
    """Return a share of rows with the step of one row.

    Raises:
        UsageError: there are no rows.
    """
    if rows == 0:
        raise UsageError(f"`{metric}` has nothing to measure: the evaluation data is empty")
    return Measured(value=count / rows, rows=rows, step=1 / rows)


def _is_exact(output: Described) -> bool:
    return output.kind in ("int", "bool", "string") and output.rank >= 1


def _ranked_beside(source: Signature | Outputs, output: str) -> Described | None:
    for other in described(source):
        if other.name == output + _CLASSES_SUFFIX and other.kind == "int" and other.rank == 2:
            return other
    return None


def _best_classes(answer: Outputs, output: str, k: int) -> tuple[NDArray[Any], int | None]:
    """Return the k best classes int64 [rows, k], best first, and how many classes there are.

    Of equal scores the lower class comes first. A row with NaN has the classes -1.
    """
    import numpy as np

    ranked = ranked_classes(answer, output)
    if ranked is not None:
        return ranked[:, :k].astype(np.int64), None
    scores = np.asarray(answer[output])
    if scores.dtype.kind in "iu":
        return scores.astype(np.int64).reshape(len(scores), -1)[:, :1], None
    scores = scores.astype(np.float64)
    if scores.shape[1] < k:
        raise UsageError(
            f"`top{k}` cannot be measured on the {scores.shape[1]} classes of `{output}`"
        )
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best[np.isnan(scores).any(axis=1)] = -1
    return best, scores.shape[1]


def _comparable(scores: NDArray[Any]) -> NDArray[Any]:
    """Return scores whose order over rows says how sure the model is of a class."""
    import numpy as np

    if scores.shape[1] == 1 or ((scores >= 0).all() and (scores <= 1).all()):
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    if scores.shape[1] == 2:
        # The difference ranks as the softmax does, without its rounding to 0 and 1.
        difference = scores[:, 1] - scores[:, 0]
        return np.stack([-difference, difference], axis=1)
    shares: NDArray[Any] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _check_range(numbers: NDArray[Any], classes: int | None, output: str) -> None:
    if len(numbers) == 0:
        return
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0:
        raise UsageError(f"the label {low} is no class number", accepted="integers from 0")
    if classes is not None and high >= classes:
        raise UsageError(
            f"the label {high} is outside the {classes} classes of `{output}`",
            accepted=f"0 to {classes - 1}",
            hint="labels that count from 1 must be shifted" if high == classes else None,
        )


def _need_two_classes(seen: set[int]) -> None:
    if len(seen) < 2:
        raise UsageError(
            f"`auc` is undefined: every label is {next(iter(seen))}" if seen else
            "`auc` is undefined without labels",
            accepted="labels of at least two classes",
        )  # fmt: skip
