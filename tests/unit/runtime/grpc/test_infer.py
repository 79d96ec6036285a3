"""Requests of every type against a signature, their refusals, and the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import serialize_byte_tensor

from runtime.dtypes import BY_NAME
from runtime.errors import BadRequest
from runtime.grpc.infer import InferMessages
from runtime.sequences import read_control
from runtime.signature import Signature
from runtime.tensor import Tensor

BATCH = {"name": "n", "min": 1, "max": 4, "opt": 1}


def spec(name: str, dtype: str, *dims: Any) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(dims)}


def codec(*inputs: dict[str, Any], outputs: Any = None, read_sequence: Any = None) -> InferMessages:
    signature = Signature({"inputs": inputs, "outputs": outputs or [spec("y", "float32", BATCH)]})
    return InferMessages(
        signature, name="m", version="1", max_typed_bytes=1000, read_sequence=read_sequence
    )


def request(**changes: Any) -> Any:
    message = pb.ModelInferRequest(model_name="m")
    item = message.inputs.add(name="x", datatype="FP32", shape=[2])
    message.raw_input_contents.append(np.array([1, 2], "<f4").tobytes())
    for key, value in changes.items():
        setattr(message, key, value)
    del item
    return message


FLOATS = codec(spec("x", "float32", BATCH))

RAW = {
    "float32": np.array([1.5, -0.0], "<f4"),
    "float64": np.array([1.5, np.nan], "<f8"),
    "float16": np.array([1.5, 2], "<f2"),
    "int8": np.array([-128, 5], "i1"),
    "int16": np.array([-(2**15), 5], "<i2"),
    "int32": np.array([-(2**31), 5], "<i4"),
    "int64": np.array([-(2**63), 5], "<i8"),
    "uint8": np.array([255, 5], "u1"),
    "uint16": np.array([65535, 5], "<u2"),
    "uint32": np.array([2**32 - 1, 5], "<u4"),
    "uint64": np.array([2**64 - 1, 5], "<u8"),
    "bool": np.array([True, False]),
}
TYPED = {
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "bool": "bool_contents",
}


@pytest.mark.parametrize("dtype", [*RAW, "bfloat16"])
def test_raw_values_of_every_type_are_taken_as_they_lie(dtype):
    data = RAW[dtype].tobytes() if dtype in RAW else b"\x80\x3f\x00\x40"
    messages = codec(spec("x", dtype, BATCH))
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype=BY_NAME[dtype].protocol, shape=[2])
    message.raw_input_contents.append(data)
    body = message.SerializeToString()
    for taken in (body, body, bytearray(body)):  # the second time from memory
        tensor = messages.decode(taken).feeds["x"]
        assert (tensor.dtype, tensor.shape, bytes(tensor.data)) == (dtype, (2,), data)


@pytest.mark.parametrize("dtype", sorted(TYPED))
def test_typed_values_of_every_type_become_the_same(dtype):
    messages = codec(spec("x", dtype, BATCH))
    message = pb.ModelInferRequest(model_name="m")
    item = message.inputs.add(name="x", datatype=BY_NAME[dtype].protocol, shape=[2])
    getattr(item.contents, TYPED[dtype]).extend(RAW[dtype].tolist())
    tensor = messages.decode(message.SerializeToString()).feeds["x"]
    assert (tensor.shape, bytes(tensor.data)) == ((2,), RAW[dtype].tobytes())


def test_texts_come_raw_with_lengths_or_typed():
    messages = codec(spec("x", "string", BATCH))
    texts = ["grüß".encode(), b""]
    message = pb.ModelInferRequest(model_name="m")
    item = message.inputs.add(name="x", datatype="BYTES", shape=[2])
    item.contents.bytes_contents.extend(texts)
    assert messages.decode(message.SerializeToString()).feeds["x"].data == texts
    item.ClearField("contents")
    raw = serialize_byte_tensor(np.array(texts, object)).item()
    message.raw_input_contents.append(raw)
    assert messages.decode(message.SerializeToString()).feeds["x"].data == texts
    message.raw_input_contents[0] = raw[:-1]
    with pytest.raises(BadRequest, match="length"):
        messages.decode(message.SerializeToString())


def test_several_inputs_take_their_raw_values_in_order():
    messages = codec(spec("x", "float32", BATCH), spec("k", "int64", 1))
    message = request()
    message.inputs.add(name="k", datatype="INT64", shape=[1])
    message.raw_input_contents.append((7).to_bytes(8, "little"))
    for _ in range(2):
        feeds = messages.decode(message.SerializeToString()).feeds
        assert bytes(feeds["k"].data) == (7).to_bytes(8, "little")
        assert feeds["x"].shape == (2,)


def test_parts_besides_the_inputs_are_read():
    message = request(id="seven")
    message.parameters["timeout"].int64_param = 2_500_000
    message.outputs.add(name="y")
    for _ in range(2):
        found = FLOATS.decode(message.SerializeToString())
        assert (found.id, found.outputs, found.timeout_s) == ("seven", ["y"], 2.5)
        assert found.sequence is None
    assert FLOATS.decode(request().SerializeToString())[1:3] == (None, None)


def test_a_remembered_request_is_not_mistaken_for_another():
    first = request(id="a").SerializeToString()
    assert FLOATS.decode(first).id == "a"
    assert FLOATS.decode(first).id == "a"
    # the same length, but for another model, id, or shape
    assert FLOATS.decode(request(id="b").SerializeToString()).id == "b"
    with pytest.raises(BadRequest, match="no model `n`"):
        FLOATS.decode(request(id="a", model_name="n").SerializeToString())
    changed = pb.ModelInferRequest.FromString(first)
    changed.inputs[0].shape[0] = 4
    with pytest.raises(BadRequest, match="8 bytes where float32 of shape"):
        FLOATS.decode(changed.SerializeToString())
    messages = codec(spec("x", "bool", BATCH))
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="BOOL", shape=[2])
    message.raw_input_contents.append(b"\0\1")
    messages.decode(message.SerializeToString())
    message.raw_input_contents[0] = b"\0\2"
    with pytest.raises(BadRequest, match="neither 0 nor 1"):
        messages.decode(message.SerializeToString())


def test_sequences_are_read_where_the_model_has_state_and_refused_elsewhere():
    message = request()
    message.parameters["sequence_id"].int64_param = 7
    message.parameters["sequence_start"].bool_param = True
    with_state = codec(spec("x", "float32", BATCH), read_sequence=read_control)
    assert with_state.decode(message.SerializeToString()).sequence == ("7", True, False)
    with pytest.raises(BadRequest, match="the parameter `sequence_id` is not served"):
        FLOATS.decode(message.SerializeToString())


def _broken(change: Any) -> bytes:
    message = request()
    change(message)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("change", "said", "status"),
    [
        (lambda m: setattr(m, "model_name", ""), "no model is named", 400),
        (lambda m: setattr(m, "model_name", "z"), "there is no model `z` here", 404),
        (lambda m: setattr(m, "model_version", "9"), "there is no version `9` here", 404),
        (lambda m: m.ClearField("inputs"), "`inputs` has to be a list", 400),
        (lambda m: setattr(m.inputs[0], "name", ""), "an input needs a `name`", 400),
        (lambda m: setattr(m.inputs[0], "name", "q" * 200), "no input `qqq", 400),
        (lambda m: setattr(m.inputs[0], "datatype", ""), "needs a `datatype`, here `FP32`", 400),
        (lambda m: setattr(m.inputs[0], "datatype", "INT8"), "is INT8 where the model", 400),
        (lambda m: m.inputs[0].shape.append(1), "has 2 dimensions where the model", 400),
        (lambda m: m.inputs[0].ClearField("shape"), "has 0 dimensions where the model", 400),
        (lambda m: m.inputs[0].shape.__setitem__(0, -1), "has size -1 in dimension", 400),
        (lambda m: m.inputs[0].shape.__setitem__(0, 2**62), "takes 1 to 4", 400),
        (lambda m: m.inputs[0].shape.__setitem__(0, 3), "8 bytes where float32", 400),
        (lambda m: m.raw_input_contents.append(b""), "2 `raw_input_contents` where", 400),
        (lambda m: m.ClearField("raw_input_contents"), "needs `contents` or", 400),
        (lambda m: m.inputs[0].contents.fp32_contents.extend([1, 2]), "has both", 400),
        (lambda m: m.outputs.add(name="w"), "the model has no output `w`", 400),
        (lambda m: m.outputs.extend([m.outputs.add(name="y")]), "output `y` came twice", 400),
        (lambda m: setattr(m, "id", "i" * 1025), "up to 1024 characters", 400),
        (
            lambda m: setattr(m.parameters["timeout"], "string_param", "soon"),
            "whole number of microseconds",
            400,
        ),
        (
            lambda m: setattr(m.parameters["timeout"], "int64_param", -1),
            "whole number of microseconds",
            400,
        ),
        (
            lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
            "`shared_memory_region` is not served",
            400,
        ),
        (
            lambda m: setattr(
                m.outputs.add(name="y").parameters["classification"], "int64_param", 3
            ),
            "`classification` is not served",
            400,
        ),
    ],
)
def test_refuses_a_request_with_what_is_wrong(change, said, status):
    with pytest.raises(BadRequest, match=said) as caught:
        FLOATS.decode(_broken(change))
    assert caught.value.status == status
    assert len(caught.value.message) < 300


def test_refuses_typed_values_that_do_not_fit():
    def typed(dtype: str, field: str, values: list[Any], shape: int = 2) -> None:
        message = pb.ModelInferRequest(model_name="m")
        item = message.inputs.add(name="x", datatype=BY_NAME[dtype].protocol, shape=[shape])
        getattr(item.contents, field).extend(values)
        codec(spec("x", dtype, BATCH)).decode(message.SerializeToString())

    with pytest.raises(BadRequest, match="out of the range of int8"):
        typed("int8", "int_contents", [1, 200])
    with pytest.raises(BadRequest, match="out of the range of uint16"):
        typed("uint16", "uint_contents", [1, 70000])
    with pytest.raises(BadRequest, match="has 1 elements where shape"):
        typed("int64", "int64_contents", [1])
    with pytest.raises(BadRequest, match="has 1 elements where shape"):
        typed("string", "bytes_contents", [b""])
    with pytest.raises(BadRequest, match="12 bytes where float32"):
        typed("float32", "fp32_contents", [1, 2, 3])
    with pytest.raises(BadRequest, match="have to be in `raw_input_contents`"):
        typed("float16", "fp32_contents", [1, 2])


def test_two_inputs_of_one_name_are_refused():
    message = request()
    message.inputs.add(name="x", datatype="FP32", shape=[2])
    message.raw_input_contents.append(message.raw_input_contents[0])
    with pytest.raises(BadRequest, match="input `x` came twice"):
        FLOATS.decode(message.SerializeToString())


def test_answers_are_what_the_protobuf_library_reads():
    asked = FLOATS.decode(request(id="seven").SerializeToString())
    results = {
        "y": Tensor("float32", (2, 1), np.array([1, np.nan], "<f4").tobytes()),
        "s": Tensor("string", (2,), [b"abc", b""]),
        "h": Tensor("bfloat16", (1,), b"\x80\x3f"),
        "e": Tensor("int64", (0, 3), b""),
    }
    for _ in range(2):
        answer = pb.ModelInferResponse.FromString(FLOATS.encode(asked, results))
        assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "seven")
        assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
            ("y", "FP32", [2, 1]), ("s", "BYTES", [2]), ("h", "BF16", [1]), ("e", "INT64", [0, 3]),
        ]  # fmt: skip
        assert list(answer.raw_output_contents) == [
            results["y"].data, b"\3\0\0\0abc\0\0\0\0", b"\x80\x3f", b"",
        ]  # fmt: skip
