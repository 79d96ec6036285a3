"""Reads samples from wherever a recipe says they come from, each checked against the signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packager.data._folder import load_folder
from packager.data._gather import Gathering
from packager.data._generator import load_generator
from packager.data._rows import load_rows
from packager.data._synthetic import random_samples
from packager.data._tables import TABLE_SUFFIXES, load_table
from packager.errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from packager.data._samples import Samples
    from packager.model import Signature
    from packager.recipe import DataSource, Recipe


def load_samples(
    source: DataSource,
    signature: Signature,
    recipe: Recipe,
    *,
    labelled: bool = False,
    seed: int = 0,
) -> Samples:
    """Read every sample of a source and check it against the signature.

    Each is read and checked once here, so that a bad one is found before any long work; later
    uses read it again, and memory holds one sample at a time.

    Args:
        source: Where they come from.
        signature: Of the model, before any pre-processing is attached.
        recipe: For its inputs, its metric and the name of its label.
        labelled: Labels must be there, and at least two samples.
        seed: Of made-up samples.

    Returns:
        Samples as a client sends them: photos uint8 [1, height, width, 3] for an image input, sound
        float32 [1, samples], text strings [rows] under `text`, columns as they stand in the table.

    Raises:
        InputOutputError: the source is missing, or cannot be read.
        UsageError: no samples, or one that does not fit; names the file and the row.
        BackendMissing: a package that reads this kind is not installed.
    """
    if source.path is None:
        if labelled:
            raise UsageError(
                f"`{source.word}` has no labels", accepted="data that somebody has labelled"
            )
        return random_samples(signature, recipe, source.random, seed)
    gathering = Gathering(source.word, signature, recipe, labelled=labelled)
    path = source.path
    if source.function or path.suffix.lower() == ".py":
        return load_generator(path, source.function, gathering)
    if not path.exists():
        raise InputOutputError(f"`{path}` does not exist")
    if path.is_dir():
        return load_folder(path, gathering)
    suffix = path.suffix.lower()
    if suffix in {".npy", ".npz"}:
        return load_rows(path, gathering)
    if suffix in TABLE_SUFFIXES:
        return load_table(path, gathering)
    raise UsageError(
        f"`{path}` is no source of samples",
        accepted="a folder of photos, `.wav`, `.npy` or `.npz` files; one `.npy`, `.npz`, `.csv`, "
        "`.parquet` or `.txt` file; `FILE.py:FUNCTION`; `random:N`",
    )
