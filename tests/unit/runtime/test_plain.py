"""`/predict`: nested lists in, nested lists out, an object where names are needed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.errors import BadRequest
from runtime.jsontext import Writer, loads
from runtime.plain import PlainProtocol
from runtime.signature import Signature
from runtime.tensor import Tensor
from tests.unit.runtime.live_server import BATCH, tensor

ONE = Signature({"inputs": [tensor("x", "float32", BATCH, 2)], "outputs": []})
TWO = Signature(
    {"inputs": [tensor("a", "int64", BATCH), tensor("s", "string", BATCH, 1)], "outputs": []}
)


def decode(signature: Signature, data: Any) -> dict[str, Tensor]:
    return PlainProtocol(signature).decode(json.dumps({"data": data}).encode())


def result(**outputs: Tensor) -> Any:
    return json.loads(PlainProtocol(ONE).encode(outputs).body)["result"]


def test_the_nesting_is_the_shape() -> None:
    found = decode(ONE, [[1, 2], [3.5, -4]])["x"]
    assert (found.dtype, found.shape) == ("float32", (2, 2))
    assert found.to_nested() == [[1, 2], [3.5, -4]]


def test_a_single_input_may_be_named_too() -> None:
    assert decode(ONE, {"x": [[1, 2]]}) == decode(ONE, [[1, 2]])


def test_several_inputs_come_by_name() -> None:
    found = decode(TWO, {"s": [["grüß"]], "a": [7]})
    assert found["s"].data == ["grüß".encode()]
    assert found["a"].to_nested() == [7]


@pytest.mark.parametrize(
    ("signature", "data", "said"),
    [
        (TWO, [[1]], "an object with the inputs `a`, `s`"),
        (TWO, {"a": [1]}, "missing input `s`"),
        (TWO, {"a": [1], "s": [["x"], ["y"]]}, "dimension `batch` is 1"),
        (TWO, {"a": [1.5], "s": [["x"]]}, "an integer"),
        (TWO, {"a": [2**63], "s": [["x"]]}, "out of the range of int64"),
        (TWO, {"a": [1], "s": [[1]]}, "a string"),
        (TWO, {"a": [1], "s": [["\ud800"]]}, "lone surrogate"),
        (ONE, [[1, 2, 3]], "size 3 in dimension 1"),
        (ONE, [1, 2], "1 dimensions where the model takes 2"),
        (ONE, 1, "0 dimensions"),
        (ONE, [[]], "size 0 in dimension 1"),
        (ONE, {"y": [[1, 2]]}, "no input `y`"),
    ],
)
def test_data_that_does_not_fit_is_refused(signature: Signature, data: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        decode(signature, data)
    assert caught.value.status == 400


def test_a_negative_zero_keeps_its_sign() -> None:
    assert str(result(y=Tensor.from_nested(-0.0, "float32"))) == "-0.0"
    assert str(result(y=Tensor.from_nested([[-0.0, -0.0, 0.0, -10.0]], "float32"))) == (
        "[[-0.0, -0.0, 0, -10]]"
    )


def test_one_output_is_bare_and_several_are_an_object() -> None:
    first = Tensor.from_nested([[1.5, 2]], "float32")
    second = Tensor.from_nested([True, False], "bool")
    assert result(y=first) == [[1.5, 2]]
    assert result(y=first, z=second) == {"y": [[1.5, 2]], "z": [True, False]}
    assert result(y=Tensor.from_nested(3.0, "float64")) == 3.0
    assert result(y=Tensor("string", (2,), [b'a"\n', "ü".encode()])) == ['a"\n', "ü"]


def test_what_is_not_finite_is_null_and_marked() -> None:
    odd = Tensor.from_nested(
        [[1.0, float("nan")], [float("inf"), -float("inf")]], "float32", allow_non_finite=True
    )
    answer = PlainProtocol(ONE).encode({"y": odd})
    assert json.loads(answer.body) == {"result": [[1.0, None], [None, None]]}
    assert b"X-Non-Finite: 1\r\n" in answer.fields
    text = Tensor("string", (1,), [b"nan and inf"])
    answer = PlainProtocol(ONE).encode({"y": text})
    assert json.loads(answer.body) == {"result": ["nan and inf"]}
    assert b"X-Non-Finite" not in answer.fields


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_numbers_come_back_exactly(dtype: str) -> None:
    values = [0.1, 1 / 3, 1e-7, 6.1e-5, 3e4, -0.0, 16777217.0 % 60000]
    sent = Tensor.from_flat(values, (7,), dtype)
    text, exact = Writer().flat(sent)
    assert exact
    assert Tensor.from_flat(loads(text.encode()), (7,), dtype) == sent


@pytest.mark.parametrize("shape", [(20000,), (2, 10000), (5, 1, 4000), (0, 3), (3, 0), (), (1, 1)])
def test_large_and_empty_shapes_are_written_like_small_ones(shape: tuple[int, ...]) -> None:
    count = 1
    for size in shape:
        count *= size
    sent = Tensor.from_flat(list(range(count)), shape, "int32")
    writer = Writer()
    assert json.loads(writer.flat(sent)[0]) == sent.to_flat()
    assert json.loads(writer.nested(sent)[0]) == sent.to_nested()


@pytest.mark.parametrize("body", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"x,y\n1,2\n", b""])
def test_a_file_that_came_as_json_is_told_to_say_its_kind(body: bytes) -> None:
    protocol = PlainProtocol(ONE, bodies=["text/csv", "image/png"])
    with pytest.raises(BadRequest) as caught:
        protocol.decode(body)
    assert caught.value.hint == (
        "a body that is no JSON needs its `Content-Type`, here `image/png` or `text/csv`"
    )


@pytest.mark.parametrize("body", [b'{"data": [', b"[1,", b' {"data"}'])
def test_broken_json_is_told_as_what_it_is(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        PlainProtocol(ONE, bodies=["text/csv"]).decode(body)
    assert caught.value.hint is None


def test_a_request_of_the_protocol_is_told_where_it_belongs() -> None:
    with pytest.raises(BadRequest) as caught:
        PlainProtocol(ONE).decode(b'{"inputs": []}')
    assert caught.value.hint == "a request with `inputs` goes to `/v2/models/NAME/infer`"
