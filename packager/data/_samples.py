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
        kind: `photos`, `npz` or `synthetic`.
    """

    def __init__(
        self,
        loaders: Sequence[Callable[[], Sample]],
        *,
        digest: str,
        origin: str,
        kind: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._loaders = tuple(loaders)
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
        return self._with(tuple(self._loaders[index] for index in indices))

    def map(self, change: Callable[[Sample], Sample]) -> Self:
        """Return the same samples passed through `change` on each use."""

        def changed(load: Callable[[], Sample]) -> Callable[[], Sample]:
            return lambda: change(load())

        return self._with(tuple(changed(load) for load in self._loaders))

    def split(self, holdout: float) -> tuple[Self, Self]:
        """Return (calibration, comparison): two parts that share no sample, chosen by the digest.

        A single sample goes to both parts, as there is nothing to hold out.

        Args:
            holdout: Share of the comparison part, in 0..1; it gets at least one sample.
        """
        if len(self) < 2:
            return self, self
        order = sorted(
            range(len(self)), key=lambda i: hashlib.sha256(f"{self.digest}:{i}".encode()).digest()
        )
        held = min(max(round(len(self) * holdout), 1), len(self) - 1)
        return self.take(sorted(order[held:])), self.take(sorted(order[:held]))

    def _with(self, loaders: tuple[Callable[[], Sample], ...]) -> Self:
        return type(self)(
            loaders, digest=self.digest, origin=self.origin, kind=self.kind, notes=self.notes
        )
