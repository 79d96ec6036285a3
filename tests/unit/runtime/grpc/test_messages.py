"""Messages against the protobuf library's own, and against whoever writes them wrongly."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from runtime.errors import BadRequest
from runtime.grpc import messages, protobuf

PARAMETERS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.text(max_size=8),
    st.floats(allow_nan=False),
)
TEXTS = st.text(max_size=12)
NUMBER_LISTS = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "bytes_contents": st.binary(max_size=9),
}
DATATYPES = {
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT8",
    "uint64_contents": "UINT64",
    "bytes_contents": "BYTES",
}


def fill(parameters: Any, given_values: dict[str, Any]) -> None:
    for key, value in given_values.items():
        kind = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
        setattr(parameters[key], f"{kind}_param", value)


@st.composite
def requests(draw: Any) -> Any:
    message = pb.ModelInferRequest(
        model_name=draw(TEXTS), model_version=draw(TEXTS), id=draw(TEXTS)
    )
    fill(message.parameters, draw(st.dictionaries(TEXTS, PARAMETERS, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        item = message.inputs.add(name=draw(TEXTS), datatype=draw(TEXTS))
        item.shape.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)))
        fill(item.parameters, draw(st.dictionaries(TEXTS, PARAMETERS, max_size=2)))
    for _ in range(draw(st.integers(0, 2))):
        output = message.outputs.add(name=draw(TEXTS))
        fill(output.parameters, draw(st.dictionaries(TEXTS, PARAMETERS, max_size=2)))
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=200), max_size=3)))
    return message


@settings(max_examples=120, deadline=None)
@given(requests())
def test_reads_what_the_library_writes(message):
    body = message.SerializeToString()
    found = messages.read_infer(body)
    assert (found.model_name, found.model_version, found.id) == (
        message.model_name, message.model_version, message.id,
    )  # fmt: skip

    def values(parameters: Any) -> dict[str, Any]:
        return {
            key: getattr(one, one.WhichOneof("parameter_choice")) for key, one in parameters.items()
        }

    assert found.parameters == values(message.parameters)
    assert [(i.name, i.datatype, i.shape, i.parameters) for i in found.inputs] == [
        (i.name, i.datatype, list(i.shape), values(i.parameters)) for i in message.inputs
    ]
    assert found.outputs == [(o.name, values(o.parameters)) for o in message.outputs]
    assert [body[start:stop] for start, stop in found.raws] == list(message.raw_input_contents)
    assert messages.read_id(body) == message.id


@settings(max_examples=120, deadline=None)
@given(requests(), st.data())
def test_any_bytes_are_a_message_or_a_bad_request(message, data):
    body = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    for read in (messages.read_infer, messages.read_name, messages.read_id):
        with contextlib.suppress(BadRequest):
            read(body)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(sorted(NUMBER_LISTS)))
def test_reads_typed_values_packed_or_one_by_one(data, name):
    values = data.draw(st.lists(NUMBER_LISTS[name], max_size=20))
    contents = pb.InferTensorContents()
    getattr(contents, name).extend(values)
    body = contents.SerializeToString()
    datatype = DATATYPES[name]
    found = messages.read_contents(
        body, (0, len(body)), datatype, "x", count=len(values), limit=1000
    )
    assert found == values
    if name != "bytes_contents":
        number = pb.InferTensorContents.DESCRIPTOR.fields_by_name[name].number
        spread = b"".join(
            protobuf.pack_varint(number << 3) + protobuf.pack_varint(int(value)) for value in values
        )
        span = (0, len(spread))
        assert values == messages.read_contents(
            spread, span, datatype, "x", count=len(values), limit=1000
        )


@pytest.mark.parametrize(
    ("name", "datatype"), [("fp32_contents", "FP32"), ("fp64_contents", "FP64")]
)
def test_floats_are_taken_as_they_lie(name, datatype):
    import numpy as np

    values = np.array([1.5, float("nan"), -0.0, float("inf")], "f4" if datatype == "FP32" else "f8")
    contents = pb.InferTensorContents()
    getattr(contents, name).extend(values.tolist())
    body = contents.SerializeToString() * 2  # packed twice is one list
    found = messages.read_contents(body, (0, len(body)), datatype, "x", count=8, limit=8)
    assert found == values.tobytes() * 2
    # one by one
    kind, width = (5, 4) if datatype == "FP32" else (1, 8)
    number = pb.InferTensorContents.DESCRIPTOR.fields_by_name[name].number
    key = bytes([number << 3 | kind])
    data = values.tobytes()
    spread = b"".join(key + data[at : at + width] for at in range(0, len(data), width))
    assert (
        messages.read_contents(spread, (0, len(spread)), datatype, "x", count=4, limit=99) == data
    )


def test_typed_values_have_bounds_and_belong_to_their_type():
    def read(contents: Any, datatype: str, count: int = 4, limit: int = 100) -> Any:
        body = contents.SerializeToString()
        return messages.read_contents(body, (0, len(body)), datatype, "x", count=count, limit=limit)

    with pytest.raises(BadRequest, match="`x` is FP32 but its values are in `int_contents`"):
        read(pb.InferTensorContents(int_contents=[1]), "FP32")
    with pytest.raises(BadRequest, match="more values than its shape needs, 4"):
        read(pb.InferTensorContents(bytes_contents=[b""] * 5), "BYTES")
    with pytest.raises(BadRequest, match="more than 5 numbers"):
        read(pb.InferTensorContents(int_contents=[1] * 9), "INT32")
    with pytest.raises(BadRequest, match="102 bytes where 100 are the limit") as caught:
        read(pb.InferTensorContents(int_contents=[1] * 100), "INT32", 1000)
    assert caught.value.status == 413
    assert caught.value.hint == "send them in `raw_input_contents`"
    with pytest.raises(BadRequest, match="not whole numbers"):
        messages.read_contents(b"\x32\x03abc", (0, 5), "FP32", "x", count=1, limit=9)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x0a", "cut off"),
        (b"\x0a\x05abc", "cut off"),
        (b"\xff", "cut off"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than ten bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x02\x01a", "field number 0"),
        (b"\x0a\x01\xff", "not UTF-8"),
        (b"\x09abc", "cut off"),
        (b"\x80\x01\x00" * 5000, "more than 4096 fields"),
        (b"\x2a\x00" * 1025, "more than 1024 `inputs`"),
        (b"\x32\x00" * 1025, "more than 1024 `outputs`"),
        (b"\x3a\x00" * 1025, "more than 1024 `raw_input_contents`"),
        (b"".join(b"\x22\x03\x0a\x01%c" % key for key in range(65)), "more than 64 parameters"),
        (b"\x2a\x42" + b"\x18\x01" * 33, "more than 32 dimensions"),
        (b"\x2a\x23\x1a\x21" + b"\x01" * 33, "more than 32 numbers"),
        (b"\x2a\x04\x2a\x00\x2a\x00", "more than one `contents`"),
    ],
)
def test_refuses_what_no_library_writes(body, said):
    with pytest.raises(BadRequest, match=said):
        messages.read_infer(body)


def test_skips_fields_it_does_not_know_and_known_ones_of_another_type():
    body = b"\x08\x05" + b"\x0a\x03mlp" + b"\xf8\x3f\x01" + b"\xfd\x3fabcd" + b"\xf9\x3f" + bytes(8)
    assert messages.read_infer(body).model_name == "mlp"
    assert pb.ModelInferRequest.FromString(body).model_name == "mlp"


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_the_library_reads_what_is_written(name, other, shape):
    assert MessageToDict(
        pb.ServerMetadataResponse.FromString(messages.server_metadata(name, other, [name, other]))
    ) == MessageToDict(
        pb.ServerMetadataResponse(name=name, version=other, extensions=[name, other])
    )
    metadata = pb.ModelMetadataResponse(name=name, versions=[other], platform="p")
    metadata.inputs.add(name=other, datatype="FP32", shape=shape)
    metadata.outputs.add(name=name, datatype="INT64", shape=[])
    assert (
        pb.ModelMetadataResponse.FromString(
            messages.model_metadata(
                name, other, "p", [(4, other, "FP32", shape), (5, name, "INT64", [])]
            )
        )
        == metadata
    )
    response = messages.output_tensor(name, "FP32", shape)
    wanted = pb.ModelInferResponse()
    wanted.outputs.add(name=name, datatype="FP32", shape=shape)
    assert pb.ModelInferResponse.FromString(response) == wanted
    stream = pb.ModelStreamInferResponse.FromString(messages.stream_response(response))
    assert stream.infer_response == wanted
    assert stream.error_message == ""
    failed = pb.ModelStreamInferResponse.FromString(messages.stream_error(name, other))
    assert (failed.error_message, failed.infer_response.id) == (name, other)
    for value in (True, False):
        assert pb.ServerLiveResponse.FromString(messages.flag(value=value)).live is value


def test_numbers_are_written_as_the_library_writes_them():
    for value in (0, 1, 127, 128, 300, 2**63 - 1, -1, -(2**63)):
        body = b"\x10" + protobuf.pack_varint(value)
        assert pb.InferParameter.FromString(body).int64_param == value
        assert protobuf.signed(protobuf.varint(body, 1, len(body))[0]) == value
