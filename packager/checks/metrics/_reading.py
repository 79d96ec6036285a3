"""Which output a metric reads, and labels in the form it wants."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packager.errors import ModelUnsupported, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from packager.model import Signature, TensorSpec

    Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Described:
    """What is known of an output: its kind (`float`, `int`, `bool`, `string`) and its sizes."""

    name: str
    kind: str
    sizes: tuple[int | None, ...]

    @property
    def rank(self) -> int:
        """Return the number of axes."""
        return len(self.sizes)

    def __str__(self) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in self.sizes)
        return f"`{self.name}` {self.kind}[{shape}]"


def described(source: Signature | Outputs) -> list[Described]:
    """Return the outputs of a signature, or of one answer, in order."""
    outputs: tuple[TensorSpec, ...] | None = getattr(source, "outputs", None)
    if outputs is not None:
        return [
            Described(spec.name, _kind(spec.dtype), tuple(dim.size for dim in spec.shape))
            for spec in outputs
        ]
    arrays: Mapping[str, NDArray[Any]] = source  # type: ignore[assignment]
    return [
        Described(name, _kind(array.dtype.name), tuple(array.shape))
        for name, array in arrays.items()
    ]


def pick(
    source: Signature | Outputs,
    *,
    metric: str,
    wanted: str,
    fits: Sequence[Callable[[Described], bool]],
    needs: str,
) -> Described:
    """Return the first output that a metric can read, or the one that the user named.

    Args:
        source: A signature, or the outputs of one sample.
        metric: For messages.
        wanted: The output's name from `METRIC:NAME`; empty for the first that fits.
        fits: Each tells whether the metric can read an output; the earlier ones come first.
        needs: What it can read, for messages.

    Raises:
        UsageError: no output fits, or the named one does not exist or does not fit.
    """
    outputs = described(source)
    if not wanted:
        for fit in fits:
            for output in outputs:
                if fit(output):
                    return output
        shown = ", ".join(map(str, outputs))
        raise UsageError(
            f"`{metric}` cannot be measured: the model's outputs are {shown}", accepted=needs
        )
    found = next((output for output in outputs if output.name == wanted), None)
    names = [output.name for output in outputs]
    if found is None:
        close = difflib.get_close_matches(wanted, names, 1)
        raise UsageError(
            f"`{metric}:{wanted}` names no output of the model",
            accepted="one of " + ", ".join(names),
            hint=f"did you mean `{metric}:{close[0]}`?" if close else None,
        )
    if not any(fit(found) for fit in fits):
        raise UsageError(f"`{metric}` cannot be measured on {found}", accepted=needs)
    return found


def need_labels(metric: str, labels: Sequence[Any] | None) -> Sequence[Any]:
    """Return the labels.

    Raises:
        UsageError: there are none.
    """
    if not labels:
        raise UsageError(
            f"`{metric}` needs labels, and the evaluation data has none",
            hint='`label = "NAME"` in the recipe names the column or array that holds them;'
            " `agreement` and `cosine` compare with the original and need none",
        )
    return labels


def with_labels(
    metric: str, outputs: Iterable[Outputs], labels: Sequence[Any] | None
) -> Iterator[tuple[Outputs, Any]]:
    """Pair each sample's outputs with its label.

    Raises:
        UsageError: there are no labels, or another number than samples.
    """
    labels = need_labels(metric, labels)
    count = 0
    for output in outputs:
        if count == len(labels):
            raise UsageError(f"`{metric}` got {len(labels)} labels for more samples")
        yield output, labels[count]
        count += 1
    if count < len(labels):
        raise UsageError(f"`{metric}` got {len(labels)} labels for {count} samples")


def class_numbers(metric: str, label: Any) -> NDArray[Any]:
    """Return one sample's label as int64 [rows].

    Raises:
        UsageError: it is text, boxes, or a number with a fraction.
    """
    import numpy as np

    array = _as_array(label)
    if array is None or array.dtype.kind not in "iub":
        raise UsageError(
            f"`{metric}` needs class numbers as labels, not {_what(label)}",
            accepted="integers that count from 0",
        )
    return array.astype(np.int64).reshape(-1)


def numbers(metric: str, label: Any) -> NDArray[Any]:
    """Return one sample's label as float64 with its rows first.

    Raises:
        UsageError: it is text or boxes, or holds NaN or infinity.
    """
    import numpy as np

    array = _as_array(label)
    if array is None or array.dtype.kind not in "iubf":
        raise UsageError(
            f"`{metric}` needs numbers as labels, not {_what(label)}", accepted="finite numbers"
        )
    array = np.atleast_1d(array.astype(np.float64))
    if not np.isfinite(array).all():
        raise UsageError(f"a label for `{metric}` is NaN or infinite", accepted="finite numbers")
    return array


def texts(metric: str, label: Any) -> list[str]:
    """Return one sample's label as texts, one per row.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(label, str):
        return [label]
    found = list(label) if isinstance(label, list | tuple) else None
    if found is None and hasattr(label, "dtype") and label.dtype.kind in "UO":
        found = label.reshape(-1).tolist()
    if found is None or not all(isinstance(text, str) for text in found):
        raise UsageError(
            f"`{metric}` needs texts as labels, not {_what(label)}", accepted="one text per row"
        )
    return found


def same_rows(metric: str, got: int, labels: int) -> None:
    """Refuse a sample whose label has another number of rows.

    Raises:
        UsageError: they differ.
    """
    if got != labels:
        raise UsageError(f"`{metric}` got {labels} labels for a sample of {got} rows")


def finite(metric: str, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an output as float64.

    Raises:
        ModelUnsupported: it holds NaN or infinity, so the metric has no value.
    """
    import numpy as np

    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ModelUnsupported(
            f"`{metric}` has no value: the output `{name}` holds NaN or infinity"
        )
    return wide


def _kind(dtype: str) -> str:
    if dtype.startswith(("float", "bfloat")):
        return "float"
    if dtype.startswith(("int", "uint")):
        return "int"
    return "bool" if dtype == "bool" else "string"


def _as_array(label: Any) -> NDArray[Any] | None:
    import numpy as np

    if hasattr(label, "dtype") or isinstance(label, int | float):
        return np.asarray(label)
    if isinstance(label, list | tuple) and all(isinstance(v, int | float) for v in label):
        return np.asarray(label)
    return None


def _what(label: Any) -> str:
    if isinstance(label, dict):
        return "boxes"
    if isinstance(label, str) or (
        isinstance(label, list | tuple) and label and isinstance(label[0], str)
    ):
        return "text"
    if hasattr(label, "dtype"):
        return "text" if label.dtype.kind in "UOS" else str(label.dtype)
    return type(label).__name__
