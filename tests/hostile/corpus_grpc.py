"""Hostile gRPC calls: the status that each gets, and words of its message."""

# ruff: noqa: E501 - a table of requests reads best a line each

from __future__ import annotations

import struct
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from runtime.grpc.frames import DATA, HEADERS
from runtime.grpc.hpack import encode
from runtime.grpc.protobuf import pack_bytes
from tests.hostile.corpus_http2 import frame

SERVICE = "/inference.GRPCInferenceService/"
INVALID, UNKNOWN_MODEL, DENIED, TOO_MUCH, UNSERVED = 3, 5, 7, 8, 12
VALUES = struct.pack("<64f", *[0.25] * 64)


def infer(
    *, inputs: int = 1, raw: bytes | None = VALUES, model: str = "mlp", version: str = "", **tensor: Any
) -> Any:  # fmt: skip
    """Return a request that is good as it stands, or differs in what is given."""
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for _ in range(inputs):
        message.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 64], **tensor})
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


def typed(**contents: Any) -> bytes:
    message = infer(raw=None, datatype=contents.pop("datatype", "FP32"))
    for key, values in contents.items():
        getattr(message.inputs[0].contents, key).extend(values)
    return serialized(message)


def with_parameter(name: str, *, of: str = "request", **choice: Any) -> bytes:
    message = infer()
    if of == "output":
        message.outputs.add(name="logits")
    found = {
        "request": message,
        "input": message.inputs[0],
        "output": (message.outputs or [None])[0],
    }[of]
    for key, value in choice.items():
        setattr(found.parameters[name], key, value)
    return serialized(message)


def with_outputs(*names: str) -> bytes:
    message = infer()
    for name in names:
        message.outputs.add(name=name)
    return serialized(message)


def serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def prefixed(message: bytes, *, compressed: int = 0, size: int | None = None) -> bytes:
    return struct.pack(">BL", compressed, len(message) if size is None else size) + message


def call(
    message: Any, method: str = "ModelInfer", *more: tuple[bytes, bytes],
    raw: bytes | None = None, without: bytes = b"", end: bool = True,
) -> bytes:  # fmt: skip
    """Return the frames of a call on stream 1; `raw` is its body where that is no one message."""
    if not isinstance(message, bytes):
        message = serialized(message)
    path = method if method.startswith("/") else SERVICE + method
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"127.0.0.1"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ]  # fmt: skip
    given = {name for name, _ in more}
    kept = [field for field in fields if field[0] not in given and field[0] != without]
    pseudo = [field for field in (*kept, *more) if field[0][:1] == b":"]
    block = encode([*pseudo, *(field for field in (*kept, *more) if field[0][:1] != b":")])
    body = prefixed(message) if raw is None else raw
    pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)] or [b""]
    data = [frame(DATA, 1 if end and piece is pieces[-1] else 0, 1, piece) for piece in pieces]
    return frame(HEADERS, 4, 1, block) + b"".join(data)


def field(number: int, payload: bytes = b"") -> bytes:
    """Return a field of a message, by hand."""
    return pack_bytes(number, payload)


GOOD_CALL = call(infer())
TENSOR = serialized(infer().inputs[0])
NAME = field(1, b"mlp")
WHOLE = serialized(infer())

