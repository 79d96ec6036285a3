"""Photos as inputs: what the graph takes, and what a recipe may ask for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from packager.errors import UsageError
from packager.model import Dim, Signature, TensorSpec
from packager.passes.photo import LEAST_OPSET, photo_steps
from packager.passes.steps import Steps, compile_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from packager.recipe import ImageInput

__all__ = ["LEAST_OPSET", "check_photo", "is_photo_array", "photo_spec", "preprocess_session"]

# With these bounds a narrow strip, resized by its shorter side, stays below about 400 MB.
LEAST_SIDE: Final = 4
LARGEST_SIDE: Final = 8192


def check_photo(image: ImageInput, spec: TensorSpec) -> dict[str, int]:
    """Check that photos, pre-processed, are what an input takes.

    Returns:
        The size of each named dimension that is fixed thereby.

    Raises:
        UsageError: they are not.
    """
    name = spec.name
    height, width = image.size
    nchw = image.layout == "nchw"
    wanted = (3, height, width) if nchw else (height, width, 3)
    found = tuple(dim.size for dim in spec.shape[1:])
    if len(found) != 3 or any(f not in (None, w) for f, w in zip(found, wanted, strict=True)):
        other = "nhwc" if nchw else "nchw"
        swapped = len(found) == 3 and found[2 if nchw else 0] == 3
        raise UsageError(
            f"`input.{name}.image` makes [batch, {', '.join(map(str, wanted))}]",
            accepted=f"what the model takes, `{spec}`",
            hint=f'set `layout = "{other}"`' if swapped else None,
        )
    plain = not image.scale and set(image.mean) == {0.0} and set(image.std) == {1.0}
    if spec.dtype == "uint8" and not plain:
        raise UsageError(
            f"the model takes `{name}` as uint8, which cannot be normalized",
            accepted="`scale = false` without `mean` and `std`",
        )
    if "float" not in spec.dtype and spec.dtype != "uint8":
        raise UsageError(f"the input `{name}` is {spec.dtype}", accepted="a float input")
    return {
        dim.name: size
        for dim, size in zip(spec.shape[1:], wanted, strict=True)
        if dim.size is None and dim.name is not None
    }


def photo_spec(spec: TensorSpec, image: ImageInput, signature: Signature, count: int) -> TensorSpec:
    """Return the input as clients see it: uint8 [batch, height, width, 3] of any size.

    Args:
        spec: The model's own.
        image: Whose size before the crop is what the engine is tuned for.
        signature: The model's; names of its dimensions are not taken again.
        count: How many image inputs there are; several have sizes of their own.
    """
    alone = count == 1 and not {"height", "width"} & set(signature.dims())
    prefix = "" if alone else f"{spec.name}_"
    opt = (image.resize, image.resize) if image.resize is not None else image.size
    sides = tuple(
        Dim(
            name=f"{prefix}{side}",
            min=LEAST_SIDE,
            max=LARGEST_SIDE,
            opt=min(max(size, LEAST_SIDE), LARGEST_SIDE),
        )
        for side, size in zip(("height", "width"), opt, strict=True)
    )
    return dataclasses.replace(spec, dtype="uint8", shape=(spec.shape[0], *sides, Dim(size=3)))


def is_photo_array(array: NDArray[Any]) -> bool:
    """Tell photos from an array that is already in the model's own form."""
    return array.dtype.name == "uint8" and array.ndim == 4 and array.shape[-1] == 3


def preprocess_session(
    image: ImageInput, dtype: str = "float32"
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function from uint8 [n, height, width, 3] photos to what the model takes.

    It runs the very nodes that `inputs.attach` puts into the graph.
    """
    steps = Steps(prefix="photo", opset=LEAST_OPSET)
    photo_steps(steps, image, "photo", "prepared", dtype)
    free = tuple(Dim(name=name) for name in ("n", "height", "width"))
    source = TensorSpec(name="photo", dtype="uint8", shape=(*free, Dim(size=3)))
    made = TensorSpec(name="prepared", dtype=dtype, shape=(Dim(name="n"), Dim(), Dim(), Dim()))
    run = compile_steps(steps, [source], [made])
    return lambda photos: run({"photo": photos})["prepared"]
