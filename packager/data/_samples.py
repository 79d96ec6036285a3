"""Samples: a lazy sequence of inputs, read again on each use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Sample = dict[str, NDArray[Any]]


class Samples(Sequence["Sample"]):
    """Inputs, each a dict of one array per input name with its batch axis; read again on each use.

    Args:
        loaders: One function per sample.
        digest: SHA-256 that stands for the content.
        origin: Where the samples came from, in words and without any folder.
        notes: What was converted on the way.
        kind: `photos`, `npz`, `npy`, `csv`, `parquet`, `audio`, `generator`, `random` (both asked
            for by name) or `synthetic`.
        labels: One per sample: int64 [rows] for classes, float64 [rows] for values, a list of
            texts, or a dict of `boxes` float32 [n, 4] and `classes` int64 [n]. None for no labels.
        names: Of the file or the row of each sample, never with a folder above the source's.
        contents: A digest per sample that depends on its arrays' source alone.
    """

    def __init__(
        self,
        loaders: Sequence[Callable[[], Sample]],
        *,
        digest: str,
        origin: str,
        kind: str,
        notes: tuple[str, ...] = (),
        labels: Sequence[Any] | None = None,
        names: Sequence[str] | None = None,
        contents: Sequence[str] | None = None,
    ) -> None:
        self._loaders = tuple(loaders)
        count = len(self._loaders)
        self.names = tuple(names) if names is not None else tuple(map(str, range(count)))
        self.labels = tuple(labels) if labels is not None else None
        self.contents = (
            tuple(contents)
            if contents is not None
            else tuple(f"{digest}:{index}" for index in range(count))
        )
        for each in (self.names, self.labels, self.contents):
            if each is not None and len(each) != count:
                raise ValueError(f"{len(each)} for {count} samples")
        self.digest = digest
        self.origin = origin
        self.kind = kind
        self.notes = notes

    def __len__(self) -> int:
        return len(self._loaders)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self._loaders[index]()

    def __iter__(self) -> Iterator[Sample]:
        for load in self._loaders:
            yield load()

    def take(self, indices: Sequence[int]) -> Self:
        """Return the samples at `indices`, in that order; the digest stays the whole set's."""
        return self._with(
            tuple(self._loaders[index] for index in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
            names=tuple(self.names[index] for index in indices),
            contents=tuple(self.contents[index] for index in indices),
        )

    def spread(self, most: int) -> Self:
        """Return at most `most` samples, drawn by the digest over the whole set, in its order.

        The first ones of a folder are often all of one class.
        """
        if len(self) <= most:
            return self
        return self.take(sorted(self._drawn()[:most]))

    def map(self, change: Callable[[Sample], Sample]) -> Self:
        """Return the same samples passed through `change` on each use."""

        def changed(load: Callable[[], Sample]) -> Callable[[], Sample]:
            return lambda: change(load())

        return self._with(
            tuple(changed(load) for load in self._loaders),
            labels=self.labels,
            names=self.names,
            contents=self.contents,
        )

    def split(self, holdout: float) -> tuple[Self, Self]:
        """Return (calibration, comparison): two parts that share no sample, chosen by the digest.

        A single sample goes to both parts, as there is nothing to hold out.

        Args:
            holdout: Share of the comparison part, in 0..1; it gets at least one sample.
        """
        if len(self) < 2:
            return self, self
        order = self._drawn()
        held = min(max(round(len(self) * holdout), 1), len(self) - 1)
        return self.take(sorted(order[held:])), self.take(sorted(order[:held]))

    def _drawn(self) -> list[int]:
        return sorted(
            range(len(self)), key=lambda i: hashlib.sha256(f"{self.digest}:{i}".encode()).digest()
        )

    def _with(
        self,
        loaders: tuple[Callable[[], Sample], ...],
        *,
        labels: tuple[Any, ...] | None,
        names: tuple[str, ...],
        contents: tuple[str, ...],
    ) -> Self:
        return type(self)(
            loaders,
            digest=self.digest,
            origin=self.origin,
            kind=self.kind,
            notes=self.notes,
            labels=labels,
            names=names,
            contents=contents,
        )
