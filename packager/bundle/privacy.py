"""Checks what a recipe says of privacy against the model that it is said of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packager.errors import UsageError

if TYPE_CHECKING:
    from packager.model import Signature
    from packager.recipe import Recipe


def check_mask(recipe: Recipe, signature: Signature) -> None:
    """Refuse masked names that are no inputs: what they were meant to protect would be kept.

    Raises:
        UsageError: says which.
    """
    known = [spec.name for spec in signature.inputs]
    for name in recipe.privacy.mask if recipe.privacy is not None else ():
        if name not in known:
            raise UsageError(
                f"`privacy.mask` names `{name}`, and the model has no such input",
                accepted=", ".join(f"`{each}`" for each in known),
            )
