"""What a model answers for a sequence of inputs, computed anew or kept in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.checks.latency import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Sample = dict[str, NDArray[Any]]
    Finish = Callable[[Sample], Sample]

_KEPT_BYTES: Final = 256 << 20


class Answers:
    """The outputs of a file for a sequence of inputs, computed anew at each pass over them."""

    def __init__(self, path: Path, inputs: Iterable[Sample], threads: int) -> None:
        self._path = path
        self._inputs = inputs
        self._threads = threads

    def __iter__(self) -> Iterator[Sample]:
        session = open_session(self._path, self._threads)
        names = [output.name for output in session.get_outputs()]
        for sample in self._inputs:
            yield dict(zip(names, session.run(names, dict(sample)), strict=True))


class Kept:
    """A sequence whose entries are kept in memory where all of them fit into a limit in bytes."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._kept: list[Sample] | None = None

    def __iter__(self) -> Iterator[Sample]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Sample] | None = []
        size = 0
        for sample in self._source:
            size += sum(array.nbytes for array in sample.values())
            if kept is not None:
                kept.append(sample)
                kept = kept if size <= _KEPT_BYTES else None
            yield sample
        self._kept = kept

    def fill(self) -> None:
        """Go through the sequence once, so that what fits is in memory."""
        if self._kept is None:
            for _ in self:
                pass

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return self._kept[index] if self._kept is not None else self._source[index]


def rows_of(sample: Sample) -> int:
    """Return how many rows a sample has: the largest size of a first axis."""
    return max((array.shape[0] if array.ndim else 1 for array in sample.values()), default=1)


def finished(answers: Iterable[Sample], finish: Finish | None) -> Iterator[Sample]:
    """Yield answers as they are after the recipe's post-processing."""
    for answer in answers:
        yield answer if finish is None else finish(answer)
