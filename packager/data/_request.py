"""Reads one request from a file of any kind that samples may come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.data._arrays import TEXT_KEY, fit_sample, wanted_inputs
from packager.data._folder import photo_input, read_npy, read_npz, read_photo
from packager.data._photos import PHOTO_SUFFIXES
from packager.data._sounds import read_sound, sound_input
from packager.data._tables import TABLE_SUFFIXES, table_arrays
from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.model import Signature
    from packager.recipe import Recipe

    Sample = dict[str, NDArray[Any]]


def read_request(
    path: Path, signature: Signature, recipe: Recipe
) -> tuple[Sample, tuple[str, ...]]:
    """Return one request from a photo, `.npz`, `.npy`, `.wav`, `.csv`, `.parquet` or `.txt` file.

    Every row of a table, every line of a text, every window of a sound is a row of the request.

    Args:
        path: The file.
        signature: Of the model, before any pre-processing is attached.
        recipe: Its inputs.

    Returns:
        The request as a client sends it, and what was converted.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it does not fit the model.
        BackendMissing: a Parquet file without the package that reads it.
    """
    import numpy as np

    if not path.is_file():
        raise InputOutputError(f"`{path}` does not exist or is no file")
    suffix = path.suffix.lower()
    if suffix in PHOTO_SUFFIXES:
        return read_photo(path, photo_input(path, signature, recipe)), ()
    if suffix == ".npz":
        return read_npz(path, signature, recipe)
    if suffix == ".npy":
        return read_npy(path, signature, recipe)
    if suffix == ".wav":
        spec, audio = sound_input(path, signature, recipe)
        windows, changes = read_sound(path, spec, audio)
        return {spec.name: np.stack(windows)}, tuple(changes)
    if suffix == ".txt" and TEXT_KEY not in wanted_inputs(signature, recipe):
        raise UsageError(
            f"`{path}` holds text, and the model takes none",
            hint="declare `[text]` with its tokenizer in the recipe",
        )
    if suffix in TABLE_SUFFIXES:
        notes: list[str] = []
        arrays = table_arrays(path, signature, recipe)
        return fit_sample(arrays, signature, recipe, f"`{path}`", notes), tuple(notes)
    raise UsageError(
        f"`{path}` is no kind of file that holds a request",
        accepted="a photo, `.npz`, `.npy`, `.wav`, `.csv`, `.parquet` or `.txt`",
    )
