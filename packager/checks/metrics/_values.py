"""Metrics of numbers: cosine, mean squared error, correlations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.checks.metrics._contract import Measured
from packager.checks.metrics._ranks import correlation, midranks
from packager.checks.metrics._reading import (
    finite,
    need_labels,
    numbers,
    pick,
    same_rows,
    with_labels,
)
from packager.checks.parity import cosine_similarity
from packager.errors import ModelUnsupported, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from packager.checks.metrics._reading import Described, Outputs
    from packager.model import Signature

# Shorter rows say nothing by their direction: a scalar's cosine is always 1 or -1.
_FEW_ELEMENTS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """The mean cosine similarity of rows with the original's.

    Of rows with fewer than 8 elements the cosine is taken over all rows as one vector.
    """

    output: str = ""
    name: str = "cosine"
    higher_is_better: bool = True
    needs_labels: bool = False
    unit: str = "value"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model without float outputs."""
        del labels
        _pick_float(signature, self.name, self.output)

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return the mean cosine, in -1..1."""
        import numpy as np

        del labels
        cosines: list[float] = []
        short: list[tuple[NDArray[Any], NDArray[Any]]] = []
        for have, want in _pairs(self.name, self.output, outputs, references):
            if want.shape[1] < _FEW_ELEMENTS:
                short.append((have.ravel(), want.ravel()))
            else:
                cosines += map(cosine_similarity, have, want)
        rows = len(cosines) + sum(len(want) for _, want in short)
        if short:
            cosines.append(
                cosine_similarity(*(np.concatenate([p[side] for p in short]) for side in (0, 1)))
            )
        return Measured(value=_mean(self.name, cosines), rows=rows)


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError:
    """The mean squared difference of every element, from the labels or from the original.

    Attributes:
        needs_labels: Compare with labels; else with the original's outputs.
    """

    name: str
    needs_labels: bool
    output: str = ""
    higher_is_better: bool = False
    unit: str = "value"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model without float outputs, and labels that are no numbers."""
        _pick_float(signature, self.name, self.output)
        if self.needs_labels:
            for label in need_labels(self.name, labels):
                numbers(self.name, label)

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return the mean of the squares."""
        pairs = (
            _labelled(self.name, self.output, outputs, labels)
            if self.needs_labels
            else _pairs(self.name, self.output, outputs, references)
        )
        total, elements, rows = 0.0, 0, 0
        for have, want in pairs:
            total += float(((have - want) ** 2).sum())
            elements += want.size
            rows += len(want)
        if elements == 0:
            raise _nothing(self.name)
        return Measured(value=total / elements, rows=rows)


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """How the order (Spearman) or the size (Pearson) of the answers follows the labels.

    An output of one number a row is compared with the labels. An output of a vector a row is an
    embedding: rows 2i and 2i + 1 of a sample, or of two samples of one row, are a pair, and their
    cosine similarity is compared with the pair's label (one label a pair, or the same one twice).

    Attributes:
        ranks: Spearman's: compare midranks instead of values.
    """

    name: str
    ranks: bool
    output: str = ""
    higher_is_better: bool = True
    needs_labels: bool = True
    unit: str = "value"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model without an output of one number or vector a row, and constant labels."""
        import numpy as np

        self._pick(signature)
        wanted = [numbers(self.name, x).ravel() for x in need_labels(self.name, labels)]
        self._refuse_constant(np.concatenate(wanted))

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return the correlation, in -1..1."""
        import numpy as np

        del references
        answers, wanted, name = [], [], self.output
        for answer, label in with_labels(self.name, outputs, labels):
            name = self._pick(answer).name
            rows = finite(self.name, name, answer[name])
            answers.append(rows.reshape(len(rows), -1))
            wanted.append(numbers(self.name, label).ravel())
        values, target = np.concatenate(answers), np.concatenate(wanted)
        if values.shape[1] > 1:
            values, target = self._pairwise(values, target)
        values = values.ravel()
        same_rows(self.name, len(values), len(target))
        self._refuse_constant(target)
        if self.ranks:
            values, target = midranks(values), midranks(target)
        found = correlation(values, target)
        if found is None:
            raise ModelUnsupported(
                f"`{self.name}` has no value: the output `{name}` is the same for every row"
            )
        return Measured(value=found, rows=len(target))

    def _pairwise(
        self, vectors: NDArray[Any], target: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        import numpy as np

        if len(vectors) % 2:
            raise UsageError(
                f"`{self.name}` of embeddings compares pairs, and there are {len(vectors)} rows",
                accepted="an even number of rows, the two of a pair after each other",
            )
        if len(target) == len(vectors):
            odd = np.flatnonzero(target[0::2] != target[1::2])
            if len(odd):
                row = 2 * int(odd[0])
                raise UsageError(
                    f"rows {row} and {row + 1} are a pair for `{self.name}`, but their labels are"
                    f" {target[row]:g} and {target[row + 1]:g}"
                )
            target = target[0::2]
        pairs = zip(vectors[0::2], vectors[1::2], strict=True)
        return np.array([cosine_similarity(a, b) for a, b in pairs]), target

    def _refuse_constant(self, target: NDArray[Any]) -> None:
        if len(target) == 0 or (target == target[0]).all():
            raise UsageError(
                f"`{self.name}` is undefined: every label is the same",
                accepted="labels of at least two values",
            )

    def _pick(self, source: Signature | Outputs) -> Described:
        needs = "a float output [batch], [batch, 1], or an embedding [batch, size]"
        fits = (lambda d: d.kind == "float" and d.rank in (1, 2),)
        return pick(source, metric=self.name, wanted=self.output, fits=fits, needs=needs)


def _pick_float(source: Signature | Outputs, metric: str, output: str) -> str:
    fits = (lambda d: d.kind == "float",)
    return pick(source, metric=metric, wanted=output, fits=fits, needs="a float output").name


def _pairs(
    metric: str, output: str, outputs: Iterable[Outputs], references: Iterable[Outputs]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for answer, reference in zip(outputs, references, strict=True):
        name = _pick_float(reference, metric, output)
        if answer[name].shape != reference[name].shape:
            raise ModelUnsupported(
                f"`{metric}` has no value: `{name}` has the shape {list(answer[name].shape)},"
                f" not {list(reference[name].shape)} as the original's"
            )
        yield (
            _rows(finite(metric, name, answer[name])),
            _rows(finite(metric, name, reference[name])),
        )


def _labelled(
    metric: str, output: str, outputs: Iterable[Outputs], labels: Sequence[Any] | None
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for answer, label in with_labels(metric, outputs, labels):
        name = _pick_float(answer, metric, output)
        have, want = _rows(finite(metric, name, answer[name])), _rows(numbers(metric, label))
        if have.shape != want.shape:
            raise UsageError(
                f"`{metric}` got labels of the shape {list(want.shape)} for `{name}`, which is"
                f" {list(have.shape)}"
            )
        yield have, want


def _rows(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 0:
        return array.reshape(1, 1)
    return array.reshape(len(array), -1)


def _mean(metric: str, values: Sequence[float]) -> float:
    if not values:
        raise _nothing(metric)
    return sum(values) / len(values)


def _nothing(metric: str) -> UsageError:
    return UsageError(f"`{metric}` has nothing to measure: the evaluation data is empty")
