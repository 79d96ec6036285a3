"""Profiles: the declared ranges, and shapes found by running the part in front."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from packager.backends.tensorrt.profiles import profile_sizes, profiles_of, shape_at, zeros_at
from packager.errors import UsageError
from packager.model import Dim, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCH = Dim(name="batch", min=1, max=32, opt=1)
TOKENS = Dim(name="tokens", min=4, max=128, opt=16)


def signature(*shapes: tuple[Dim, ...], dtype: str = "float32") -> Signature:
    inputs = tuple(
        TensorSpec(name=f"x{at}", dtype=dtype, shape=shape) for at, shape in enumerate(shapes)
    )
    return Signature(inputs=inputs, outputs=())


def test_single_requests_get_a_profile_of_their_own() -> None:
    one, many = profile_sizes(signature((BATCH, TOKENS), (BATCH,)))
    assert one.dims == {"batch": (1, 1, 1), "tokens": (4, 16, 128)}
    assert many.dims == {"batch": (1, 32, 32), "tokens": (4, 16, 128)}


@pytest.mark.parametrize(
    "shapes",
    [
        ((Dim(size=1), TOKENS),),
        ((Dim(name="batch", min=1, max=8, opt=8), Dim(size=3)),),
        ((Dim(name="batch", min=1, max=1, opt=1), TOKENS),),
        ((BATCH, Dim(size=3)), (TOKENS, Dim(size=3))),
    ],
)
def test_any_other_model_gets_one_profile(shapes: tuple[tuple[Dim, ...], ...]) -> None:
    (only,) = profile_sizes(signature(*shapes))
    assert only.dims == {
        d.name: (d.min, d.opt, d.max) for shape in shapes for d in shape if d.name is not None
    }


def test_a_range_without_an_end_is_refused_with_the_way_out() -> None:
    open_ended = signature((Dim(name="frames", min=2, max=None, opt=5),))
    with pytest.raises(UsageError, match="`frames` has no upper end") as refused:
        profile_sizes(open_ended)
    assert refused.value.hint == "give it one with `--dim frames=2..64,opt=5`"


def test_a_size_that_no_dimension_names_is_refused() -> None:
    with pytest.raises(UsageError, match="`x0` has a size that no dimension names"):
        profile_sizes(signature((Dim(name=None),)))


def test_profiles_hold_the_shapes_that_were_found() -> None:
    asked = []

    def shapes_at(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        asked.append(sizes)
        return {"features": (sizes["batch"], 3, 2 * sizes["tokens"])}

    one, many = profiles_of(signature((BATCH, TOKENS)), ["features"], shapes_at)
    assert one == {"features": {"min": [1, 3, 8], "opt": [1, 3, 32], "max": [1, 3, 256]}}
    assert many == {"features": {"min": [1, 3, 8], "opt": [32, 3, 32], "max": [32, 3, 256]}}
    assert len(asked) == 6


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64", "bool", "bfloat16", "string"])
def test_a_request_of_zeros_has_the_declared_type_and_sizes(dtype: str) -> None:
    asked = signature((BATCH, Dim(size=3)), dtype=dtype)
    (array,) = zeros_at(asked, {"batch": 2}).values()
    assert array.shape == shape_at(asked.inputs[0], {"batch": 2}) == (2, 3)
    assert array.dtype == (object if dtype == "string" else np.dtype(dtype))
