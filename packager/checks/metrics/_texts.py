"""Metrics of texts: word error rate and character error rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packager.checks.metrics._contract import Measured
from packager.checks.metrics._reading import need_labels, pick, same_rows, texts, with_labels
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from packager.checks.metrics._reading import Described, Outputs
    from packager.model import Signature


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """The edits that turn the answers into the labels, over the labels' words or characters.

    Edits are counted over all texts together, so a long text weighs more. Blanks at both ends do
    not count; words are what blanks part; characters are code points, as they are: nothing is
    normalized or lower-cased.

    Attributes:
        words: Count words instead of characters.
        alphabet: The text of each class number; empty where the model gives texts itself.
    """

    name: str
    words: bool
    alphabet: tuple[str, ...] = ()
    output: str = ""
    higher_is_better: bool = False
    needs_labels: bool = True
    unit: str = "share"

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model that gives no texts, and labels that are none."""
        found = self._pick(signature)
        if found.kind == "int" and not self.alphabet:
            raise self._no_alphabet(found.name)
        if not any(self._cut(t) for x in need_labels(self.name, labels) for t in self._wanted(x)):
            raise self._no_words()

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return edits over words or characters; more than 1 where much is inserted."""
        del references
        edits, total = 0, 0
        for answer, label in with_labels(self.name, outputs, labels):
            found = self._pick(answer)
            have, want = self._read(found, answer[found.name]), self._wanted(label)
            same_rows(self.name, len(have), len(want))
            for text, reference in zip(have, want, strict=True):
                pieces = self._cut(reference)
                edits += edit_distance(self._cut(text), pieces)
                total += len(pieces)
        if total == 0:
            raise self._no_words()
        return Measured(value=edits / total, rows=total, step=1 / total)

    def _pick(self, source: Signature | Outputs) -> Described:
        needs = "texts [batch], or class numbers [batch, frames] as `ctc = true` makes them"
        fits = (
            lambda d: d.kind == "string" and d.rank in (1, 2),
            lambda d: d.kind == "int" and d.rank == 2,
        )
        return pick(source, metric=self.name, wanted=self.output, fits=fits, needs=needs)

    def _wanted(self, label: Any) -> list[str]:
        return texts(self.name, label)

    def _read(self, found: Described, rows: NDArray[Any]) -> list[str]:
        if found.kind == "string":
            return [
                t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t)
                for t in rows.reshape(-1).tolist()
            ]
        return (
            decode(rows, self.alphabet, output=found.name) if self.alphabet else self._fail(found)
        )

    def _fail(self, found: Described) -> list[str]:
        raise self._no_alphabet(found.name)

    def _no_alphabet(self, output: str) -> UsageError:
        return UsageError(
            f"`{self.name}` needs the characters behind the class numbers of `{output}`",
            hint=f'`labels = "characters.txt"` under `[output.{output}]` in the recipe',
        )

    def _no_words(self) -> UsageError:
        kind = "words" if self.words else "characters"
        return UsageError(f"`{self.name}` is undefined: the labels hold no {kind}")

    def _cut(self, text: str) -> list[str]:
        return text.split() if self.words else list(text.strip())


def decode(rows: NDArray[Any], alphabet: Sequence[str], *, output: str) -> list[str]:
    """Return the texts of class numbers [batch, frames] that are filled up with -1.

    Raises:
        UsageError: a class number that the alphabet does not reach.
    """
    highest = int(rows.max()) if rows.size else -1
    if highest >= len(alphabet):
        raise UsageError(
            f"`{output}` gives class {highest}, and its labels file has {len(alphabet)} lines",
            accepted="one line per class, the blank's included",
        )
    return ["".join(alphabet[c] for c in row if c >= 0) for row in rows.tolist()]


def edit_distance(have: Sequence[str], want: Sequence[str]) -> int:
    """Return the fewest insertions, deletions and substitutions (Levenshtein 1966)."""
    import numpy as np

    if not have or not want:
        return len(have) or len(want)
    numbers: dict[str, int] = {}
    a, b = (
        np.array([numbers.setdefault(piece, len(numbers)) for piece in pieces])
        for pieces in (have, want)
    )
    positions = np.arange(len(b) + 1)
    row = positions.copy()
    for index, piece in enumerate(a):
        change = np.minimum(row[1:] + 1, row[:-1] + (b != piece))
        # An insertion costs one a step, so it is the running minimum of cost less position.
        edges = np.concatenate(([index + 1], change))
        row = np.minimum.accumulate(edges - positions) + positions
    return int(row[-1])
