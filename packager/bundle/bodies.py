"""Decides which kinds of bodies a bundle decodes beside JSON, and what it carries for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.archive import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.bundle.image_library import CarriedImageLibrary
    from packager.model import Signature, TensorSpec
    from packager.recipe import Recipe

IMAGE_KINDS: Final = ("image/jpeg", "image/png")
# Nobody types a row of more cells, and numbers of that many are quicker sent in binary.
_MOST_CELLS: Final = 4096
_MODULES: Final = {
    "image/jpeg": ("images", "exif", "jpeg"),
    "image/png": ("images", "exif", "png"),
    "audio/wav": ("wav", "resample"),
    "text/csv": ("csvrows", "texts"),
    "text/plain": ("texts",),
}


def takes_photos(recipe: Recipe, signature: Signature) -> bool:
    """Tell whether a photo is a whole request: the one input is uint8 [batch, height, width, 3].

    Args:
        recipe: Its image inputs.
        signature: As clients see it.
    """
    return len(signature.inputs) == 1 and _is_photo(signature.inputs[0], recipe)


def body_fields(
    recipe: Recipe, signature: Signature, carried: Sequence[CarriedImageLibrary]
) -> dict[str, Any]:
    """Return the manifest's `bodies`: by media type, what decodes it; without the key for none.

    Args:
        recipe: What its inputs mean.
        signature: As clients see it.
        carried: The libraries for photos.
    """
    kinds: dict[str, dict[str, str]] = {}
    if takes_photos(recipe, signature):
        for item in carried:
            wanted = item.wanted
            kinds[wanted.kind] = {
                "library": wanted.path, "name": wanted.name, "version": wanted.version
            }  # fmt: skip
    if _takes_sound(recipe, signature):
        kinds["audio/wav"] = {}
    if _takes_text(recipe, signature):
        kinds["text/plain"] = {}
    if _takes_rows(recipe, signature):
        kinds["text/csv"] = {}
    return {"bodies": kinds} if kinds else {}


def body_entries(
    manifest: Mapping[str, Any], carried: Sequence[CarriedImageLibrary]
) -> list[Entry]:
    """Return the libraries and licences of the kinds that a manifest has."""
    entries = []
    for item in carried:
        wanted = item.wanted
        if wanted.kind not in manifest.get("bodies", {}):
            continue
        entries.append(
            Entry(path=wanted.path, source=item.fetched.path, xz_source=item.fetched.xz_path)
        )
        entries += [
            Entry(path=f"licenses/{wanted.name}/{name}", source=path, compress=True)
            for name, path in item.licenses.items()
        ]
    return entries


def body_modules(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the runtime's modules that decode the kinds of a manifest, as `bodies/png.py`."""
    kinds = manifest.get("bodies", {})
    names = {name for kind in kinds for name in _MODULES[kind]}
    return tuple(f"bodies/{name}.py" for name in sorted({"__init__", *names})) if kinds else ()


def _is_photo(spec: TensorSpec, recipe: Recipe) -> bool:
    shape = spec.shape
    return (
        spec.name in recipe.images
        and spec.dtype == "uint8"
        and len(shape) == 4
        and shape[3].size == 3
    )


def _takes_sound(recipe: Recipe, signature: Signature) -> bool:
    if len(signature.inputs) != 1 or signature.inputs[0].name not in recipe.audio:
        return False
    spec = signature.inputs[0]
    return spec.dtype == "float32" and sum(dim.size != 1 for dim in spec.shape[1:]) == 1


def _takes_text(recipe: Recipe, signature: Signature) -> bool:
    text = recipe.text
    if text is None:
        return False
    return {spec.name for spec in signature.inputs} <= {text.ids, text.mask, text.types}


def _takes_rows(recipe: Recipe, signature: Signature) -> bool:
    """Tell whether a line of a table is a row of a request, as the recipe says or as it stands."""
    if recipe.images or recipe.audio or recipe.text is not None:
        return False
    return bool(signature.inputs) and all(
        spec.name in recipe.columns or _is_flat(spec) for spec in signature.inputs
    )


def _is_flat(spec: TensorSpec) -> bool:
    sizes = [dim.size for dim in spec.shape[1:]]
    return (
        bool(spec.shape)
        and spec.shape[0].size is None
        and None not in sizes
        and math.prod(size for size in sizes if size is not None) <= _MOST_CELLS
    )
