"""Requests are cut into pieces that the model takes, and put together they are the request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.core import InferRequest
from runtime.dtypes import BY_NAME
from runtime.errors import BadRequest
from runtime.pieces import MAX_PIECES, Cutter, cut_tensor
from runtime.tensor import Tensor


def tensor_of(array: np.ndarray) -> Tensor:
    return Tensor(str(array.dtype), array.shape, array.tobytes())


def array_of(tensor: Tensor) -> np.ndarray:
    assert len(tensor.data) == np.prod(tensor.shape) * BY_NAME[tensor.dtype].itemsize
    return np.frombuffer(bytes(tensor.data), tensor.dtype).reshape(tensor.shape)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "float16"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_along_an_axis_is_what_numpy_cuts(dtype: str, axis: int) -> None:
    array = np.arange(4 * 5 * 6).astype(dtype).reshape(4, 5, 6)
    part = cut_tensor(tensor_of(array), axis, 1, 3)
    assert np.array_equal(array_of(part), array.take([1, 2], axis))


def test_strings_are_cut_between_each_other() -> None:
    tensor = Tensor("string", (2, 3), [b"a", b"b", b"c", b"d", b"e", b"f"])
    assert cut_tensor(tensor, 0, 1, 2) == Tensor("string", (1, 3), [b"d", b"e", b"f"])
    assert cut_tensor(tensor, 1, 1, 3) == Tensor("string", (2, 2), [b"b", b"c", b"e", b"f"])


def dim(name: str, least: int, most: int | None) -> dict[str, Any]:
    return {"name": name, "min": least, "max": most, "opt": least}


def spec(name: str, *shape: Any) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": list(shape)}


def cutter(inputs: list[dict[str, Any]], cut: list[str], *, axis: int = 1, chunk: int) -> Cutter:
    wire = {"inputs": inputs, "outputs": [spec("y", 1)]}
    return Cutter({}, {"signature": wire, "axis": axis, "chunk": chunk, "cut": cut})


def request_of(**shapes: tuple[int, ...]) -> InferRequest:
    arrays = {
        name: np.random.default_rng(1).random(shape, np.float32) for name, shape in shapes.items()
    }
    return InferRequest({name: tensor_of(array) for name, array in arrays.items()})


def test_pieces_put_together_are_the_request_and_other_inputs_go_along_whole() -> None:
    cuts = cutter([spec("x", 1, dim("time", 2, 4), 3), spec("who", 1, 8)], ["x"], chunk=4)
    request = request_of(x=(1, 10, 3), who=(1, 8))
    cuts.signature.check(request.feeds)
    count, pieces = cuts.cut(request)
    found = list(pieces)
    assert [piece["x"].shape for piece in found] == [(1, 4, 3), (1, 4, 3), (1, 2, 3)]
    assert count == 3
    whole = np.concatenate([array_of(piece["x"]) for piece in found], axis=1)
    assert np.array_equal(whole, array_of(request.feeds["x"]))
    assert all(piece["who"] is request.feeds["who"] for piece in found)


def test_pieces_of_one_fixed_length_have_to_come_out_even() -> None:
    cuts = cutter([spec("x", 1, 4)], ["x"], chunk=4)
    even = request_of(x=(1, 12))
    cuts.signature.check(even.feeds)
    assert cuts.cut(even)[0] == 3
    with pytest.raises(BadRequest, match="leaves a last piece of 2") as refused:
        cuts.cut(request_of(x=(1, 10)))
    assert refused.value.hint == "pieces have 4"


def test_a_last_piece_that_is_too_short_is_refused() -> None:
    cuts = cutter([spec("x", 1, dim("time", 3, 8))], ["x"], chunk=8)
    assert cuts.cut(request_of(x=(1, 11)))[0] == 2
    with pytest.raises(BadRequest, match="leaves a last piece of 2") as refused:
        cuts.cut(request_of(x=(1, 10)))
    assert refused.value.hint == "pieces have 8, the last one at least 3"


def test_inputs_that_are_cut_together_are_of_one_length() -> None:
    cuts = cutter([spec("x", 1, dim("s", 1, 4)), spec("z", 1, dim("t", 1, 4))], ["x", "z"], chunk=4)
    with pytest.raises(BadRequest, match=r"differ in length: `x` 8, `z` 7"):
        cuts.cut(request_of(x=(1, 8), z=(1, 7)))


def test_the_number_of_pieces_is_bounded_before_any_is_made() -> None:
    cuts = cutter([spec("x", 1, dim("time", 1, 1))], ["x"], chunk=1)
    assert cuts.cut(request_of(x=(1, MAX_PIECES)))[0] == MAX_PIECES
    with pytest.raises(BadRequest, match="has size 4097 in dimension 1"):
        cuts.signature.check(request_of(x=(1, MAX_PIECES + 1)).feeds)
    with pytest.raises(BadRequest, match="1 to 4096 answers, and this is 4097"):
        cuts.cut(request_of(x=(1, MAX_PIECES + 1)))


def test_a_model_with_state_and_no_axis_answers_once() -> None:
    wire = {"inputs": [spec("x", 1, 4)], "outputs": [spec("y", 1)]}
    cuts = Cutter({}, {"signature": wire, "axis": None, "chunk": 0, "cut": []})
    request = request_of(x=(1, 4))
    count, pieces = cuts.cut(request)
    assert (count, list(pieces)) == (1, [request.feeds])


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ([spec("x", dim("n", 0, 8), 2), spec("k", 1)], 3),
        ([spec("x", dim("n", 1, 8), 2), spec("k", dim("n", 1, 8))], 3),
        # without a batch that can be one, everything is one answer
        ([spec("x", 3, 2), spec("k", 1)], 1),
        ([spec("x", dim("n", 2, 8), 2), spec("k", 1)], 1),
    ],
)
def test_a_model_without_state_is_cut_between_its_rows(
    inputs: list[dict[str, Any]], rows: int
) -> None:
    cuts = Cutter({"signature": {"inputs": inputs, "outputs": [spec("y", 1)]}}, None)
    shared = isinstance(inputs[1]["shape"][0], dict)
    request = request_of(x=(3, 2), k=(3,) if shared else (1,))
    cuts.signature.check(request.feeds)
    count, pieces = cuts.cut(request)
    found = list(pieces)
    assert (count, len(found)) == (rows, rows)
    if rows > 1:
        assert np.array_equal(
            np.concatenate([array_of(piece["x"]) for piece in found]),
            array_of(request.feeds["x"]),
        )
        assert {piece["k"].shape for piece in found} == {(1,)}