CALLS = {
    # where it goes
    "an unknown service": (call(b"", "/evil.Service/Run"), UNSERVED, "no service"),
    "an unknown method": (call(b"", "Destroy"), UNSERVED, "not served"),
    "a method in lower case": (call(infer(), "modelinfer"), UNSERVED, "not served"),
    "a method that climbs": (call(b"", SERVICE + "../ServerLive"), UNSERVED, "not served"),
    "a method of 8000 letters": (call(b"", "M" * 8000), UNSERVED, "not served"),
    "no method": (call(b"", SERVICE), UNSERVED, "not served"),
    "no service at all": (call(b"", "/"), UNSERVED, "no service"),
    "reflection": (call(b"", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), UNSERVED, "no service"),
    "loading a model": (call(b"", "RepositoryModelLoad"), UNSERVED, "not served"),
    "unloading the model": (call(b"", "RepositoryModelUnload"), UNSERVED, "not served"),
    "shared memory of the system": (call(b"", "SystemSharedMemoryRegister"), UNSERVED, "not served"),
    "settings of the log": (call(b"", "LogSettings"), UNSERVED, "not served"),
    "watching health": (call(b"", "/grpc.health.v1.Health/Watch"), UNSERVED, "Check"),
    "health of another service": (call(field(1, b"evil"), "/grpc.health.v1.Health/Check"), UNKNOWN_MODEL, "no service"),
    "a foreign authority in a call": (call(infer(), "ModelInfer", (b":authority", b"evil.example")), DENIED, "does not answer for"),
    "a foreign page's call": (call(infer(), "ModelInfer", (b"origin", b"https://evil.example")), DENIED, "pages of"),
    # its header
    "a call without te": (call(infer(), without=b"te"), INVALID, "te: trailers"),
    "gzip": (call(infer(), "ModelInfer", (b"grpc-encoding", b"gzip")), UNSERVED, "gzip"),
    "an encoding of 4000 letters": (call(infer(), "ModelInfer", (b"grpc-encoding", b"z" * 4000)), UNSERVED, "not served"),
    "a time limit without a unit": (call(infer(), "ModelInfer", (b"grpc-timeout", b"5")), INVALID, "grpc-timeout"),
    "a time limit of nine digits": (call(infer(), "ModelInfer", (b"grpc-timeout", b"123456789S")), INVALID, "grpc-timeout"),
    "a negative time limit": (call(infer(), "ModelInfer", (b"grpc-timeout", b"-1S")), INVALID, "grpc-timeout"),
    "a time limit of words": (call(infer(), "ModelInfer", (b"grpc-timeout", b"soon")), INVALID, "grpc-timeout"),
    # the frame of its message
    "no message": (call(b"", raw=b""), INVALID, "missing"),
    "half a prefix": (call(b"", raw=b"\0\0\0"), INVALID, "cut off"),
    "a message cut off": (call(b"", raw=prefixed(WHOLE)[:-9]), INVALID, "cut off"),
    "a prefix alone": (call(b"", raw=prefixed(b"", size=100)), INVALID, "cut off"),
    "two messages": (call(b"", raw=prefixed(WHOLE) * 2), INVALID, "one message"),
    "a message and a byte": (call(b"", raw=prefixed(WHOLE) + b"\0"), INVALID, ""),
    "a compressed message": (call(b"", raw=prefixed(WHOLE, compressed=1)), UNSERVED, "compressed"),
    "a flag of two": (call(b"", raw=prefixed(WHOLE, compressed=2)), INVALID, "compressed"),
    "a flag of 255": (call(b"", raw=prefixed(WHOLE, compressed=255)), INVALID, "compressed"),
    "a message of 4 GiB": (call(b"", raw=prefixed(b"x", size=(1 << 32) - 1), end=False), TOO_MUCH, "limit"),
    "a message over the limit": (call(b"", raw=prefixed(bytes(1 << 18))), TOO_MUCH, "limit"),
    "a question over the limit": (call(b"", "ModelReady", raw=prefixed(bytes(1 << 17))), TOO_MUCH, "limit"),
    "HTTP/1.1 as a message": (call(b"", raw=b"POST /v2/models/mlp/infer HTTP/1.1\r\n\r\n"), INVALID, "compressed"),
    # the message
    "an empty message": (call(b""), INVALID, "no model"),
    "noise": (call(b"\xff" * 40), INVALID, ""),
    "JSON as a message": (call(b'{"model_name":"mlp"}'), INVALID, ""),
    "a field number 0": (call(b"\x02\x01a"), INVALID, "number 0"),
    "a group": (call(b"\x0b\x0c"), INVALID, "wire type 3"),
    "the end of a group": (call(b"\x0c"), INVALID, "wire type 4"),
    "a wire type 6": (call(b"\x0e"), INVALID, "wire type 6"),
    "a wire type 7": (call(b"\x0f"), INVALID, "wire type 7"),
    "a key that is cut off": (call(b"\x8a"), INVALID, "cut off"),
    "a number of eleven bytes": (call(b"\x08" + b"\xff" * 11), INVALID, "ten bytes"),
    "a length that is cut off": (call(b"\x0a\xff"), INVALID, "cut off"),
    "a length past the message": (call(b"\x0a\x7fmlp"), INVALID, "cut off"),
    "a length of 2^63": (call(b"\x0a" + b"\xff" * 8 + b"\x7f"), INVALID, "cut off"),
    "a fixed number cut off": (call(NAME + b"\x39abc"), INVALID, "cut off"),
    "a text that is not UTF-8": (call(field(1, b"\xff\xfe")), INVALID, "UTF-8"),
    "a name that is a number": (call(b"\x08\x05"), INVALID, "no model"),
    "10000 unknown fields": (call(NAME + b"\x78\x00" * 10000), INVALID, "fields in one place"),
    "1500 inputs": (call(NAME + field(5) * 1500), INVALID, "inputs"),
    "1500 outputs": (call(NAME + field(5, TENSOR) + field(6) * 1500), INVALID, "outputs"),
    "1500 raw contents": (call(NAME + field(5, TENSOR) + field(7) * 1500), INVALID, "raw_input_contents"),
    "100 parameters": (call(NAME + b"".join(field(4, field(1, b"%d" % n)) for n in range(100))), INVALID, "parameters"),
    "a message cut off in an input": (call(WHOLE[: WHOLE.index(b"FP32") + 2]), INVALID, "cut off"),
    "an input that is noise": (call(NAME + field(5, b"\xff" * 9)), INVALID, ""),
    "inputs in inputs": (call(NAME + field(5, field(5, field(5, field(5))))), INVALID, ""),
    # what it asks for
    "another model by gRPC": (call(infer(model="other")), UNKNOWN_MODEL, "no model `other`"),
    "a model that climbs": (call(infer(model="../mlp")), UNKNOWN_MODEL, "no model"),
    "a model in capitals": (call(infer(model="MLP")), UNKNOWN_MODEL, "no model"),
    "a model of 10000 letters": (call(infer(model="m" * 10000)), UNKNOWN_MODEL, "no model"),
    "a model with a line break": (call(infer(model="mlp\r\ngrpc-status: 0")), UNKNOWN_MODEL, "no model"),
    "a model with a NUL": (call(infer(model="mlp\0")), UNKNOWN_MODEL, "no model"),
    "another version by gRPC": (call(infer(version="9")), UNKNOWN_MODEL, "no version `9`"),
    "a version that climbs": (call(infer(version="../1.2.0")), UNKNOWN_MODEL, "no version"),
    "metadata of another model": (call(field(1, b"other"), "ModelMetadata"), UNKNOWN_MODEL, "no model"),
    "metadata of no model": (call(b"", "ModelMetadata"), INVALID, "no model"),
    "readiness of another model": (call(field(1, b"other"), "ModelReady"), UNKNOWN_MODEL, "no model"),
    "readiness that is noise": (call(b"\xff" * 20, "ModelReady"), INVALID, ""),
    "no inputs": (call(infer(inputs=0, raw=None)), INVALID, "`inputs`"),
    "an input twice": (call(infer(inputs=2, raw=None)), INVALID, ""),
    "an input without a name": (call(infer(name="")), INVALID, "`name`"),
    "an unknown input": (call(infer(name="y")), INVALID, "no input `y`"),
    "an input of 10000 letters": (call(infer(name="n" * 10000)), INVALID, "no input"),
    "an input with a line break": (call(infer(name="x\r\n")), INVALID, "no input"),
    "no datatype": (call(infer(datatype="")), INVALID, "datatype"),
    "an unknown datatype": (call(infer(datatype="FP99")), INVALID, "datatype"),
    "a datatype in lower case": (call(infer(datatype="fp32")), INVALID, "datatype"),
    "a wrong datatype": (call(infer(datatype="INT64")), INVALID, "where the model takes FP32"),
    "strings for floats": (call(infer(datatype="BYTES")), INVALID, "where the model takes FP32"),
    "no shape": (call(infer(shape=[])), INVALID, "dimensions"),
    "a shape of one dimension": (call(infer(shape=[64])), INVALID, "dimensions"),
    "33 dimensions": (call(infer(shape=[1] * 33)), INVALID, "more than 32"),
    "10000 dimensions": (call(infer(shape=[1] * 10000)), INVALID, ""),
    "a dimension below zero": (call(infer(shape=[-1, 64])), INVALID, "-1"),
    "two dimensions below zero": (call(infer(shape=[-1, -64])), INVALID, "-1"),
    "a dimension of zero": (call(infer(shape=[0, 64], raw=b"")), INVALID, "size 0"),
    "a batch past the maximum": (call(infer(shape=[33, 64], raw=VALUES * 33)), INVALID, "33"),
    "a product that overflows": (call(infer(shape=[2**62, 64])), INVALID, ""),
    "a product that wraps": (call(infer(shape=[2**32, 2**32])), INVALID, ""),
    "the smallest dimension": (call(infer(shape=[-(2**63), 64])), INVALID, ""),
    "another second dimension": (call(infer(shape=[1, 63], raw=VALUES[4:])), INVALID, "63"),
    # its values
    "no values": (call(infer(raw=None)), INVALID, "contents"),
    "raw values too short": (call(infer(raw=VALUES[4:])), INVALID, "252"),
    "raw values too long": (call(infer(raw=VALUES + bytes(4))), INVALID, "260"),
    "raw values of a broken size": (call(infer(raw=VALUES[:-1])), INVALID, "255"),
    "empty raw values": (call(infer(raw=b"")), INVALID, ""),
    "more raw values than inputs": (call(WHOLE + field(7, b"abc")), INVALID, "raw_input_contents"),
    "raw values and typed ones": (
        call(NAME + field(5, TENSOR + field(5, field(6, bytes(8)))) + b"\x3a\x80\x02" + VALUES), INVALID, "both"),
    "contents twice": (call(NAME + field(5, TENSOR + field(5, bytes(0)) * 2)), INVALID, "more than one"),
    "too few values": (call(typed(fp32_contents=[0.5] * 63)), INVALID, ""),
    "too many values": (call(typed(fp32_contents=[0.5] * 65)), INVALID, ""),
    "values of another field": (call(typed(int_contents=[1] * 64)), INVALID, "int_contents"),
    "values of two fields": (call(typed(fp32_contents=[0.5] * 64, bool_contents=[True])), INVALID, "bool_contents"),
    "values of doubles": (call(typed(fp64_contents=[0.5] * 64)), INVALID, "fp64_contents"),
    "values of texts": (call(typed(bytes_contents=[b"a"] * 64)), INVALID, "bytes_contents"),
    "values that are not whole": (call(NAME + field(5, TENSOR + field(5, field(6, b"abcde")))), INVALID, "whole"),
    "values that are varints": (call(NAME + field(5, TENSOR + field(5, b"\x30\x05"))), INVALID, "whole"),
    "values that are wider": (call(NAME + field(5, TENSOR + field(5, (b"\x31" + bytes(8)) * 32))), INVALID, "whole"),
    # around them
    "an unknown output": (call(with_outputs("y")), INVALID, "no output `y`"),
    "an output without a name": (call(with_outputs("")), INVALID, "no output"),
    "an output twice": (call(with_outputs("logits", "logits")), INVALID, "twice"),
    "an output of 10000 letters": (call(with_outputs("n" * 10000)), INVALID, "no output"),
    "an id of 2000 letters": (call(WHOLE + b"\x1a\xd0\x0f" + b"a" * 2000), INVALID, "`id`"),
    "shared memory of an input": (call(with_parameter("shared_memory_region", of="input", string_param="r")), INVALID, "shared_memory"),
    "shared memory of an output": (call(with_parameter("shared_memory_region", of="output", string_param="r")), INVALID, "shared_memory"),
    "classification": (call(with_parameter("classification", of="output", int64_param=3)), INVALID, "classification"),
    "a time limit below zero": (call(with_parameter("timeout", int64_param=-5)), INVALID, "`timeout`"),
    "a time limit that is a text": (call(with_parameter("timeout", string_param="1s")), INVALID, "`timeout`"),
    "a sequence by gRPC": (call(with_parameter("sequence_id", int64_param=7)), INVALID, "keeps no state"),
    "the start of a sequence": (call(with_parameter("sequence_start", bool_param=True)), INVALID, "keeps no state"),
    "a parameter that is noise": (call(NAME + field(4, b"\xff\xff\xff")), INVALID, ""),
    "a parameter that is cut off": (call(NAME + field(4, field(1, b"a") + field(2, b"\x21abc"))), INVALID, "cut off"),
    # streams of calls
    "a stream without a message": (call(b"", "ModelStreamInfer", raw=b"\0\0"), INVALID, "cut off"),
    "a stream of a message over the limit": (call(b"", "ModelStreamInfer", raw=prefixed(b"", size=1 << 30), end=False), TOO_MUCH, "limit"),
    "a stream of compressed messages": (call(b"", "ModelStreamInfer", raw=prefixed(b"a", compressed=1)), UNSERVED, "compressed"),
}  # fmt: skip
