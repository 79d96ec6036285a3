"""Puts a recipe's pre- and post-processing into a model's graph, and applies it to samples."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from packager.passes.image import attach_image, check_image_parity
from packager.passes.image import prepare as prepare_photos

if TYPE_CHECKING:
    from pathlib import Path

    from packager.data import Samples
    from packager.model import Signature
    from packager.recipe import Recipe


def attach(model_path: Path, signature: Signature, recipe: Recipe, out: Path) -> Signature:
    """Write a model that takes what clients send and answers what they read.

    Args:
        model_path: ONNX file.
        signature: Its signature.
        recipe: Its inputs and outputs.
        out: Where the new file goes.

    Returns:
        The signature of the new file.

    Raises:
        UsageError: the recipe names an input or output that is not there or does not fit.
        ModelUnsupported: the opset cannot be raised, or the result computes something else.
    """
    if recipe.images:
        return attach_image(model_path, signature, recipe.images, out)
    shutil.copyfile(model_path, out)
    return signature


def prepare(samples: Samples, recipe: Recipe, signature: Signature) -> Samples:
    """Return the same samples as the model itself takes them, on each use.

    Args:
        samples: From `load_samples`, as clients send them. An array that is already in the model's
            own form stays.
        recipe: Its inputs.
        signature: Of the model, before `attach`.
    """
    return prepare_photos(samples, recipe.images, signature)


def check_transforms(recipe: Recipe, samples: Samples) -> dict[str, Any]:
    """Compare the compiled pre-processing with the training transforms that the recipe names.

    Returns:
        What `passes.transform` found, by input name; without those that cannot be compared.
    """
    found: dict[str, Any] = {}
    for name, image in recipe.images.items():
        if image.transform is not None and samples.kind == "photos":
            found[name] = check_image_parity(image, samples)
    return found
