"""Reads samples from wherever a recipe says they come from, each checked against the signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packager.data._folder import load_folder
from packager.data._synthetic import random_samples

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
        recipe: For its inputs and the name of its label.
        labelled: Labels must be there, and at least two samples.
        seed: Of made-up samples.

    Raises:
        InputOutputError: the source is missing, or cannot be read.
        UsageError: no samples, or one that does not fit; names the file and the row.
    """
    if source.path is None:
        return random_samples(signature, source.random, seed)
    return load_folder(source.path, signature, recipe.images)
