"""Requests are held against the signature before they cost memory."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import BadRequest, ModelFault
from runtime.signature import Dimension, Signature, describe_dims
from runtime.tensor import Tensor

BATCH = {"name": "batch", "min": 1, "max": 32, "opt": 8}
WIRE = {
    "inputs": [
        {"name": "pixels", "dtype": "uint8", "shape": [BATCH, 2, 2]},
        {"name": "scale", "dtype": "float32", "shape": [BATCH]},
    ],
    "outputs": [
        {"name": "boxes", "dtype": "float32", "shape": [{"name": None, "min": 0, "max": None}, 4]}
    ],
}


def feeds(batch: int = 1, **changed: Tensor) -> dict[str, Tensor]:
    good = {
        "pixels": Tensor("uint8", (batch, 2, 2), bytes(4 * batch)),
        "scale": Tensor("float32", (batch,), bytes(4 * batch)),
    }
    return {**good, **changed}


def test_a_request_inside_the_signature_passes() -> None:
    signature = Signature(WIRE)
    for batch in (1, 8, 32):
        signature.check(feeds(batch))


def test_the_dimensions_are_read_as_they_are_written() -> None:
    signature = Signature(WIRE)
    assert signature.inputs["pixels"].dims == (Dimension("batch", 1, 32, 8), 2, 2)
    assert signature.outputs["boxes"].dims == (Dimension(None, 0, None, None), 4)
    assert describe_dims(signature.outputs["boxes"].dims) == "[?, 4]"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pixels": Tensor("uint8", (1, 2), b"")}, "input `pixels` has 2 dimensions where the mo"),
        (
            {"pixels": Tensor("uint8", (1, 2, 3), b"")},
            "input `pixels` has size 3 in dimension 2 where the model [batch, 2, 2] takes 2",
        ),
        (
            {"pixels": Tensor("uint8", (33, 2, 2), b"")},
            "input `pixels` has size 33 in dimension 0 where the model [batch, 2, 2] takes 1 to 32",
        ),
        ({"pixels": Tensor("uint8", (0, 2, 2), b"")}, "input `pixels` has size 0 in dimension 0"),
        ({"pixels": Tensor("uint8", (-1, 2, 2), b"")}, "input `pixels` has size -1 in dimension"),
        (
            {"pixels": Tensor("int8", (1, 2, 2), b"")},
            "input `pixels` is int8 where the model takes uint8",
        ),
        (
            {"scale": Tensor("float32", (3,), b"")},
            "dimension `batch` is 1 in input `pixels` and 3 in input `scale`",
        ),
    ],
)
def test_a_request_outside_the_signature_is_told_why(
    changed: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        Signature(WIRE).check(feeds(**changed))
    assert caught.value.message.startswith(message)
    assert caught.value.status == 400


def test_names_that_are_not_there_are_named() -> None:
    signature = Signature(WIRE)
    with pytest.raises(BadRequest, match="missing input `pixels`, `scale`"):
        signature.check({})
    with pytest.raises(BadRequest, match="the model has no input `pixls`") as caught:
        signature.check(feeds(pixls=Tensor("uint8", (1, 2, 2), b"")))
    assert caught.value.hint == "did you mean `pixels`?"
    with pytest.raises(BadRequest, match="the model has no output `masks`") as caught:
        signature.check_outputs(["boxes", "masks"])
    assert caught.value.hint == "it has `boxes`"
    signature.check_outputs(["boxes"])


@pytest.mark.parametrize("shape", [[1, 2, 2.0], [True, 2, 2], ["1", 2, 2], [None, 2, 2]])
def test_a_shape_from_the_wire_may_hold_anything(shape: list[Any]) -> None:
    signature = Signature(WIRE)
    signature.check_shape("pixels", [1, 2, 2])
    with pytest.raises(BadRequest, match="input `pixels` has a shape that is not of integers"):
        signature.check_shape("pixels", shape)
    with pytest.raises(BadRequest, match="the model has no input `x`"):
        signature.check_shape("x", [1])


def test_a_declared_type_is_checked_on_its_own() -> None:
    signature = Signature(WIRE)
    signature.check_dtype("scale", "float32")
    with pytest.raises(BadRequest, match="input `scale` is FP64 where the model takes FP32"):
        signature.check_dtype("scale", "float64")


@pytest.mark.parametrize(
    ("datatype", "message", "hint"),
    [
        ("fp32", "`fp32` of input `scale` is no `datatype`", "it is `FP32`"),
        ("", "input `scale` needs a `datatype`, here `FP32`", None),
        (7, "input `scale` needs a `datatype`, here `FP32`", None),
    ],
)
def test_a_type_that_the_protocol_does_not_have_is_told_with_the_one_it_is(
    datatype: object, message: str, hint: str | None
) -> None:
    error = Signature(WIRE).wrong_datatype("scale", datatype)
    assert (error.message, error.hint, error.status) == (message, hint, 400)


def test_one_dimension_twice_in_one_input_has_one_size() -> None:
    side = {"name": "side", "min": 1, "max": None, "opt": 4}
    signature = Signature(
        {"inputs": [{"name": "m", "dtype": "int8", "shape": [side, side]}], "outputs": []}
    )
    signature.check({"m": Tensor("int8", (3, 3), bytes(9))})
    with pytest.raises(BadRequest, match="dimension `side` is 3 in input `m` and 4 in input `m`"):
        signature.check({"m": Tensor("int8", (3, 4), bytes(12))})
    with pytest.raises(BadRequest, match="takes at least 1"):
        signature.check_shape("m", [0, 0])


def test_the_largest_request_is_known_only_where_everything_is_bounded() -> None:
    assert Signature(WIRE).max_bytes() == 32 * 4 + 32 * 4
    unbounded = {"name": "n", "min": 1, "max": None, "opt": None}
    for spec in ({"dtype": "float32", "shape": [unbounded]}, {"dtype": "string", "shape": [1]}):
        assert Signature({"inputs": [{"name": "x", **spec}], "outputs": []}).max_bytes() is None


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"inputs": [{"name": "x"}], "outputs": []},
        {"inputs": [{"name": "x", "dtype": "complex64", "shape": []}], "outputs": []},
        {"inputs": [{"name": "x", "dtype": "int8", "shape": ["n"]}], "outputs": []},
    ],
)
def test_a_manifest_with_another_form_is_a_fault(wire: dict[str, Any]) -> None:
    with pytest.raises(ModelFault, match="the manifest's signature cannot be read"):
        Signature(wire)
