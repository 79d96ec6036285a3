"""Reads samples from one file of arrays whose first axis counts the samples."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from packager.data._arrays import fit_sample
from packager.data._files import MOST_SAMPLES
from packager.data._folder import only_input
from packager.data._folder_labels import LABELS_NPY
from packager.data._labels import take_label
from packager.data._npz import map_array, map_arrays, read_array
from packager.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.data._gather import Gathering
    from packager.data._samples import Samples

    Sample = dict[str, NDArray[Any]]


def load_rows(path: Path, gathering: Gathering) -> Samples:
    """Read every row of a `.npy` or `.npz` file, which stays on disk.

    Labels are the array named `recipe.label`, or for a `.npy` file a `labels.npy` beside it.

    Raises:
        InputOutputError: a file is missing or cannot be read.
        UsageError: it is no such file, arrays of different lengths, or a row that does not fit.
    """
    signature, recipe = gathering.signature, gathering.recipe
    kind = path.suffix.lower()[1:]
    if kind == "npz":
        arrays = map_arrays(path)
        label = take_label(arrays, signature, recipe)
        if isinstance(label, dict):
            raise UsageError(
                f"`{path}` holds boxes for rows", accepted="a folder of `.npz` files, one per photo"
            )
    else:
        arrays = {only_input(signature, path): map_array(path)}
        label = _labels_beside(path)
    count = _count(path, arrays)
    if label is not None and (label.ndim == 0 or len(label) != count):
        raise UsageError(f"`{path}` has {count} rows, and labels {list(label.shape)}")
    for row in range(count):
        notes: list[str] = []
        sample = _row(arrays, row, gathering, f"`{path}`, row {row}", notes)
        # Adding the batch axis is what a row is for.
        changes = [note for note in notes if not note.startswith("a batch axis")]
        gathering.add(
            sample,
            partial(_row, arrays, row, gathering, f"`{path}`, row {row}"),
            name=f"row {row}",
            label=None if label is None else label[row : row + 1],
            changes=changes,
        )
    origin = f"{count} row{'' if count == 1 else 's'} of a `.{kind}` file"
    return gathering.finish(kind=kind, origin=origin, noun="rows")


def _row(
    arrays: dict[str, NDArray[Any]],
    row: int,
    gathering: Gathering,
    where: str,
    notes: list[str] | None = None,
) -> Sample:
    part = {name: array[row : row + 1] for name, array in arrays.items()}
    said = notes if notes is not None else []
    return fit_sample(part, gathering.signature, gathering.recipe, where, said)


def _labels_beside(path: Path) -> NDArray[Any] | None:
    beside = path.with_name(LABELS_NPY)
    return read_array(beside) if beside.is_file() and beside != path else None


def _count(path: Path, arrays: dict[str, NDArray[Any]]) -> int:
    lengths = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    scalar = next((name for name, length in lengths.items() if length is None), None)
    if scalar is not None:
        raise UsageError(f"`{path}`: `{scalar}` is one number", accepted="one row per sample")
    if len(set(lengths.values())) > 1:
        raise UsageError(
            f"`{path}` holds arrays of different lengths: "
            + ", ".join(f"`{name}` {length}" for name, length in lengths.items()),
            accepted="one row per sample in each",
        )
    count = next(iter(lengths.values()), 0) or 0
    if count > MOST_SAMPLES:
        raise UsageError(f"`{path}` has {count} rows", accepted=f"up to {MOST_SAMPLES}")
    return count
