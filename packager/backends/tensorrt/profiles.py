"""Optimization profiles: the sizes that an engine is built and tuned for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from packager.model import Dim, Signature, TensorSpec

    Shapes = Mapping[str, tuple[int, ...]]

# Where a dimension is asked for at its smallest size first of all, a profile of its own for
# exactly that size lets TensorRT choose kernels for it alone.
_BATCH: Final = 0
_KINDS: Final = ("min", "opt", "max")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of every named dimension, for one profile: by name, (least, tuned for, most)."""

    dims: Mapping[str, tuple[int, int, int]]

    def at(self, kind: int) -> dict[str, int]:
        """Return the size of each dimension: 0 the least, 1 the tuned for, 2 the most."""
        return {name: sizes[kind] for name, sizes in self.dims.items()}


def profile_sizes(signature: Signature) -> tuple[Sizes, ...]:
    """Return the sizes of each profile, those of single requests first.

    A model whose leading dimension is tuned for one row but takes more gets two: one for exactly
    one row, and one that is tuned for the most. Any other model gets one.

    Args:
        signature: What clients see.

    Raises:
        UsageError: a dimension without an end, or one that only the data decides.
    """
    dims = signature.dims()
    for spec in signature.inputs:
        for dim in spec.shape:
            if dim.size is None and dim.name is None:
                raise UsageError(f"input `{spec.name}` has a size that no dimension names")
    ranges = {name: _range_of(name, dim) for name, dim in dims.items()}
    batch = _batch_of(signature)
    if batch is None or ranges[batch][1] != 1 or ranges[batch][2] == 1:
        return (Sizes(dims=ranges),)
    most = ranges[batch][2]
    return (
        Sizes(dims={**ranges, batch: (1, 1, 1)}),
        Sizes(dims={**ranges, batch: (ranges[batch][0], most, most)}),
    )


def profiles_of(
    signature: Signature, inputs: Sequence[str], shapes_at: Callable[[Mapping[str, int]], Shapes]
) -> tuple[dict[str, dict[str, list[int]]], ...]:
    """Return the profiles as an engine recipe holds them: `{input: {"min", "opt", "max"}}`.

    Args:
        signature: What clients see.
        inputs: Of the part that TensorRT runs.
        shapes_at: Tells the shapes of that part's inputs where the named dimensions have the
            given sizes; found by running the part before it, not by trusting declarations.

    Raises:
        UsageError: see `profile_sizes`.
    """
    found = []
    for sizes in profile_sizes(signature):
        shapes = [shapes_at(sizes.at(kind)) for kind in range(len(_KINDS))]
        found.append({
            name: {word: list(shapes[at][name]) for at, word in enumerate(_KINDS)}
            for name in inputs
        })  # fmt: skip
    return tuple(found)


def shape_at(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return an input's shape where the named dimensions have the given sizes."""
    return tuple(d.size if d.size is not None else sizes[str(d.name)] for d in spec.shape)


def zeros_at(signature: Signature, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return one request of zeros (empty strings) at the given sizes."""
    import numpy as np

    kinds = {"string": object, "bfloat16": None}
    feeds = {}
    for spec in signature.inputs:
        kind = kinds.get(spec.dtype, spec.dtype)
        if kind is None:
            import ml_dtypes

            kind = ml_dtypes.bfloat16
        fill: Any = "" if spec.dtype == "string" else 0
        feeds[spec.name] = np.full(shape_at(spec, sizes), fill, kind)
    return feeds


def _batch_of(signature: Signature) -> str | None:
    """Return the dimension that leads every input, if one does."""
    leading = {spec.shape[_BATCH].name if spec.shape else None for spec in signature.inputs}
    name = next(iter(leading)) if len(leading) == 1 else None
    return name if name is not None and name in signature.dims() else None


def _range_of(name: str, dim: Dim) -> tuple[int, int, int]:
    if dim.max is None:
        raise UsageError(
            f"dimension `{name}` has no upper end, and an engine is built for a range",
            hint=f"give it one with `--dim {name}={dim.min}..64,opt={dim.opt or dim.min}`",
        )
    return dim.min, dim.opt if dim.opt is not None else dim.min, dim.max
