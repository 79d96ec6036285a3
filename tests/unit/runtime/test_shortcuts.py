"""Shortcuts say the same as the full check, or nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import BadRequest
from runtime.inference import InferenceProtocol, InferRequest
from runtime.signature import Signature
from tests.unit.runtime.live_server import BATCH, tensor

FLOATS = Signature({"inputs": [tensor("x", "float32", BATCH, 2)], "outputs": []})
MIXED = Signature(
    {"inputs": [tensor("a", "int16", BATCH), tensor("b", "float32", BATCH, 2)], "outputs": []}
)
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from([0, -1, 7, 1e39, -1e39, 3.4028235e38, 10**400, 2**64, True, None, "1", [1]]),
)
tokens = st.sampled_from(["1e400", "-1e400", "1E5", "-0", "0.1", "true"])


def answer(protocol: InferenceProtocol, body: bytes, size: int | None = None) -> Any:
    try:
        request = protocol.decode(body, size)
    except BadRequest as error:
        return str(error), error.status
    return request


def same(warm: Any, cold: Any) -> bool:
    if isinstance(cold, InferRequest):
        return isinstance(warm, InferRequest) and list(warm) == list(cold)
    return bool(warm == cold)


def flat_body(shape: str, data: str, more: str = "") -> bytes:
    item = f'{{"name":"x","shape":{shape},"datatype":"FP32","data":[{data}]{more}}}'
    return f'{{"inputs":[{item}]}}'.encode()


@pytest.fixture(scope="module")
def warm() -> InferenceProtocol:
    protocol = InferenceProtocol(FLOATS, name="m", version="1")
    for count in (1, 2, 3):
        protocol.decode(flat_body(f"[{count}, 2]", ",".join(["0.5"] * count * 2)))
    return protocol


def agrees(warm: InferenceProtocol, body: bytes) -> bool:
    cold = InferenceProtocol(FLOATS, name="m", version="1")
    return same(answer(warm, body), answer(cold, body))


@given(data=st.lists(numbers, min_size=1, max_size=6), rows=st.integers(0, 3))
def test_numbers_of_every_kind_are_taken_or_refused_alike(
    warm: InferenceProtocol, data: list[Any], rows: int
) -> None:
    assert agrees(warm, flat_body(f"[{rows}, 2]", json.dumps(data)[1:-1]))


@given(data=st.lists(tokens, min_size=2, max_size=2))
def test_odd_spellings_are_taken_or_refused_alike(warm: InferenceProtocol, data: list[str]) -> None:
    assert agrees(warm, flat_body("[1, 2]", ",".join(data)))


@pytest.mark.parametrize(
    "body",
    [
        flat_body("[1.0, 2]", "1,2"),
        flat_body("[true, 2]", "1,2"),
        flat_body('"[1, 2]"', "1,2"),
        flat_body("[[1, 2]]", "1,2"),
        flat_body("[1, 2]", "1,2", ',"parameters":{"binary_data_size":8}'),
        flat_body("[1, 2]", "1,2", ',"parameters":{}'),
        flat_body("[1, 2]", "1,2", ',"odd":1'),
        flat_body("[1, 2]", "[1,2]"),
        flat_body("[1, 2]", "1,2")[:-1] + b',"id":"seven"}',
        flat_body("[1, 2]", "1,2")[:-1] + b',"odd":1}',
        flat_body("[1, 2]", "1,2").replace(b'"x"', b'"y"'),
        flat_body("[1, 2]", "1,2").replace(b"FP32", b"FP64"),
        b'{"inputs":{"x":1}}',
        b'{"inputs":["x"]}',
        b'{"inputs":5}',
        b'["inputs"]',
        b'"inputs"',
    ],
)
def test_requests_off_the_common_form_are_taken_or_refused_alike(
    warm: InferenceProtocol, body: bytes
) -> None:
    assert agrees(warm, body)


def binary_body(rows: int, **more: Any) -> tuple[bytes, int]:
    inputs = [
        {"name": "b", "shape": [rows, 2], "datatype": "FP32",
         "parameters": {"binary_data_size": rows * 8}},
        {"name": "a", "shape": [rows], "datatype": "INT16",
         "parameters": {"binary_data_size": rows * 2}},
    ]  # fmt: skip
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + bytes(range(rows * 10)), len(header)


@pytest.mark.parametrize("more", [{}, {"id": "q"}, {"parameters": {"binary_data_output": True}}])
def test_a_repeated_binary_header_gives_the_same_request(more: dict[str, Any]) -> None:
    protocol = InferenceProtocol(MIXED, name="m", version="1")
    body, size = binary_body(3, **more)
    first, again = protocol.decode(body, size), protocol.decode(body, size)
    assert list(first) == list(again)
    assert bytes(again.feeds["a"].data) == bytes(range(24, 30))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_repeated_binary_header_with_other_bytes_is_refused(change: int) -> None:
    protocol = InferenceProtocol(MIXED, name="m", version="1")
    body, size = binary_body(3)
    protocol.decode(body, size)
    with pytest.raises(BadRequest, match="bytes"):
        protocol.decode(body[:change] if change < 0 else body + b"\0", size)


def test_booleans_are_looked_at_every_time() -> None:
    signature = Signature({"inputs": [tensor("b", "bool", 2)], "outputs": []})
    protocol = InferenceProtocol(signature, name="m", version="1")
    item = {
        "name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2},
    }  # fmt: skip
    header = json.dumps({"inputs": [item]}).encode()
    protocol.decode(header + b"\1\0", len(header))
    with pytest.raises(BadRequest, match="neither 0 nor 1"):
        protocol.decode(header + b"\1\2", len(header))
