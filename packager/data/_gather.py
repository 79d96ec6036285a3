"""Gathers checked samples, their names and labels into one Samples."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from packager.data._arrays import rows_of
from packager.data._files import MOST_SAMPLES
from packager.data._labels import Classes, settle_labels
from packager.data._samples import Samples
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from packager.model import Signature
    from packager.recipe import Recipe

    Sample = dict[str, NDArray[Any]]

# Below, nothing can be said of a metric.
_LEAST_LABELLED: Final = 2


class Gathering:
    """Samples under construction: each is hashed and forgotten, its loader is kept.

    Args:
        word: The source as the user typed it.
        signature: Of the model.
        recipe: Its inputs, label and metric.
        labelled: Labels must be there.
    """

    def __init__(self, word: str, signature: Signature, recipe: Recipe, *, labelled: bool) -> None:
        self.word = word
        self.signature = signature
        self.recipe = recipe
        self.labelled = labelled
        self.classes = Classes(signature, recipe)
        self._loaders: list[Callable[[], Sample]] = []
        self._names: list[str] = []
        self._contents: list[str] = []
        self._rows: list[int] = []
        self._labels: list[Any] = []
        self._changes: dict[str, int] = {}
        self._notes: list[str] = []

    def add(
        self,
        sample: Sample,
        load: Callable[[], Sample],
        *,
        name: str,
        label: Any = None,
        changes: Sequence[str] = (),
    ) -> None:
        """Add a sample that was read and checked, and what reads it again.

        Raises:
            UsageError: there are too many.
        """
        if len(self._loaders) == MOST_SAMPLES:
            raise UsageError(
                f"`{self.word}` holds more than {MOST_SAMPLES} samples",
                hint="a few hundred samples calibrate as well as a million",
            )
        self._loaders.append(load)
        self._names.append(name)
        self._contents.append(content_digest(sample))
        self._rows.append(rows_of(sample, self.signature))
        self._labels.append(label)
        for change in changes:
            self._changes[change] = self._changes.get(change, 0) + 1

    def note(self, text: str) -> None:
        """Keep something the user should know of the whole source."""
        self._notes.append(text)

    def label_all(self, labels: Sequence[Any] | None) -> None:
        """Set every sample's label, where they are found after the samples."""
        if labels is not None:
            self._labels = list(labels)

    def finish(self, *, kind: str, origin: str, noun: str = "samples") -> Samples:
        """Return the samples.

        Args:
            kind: As `Samples.kind`.
            origin: Where they came from, without any folder.
            noun: What is counted in notes about conversions.

        Raises:
            UsageError: there is none, too few of them are labelled, or the labels do not fit.
        """
        count = len(self._loaders)
        if not count:
            raise UsageError(f"`{self.word}` holds no samples")
        labels = self._settled()
        if self.labelled and count < _LEAST_LABELLED:
            raise UsageError(
                f"`{self.word}` holds one single sample to evaluate",
                accepted=f"{_LEAST_LABELLED} labelled samples at least, better some hundred",
            )
        notes = [f"{text} in {n} of {count} {noun}" for text, n in self._changes.items()]
        notes += self._notes
        if not self.labelled:
            notes += self._doubts(count)
        lines = [
            f"{content} {_label_digest(labels[index] if labels is not None else None)}\n"
            for index, content in enumerate(self._contents)
        ]
        return Samples(
            self._loaders,
            digest=hashlib.sha256("".join(lines).encode()).hexdigest(),
            origin=origin,
            kind=kind,
            notes=tuple(notes),
            labels=labels,
            names=self._names,
            contents=self._contents,
        )

    def _settled(self) -> tuple[Any, ...] | None:
        if all(label is None for label in self._labels):
            if self.labelled:
                raise UsageError(
                    f"`{self.word}` has no labels",
                    accepted=f"a column or an array `{self.recipe.label}`, a `labels.csv` with "
                    "the columns `file` and `label`, or sub-folders named by class",
                    hint='name the label with `label = "NAME"` in the recipe',
                )
            return None
        try:
            return settle_labels(self._labels, self._rows, self._names, self.classes)
        except UsageError as fault:
            if self.labelled:
                raise UsageError(
                    f"`{self.word}`: {fault.message}", accepted=fault.accepted, hint=fault.hint
                ) from fault
            self.note(f"labels were left out: {fault.message}")
            return None

    def _doubts(self, count: int) -> list[str]:
        if count == 1:
            return ["there is one single sample: what is found on it may not hold for others"]
        distinct = len(set(self._contents))
        if distinct == 1:
            return [f"all {count} samples are equal: nothing varies to find ranges on"]
        if distinct < count:
            return [f"{count - distinct} of {count} samples are copies of others"]
        return []


def content_digest(sample: Sample) -> str:
    """Return the SHA-256 of a sample's arrays: names, dtypes, shapes and bytes."""
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(sample):
        array = np.ascontiguousarray(sample[name])
        digest.update(f"{name} {array.dtype.str} {sample[name].shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _label_digest(label: Any) -> str:
    import numpy as np

    if label is None:
        return "-"
    if isinstance(label, dict):
        return content_digest({key: np.asarray(value) for key, value in label.items()})
    return content_digest({"label": np.asarray(label)})
