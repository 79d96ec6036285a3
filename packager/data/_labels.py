"""Labels: what kind they are, and whether they fit the model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from packager.data._files import read_text
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.model import Signature
    from packager.recipe import Recipe

    Sample = dict[str, NDArray[Any]]

# Metrics whose labels are texts even where all of them look like numbers.
_TEXT_METRICS: Final = ("wer", "cer")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOX_KEYS: Final = ("boxes", "classes")


class Classes:
    """What the labels of a model may be.

    Attributes:
        count: Its classes; None where nobody tells.
        file: Their names, one per line; None where the recipe gives none.
        texts: Labels are texts, even where all of them look like numbers.
    """

    def __init__(self, signature: Signature, recipe: Recipe) -> None:
        self.count = _class_count(signature, recipe)
        self.file = _names_file(signature, recipe)
        self.texts = _wants_text(recipe)
        self._numbers: dict[str, int] | None = None

    def number(self, name: str) -> int | None:
        """Return a class's number by its name; None where the name is not known.

        Raises:
            UsageError: two classes have this name, or the file of names cannot be read.
        """
        if self._numbers is None:
            self._numbers = {}
            lines = read_text(self.file).splitlines() if self.file is not None else []
            for number, line in enumerate(lines):
                known = self._numbers.setdefault(line.strip(), number)
                if known != number:
                    self._numbers[line.strip()] = -1
        found = self._numbers.get(name)
        if found == -1:
            raise UsageError(
                f"the label `{name}` names several lines of `{self.file}`",
                accepted="names of one class, or class numbers",
            )
        return found


def take_label(arrays: dict[str, NDArray[Any]], signature: Signature, recipe: Recipe) -> Any:
    """Take the label out of a sample's arrays: an array, or `LABEL.boxes` with `LABEL.classes`.

    Returns:
        None where there is none, or where the model has an input of that name.
    """
    label = recipe.label
    if any(spec.name == label for spec in signature.inputs):
        return None
    if label in arrays:
        return arrays.pop(label)
    boxes = {key: arrays.pop(f"{label}.{key}", None) for key in _BOX_KEYS}
    return boxes if any(value is not None for value in boxes.values()) else None


def settle_labels(
    raw: Sequence[Any], rows: Sequence[int], names: Sequence[str], classes: Classes
) -> tuple[Any, ...]:
    """Return labels of one kind: classes, values, texts or boxes.

    Words are classes where the recipe names the classes, else texts; numbers are classes where
    they are integers, else values, unless the metric or the decoding says that answers are texts.

    Args:
        raw: Per sample: an array, a list of words, or a dict of boxes.
        rows: Rows of each sample.
        names: Of the samples, for messages.
        classes: The model's.

    Raises:
        UsageError: a label is missing, of another kind than the rest, or no class of the model.
    """
    for label, name in zip(raw, names, strict=True):
        if label is None:
            raise UsageError(f"`{name}` has no label", accepted="one label per sample")
    if any(isinstance(label, dict) for label in raw):
        return tuple(_boxes(*pair) for pair in zip(raw, names, strict=True))
    if classes.texts:
        settled: list[Any] = [_as_texts(*pair) for pair in zip(raw, names, strict=True)]
    else:
        settled = _as_numbers(raw, names, classes)
    for label, count, name in zip(settled, rows, names, strict=True):
        if len(label) != count:
            raise UsageError(f"`{name}` has {len(label)} labels for {count} rows")
    return tuple(settled)


def _as_numbers(raw: Sequence[Any], names: Sequence[str], classes: Classes) -> list[Any]:
    found = [_read_label(label, name) for label, name in zip(raw, names, strict=True)]
    kinds = {kind: name for (kind, _), name in zip(reversed(found), reversed(names), strict=True)}
    if set(kinds) == {"classes"}:
        for (_, label), name in zip(found, names, strict=True):
            _check_range(label, name, classes)
        return [label for _, label in found]
    if set(kinds) <= {"classes", "values"}:
        return [label.astype("float64") for _, label in found]
    if set(kinds) != {"texts"}:
        other = kinds["classes" if "classes" in kinds else "values"]
        raise UsageError(
            f"the label of `{kinds['texts']}` is a word, that of `{other}` is a number",
            accepted="labels of one kind",
        )
    if classes.file is None:
        return [label for _, label in found]
    return [_by_name(label, name, classes) for (_, label), name in zip(found, names, strict=True)]


def _read_label(label: Any, name: str) -> tuple[str, Any]:
    """Return (`classes`, int64 [n]), (`values`, float64 [n, …]) or (`texts`, list)."""
    import numpy as np

    if isinstance(label, list):
        words = [word.strip() for word in label]
        if not all(words):
            raise UsageError(f"the label of `{name}` is empty", accepted="one label per sample")
        if all(_INTEGER.fullmatch(word) for word in words):
            return "classes", np.array([int(word) for word in words], np.int64)
        if all(_NUMBER.fullmatch(word) for word in words):
            values = np.array([float(word) for word in words], np.float64)
            return "values", _finite(values, name)
        odd = next((word for word in words if word.lower().lstrip("+-") in {"nan", "inf"}), None)
        if odd is not None:
            raise UsageError(f"the label of `{name}` is `{odd}`", accepted="finite numbers")
        return "texts", label
    array = np.asarray(label)
    array = array[None] if array.ndim == 0 else array
    if array.dtype.kind in "SU":
        return _read_label(_words(array, name), name)
    if array.dtype.kind not in "biuf":
        raise UsageError(
            f"the label of `{name}` is {array.dtype}", accepted="class numbers, values or texts"
        )
    if array.dtype.kind == "f":
        return "values", _finite(array.astype(np.float64), name)
    if array.ndim > 1 and array.shape[1:] == (1,):
        array = array[:, 0]
    if array.ndim != 1:
        raise UsageError(
            f"the label of `{name}` has the shape {list(array.shape)}",
            accepted="one class number per row, not one number per class",
        )
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise UsageError(f"the label {int(array.max())} of `{name}` is no class number")
    return "classes", array.astype(np.int64)


def _as_texts(label: Any, name: str) -> list[str]:
    import numpy as np

    if isinstance(label, list):
        return label
    array = np.asarray(label)
    if array.dtype.kind not in "SU":
        raise UsageError(f"the label of `{name}` is {array.dtype}", accepted="a text per row")
    return _words(array[None] if array.ndim == 0 else array, name)


def _words(array: NDArray[Any], name: str) -> list[str]:
    import numpy as np

    try:
        texts = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    except UnicodeDecodeError as fault:
        raise UsageError(f"the label of `{name}` is not UTF-8") from fault
    if texts.ndim != 1:
        raise UsageError(
            f"the label of `{name}` has the shape {list(array.shape)}", accepted="a text per row"
        )
    return [str(text) for text in texts]


def _by_name(label: list[str], name: str, classes: Classes) -> NDArray[Any]:
    import numpy as np

    numbers = []
    for word in label:
        number = classes.number(word.strip())
        if number is None:
            raise UsageError(
                f"the label `{word}` of `{name}` is no line of `{classes.file}`",
                accepted="a class's number or its name",
            )
        numbers.append(number)
    found = np.array(numbers, np.int64)
    _check_range(found, name, classes)
    return found


def _check_range(numbers: NDArray[Any], name: str, classes: Classes) -> None:
    if not len(numbers):
        return
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 and classes.count is not None:
        raise UsageError(f"the label {low} of `{name}` is no class number", accepted="0 and above")
    if classes.count is not None and high >= classes.count:
        raise UsageError(
            f"the label {high} of `{name}` is outside the model's {classes.count} classes",
            accepted=f"0 to {classes.count - 1}",
            hint="labels that count from 1 must be shifted" if high == classes.count else None,
        )


def _boxes(label: Any, name: str) -> dict[str, NDArray[Any]]:
    import numpy as np

    if not isinstance(label, dict) or any(label.get(key) is None for key in _BOX_KEYS):
        raise UsageError(
            f"the label of `{name}` has no boxes with classes",
            accepted="`boxes` [n, 4] as x1, y1, x2, y2 and `classes` [n]",
        )
    boxes, classes = np.asarray(label["boxes"]), np.asarray(label["classes"])
    if boxes.size == 0 and classes.size == 0:
        return {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int64)}
    if boxes.dtype.kind not in "iuf" or classes.dtype.kind not in "iu":
        raise UsageError(
            f"the boxes of `{name}` are {boxes.dtype}, their classes {classes.dtype}",
            accepted="numbers, and integers",
        )
    if boxes.shape != (len(classes), 4) or classes.ndim != 1:
        raise UsageError(
            f"`{name}` has boxes {list(boxes.shape)} and classes {list(classes.shape)}",
            accepted="[n, 4] and [n]",
        )
    boxes = _finite(boxes.astype(np.float32), name)
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise UsageError(
            f"a box of `{name}` ends before it begins", accepted="x1, y1, x2, y2 with x1 ≤ x2"
        )
    if int(classes.min()) < 0:
        raise UsageError(f"the class {int(classes.min())} of a box of `{name}` is below 0")
    return {"boxes": boxes, "classes": classes.astype(np.int64)}


def _finite(values: NDArray[Any], name: str) -> NDArray[Any]:
    import numpy as np

    if not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "infinity"
        raise UsageError(f"the label of `{name}` holds {what}", accepted="finite numbers")
    return values


def _wants_text(recipe: Recipe) -> bool:
    return recipe.compress.metric.partition(":")[0] in _TEXT_METRICS or any(
        steps.ctc for steps in recipe.outputs.values()
    )


def _class_count(signature: Signature, recipe: Recipe) -> int | None:
    """Return the classes of the first output, where it is a row of scores [batch, classes]."""
    if recipe.boxes is not None or _wants_text(recipe) or not signature.outputs:
        return None
    first = signature.outputs[0]
    scores = "float" in first.dtype and len(first.shape) == 2
    count = first.shape[1].size if scores else None
    return count if count is not None and count >= 2 else None


def _names_file(signature: Signature, recipe: Recipe) -> Path | None:
    """Return the file with one class name per line that labels may name classes by."""
    if recipe.boxes is not None and recipe.boxes.labels is not None:
        return recipe.boxes.labels
    steps: Mapping[str, Any] = recipe.outputs
    names = [spec.name for spec in signature.outputs]
    files = [steps[name].labels for name in names if name in steps and not steps[name].ctc]
    files += [image.labels for image in recipe.images.values()]
    return next((file for file in files if file is not None), None)
