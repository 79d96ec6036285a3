"""What a metric is: what it needs, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from packager.model import Signature

    Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a metric says of one model on one set of samples.

    Attributes:
        value: Finite, in the metric's unit.
        rows: How many labelled things it was measured on: rows, photos or texts.
        step: The smallest change that one answer can make; None where any change is possible.
    """

    value: float
    rows: int
    step: float | None = None


class Metric(Protocol):
    """A measure of a model's outputs, after post-processing.

    Attributes:
        name: As the user gave it, without the output's name.
        higher_is_better: The direction.
        needs_labels: It cannot be measured without.
        unit: `share` (of rows, words or characters) or `value`.
    """

    @property
    def name(self) -> str:
        """Return the name."""

    @property
    def higher_is_better(self) -> bool:
        """Return the direction."""

    @property
    def needs_labels(self) -> bool:
        """Return whether labels are read."""

    @property
    def unit(self) -> str:
        """Return `share` or `value`."""

    def check(self, signature: Signature, labels: Sequence[Any] | None) -> None:
        """Refuse a model or labels that the metric cannot be measured with, before anything runs.

        Args:
            signature: With the outputs as they are after post-processing.
            labels: One per sample, as `Samples.labels`.

        Raises:
            UsageError: with what does not fit.
        """

    def measure(
        self,
        outputs: Iterable[Outputs],
        references: Iterable[Outputs],
        labels: Sequence[Any] | None,
    ) -> Measured:
        """Return the metric, reading one sample at a time.

        Args:
            outputs: Of the model to measure, after post-processing, one dict per sample.
            references: The original's; read only where the metric compares with them.
            labels: One per sample, as `Samples.labels`.

        Raises:
            UsageError: the labels do not fit the outputs, or the user's function fails.
            ModelUnsupported: the outputs are such that the metric has no value.
        """
