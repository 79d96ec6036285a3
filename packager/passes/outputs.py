"""Puts a recipe's post-processing behind a model, and offers it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from packager.model import Signature
    from packager.recipe import Recipe

    Finish = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def finisher(recipe: Recipe, signature: Signature) -> Finish | None:
    """Return a function from a model's raw outputs to those that the recipe asks for.

    It runs the very nodes that `inputs.attach` puts behind the model.

    Args:
        recipe: Its outputs.
        signature: Of the model, before `inputs.attach`.

    Returns:
        The function; None where the recipe changes no output.
    """
    return None
