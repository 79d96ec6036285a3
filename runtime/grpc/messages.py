"""Messages of the Open Inference Protocol's gRPC service, between bytes and plain values.

Field numbers: `open_inference_grpc.proto` of the Open Inference Protocol, and Triton Inference
Server's `grpc_service.proto`, which agree on everything here.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import BadRequest
from .protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Body,
    double,
    fields,
    pack_bool,
    pack_bytes,
    pack_text,
    pack_varint,
    signed,
    text,
    varints,
)

MAX_PARAMETERS = 64
MAX_TENSORS = 1024
MAX_RANK = 32

# Fields of `InferTensorContents` by number: the protocol's types that they may hold, and how they
# lie there: the size of fixed ones, 0 for varints.
_CONTENTS = {
    1: (("BOOL",), 0),
    2: (("INT8", "INT16", "INT32"), 0),
    3: (("INT64",), 0),
    4: (("UINT8", "UINT16", "UINT32"), 0),
    5: (("UINT64",), 0),
    6: (("FP32",), 4),
    7: (("FP64",), 8),
    8: (("BYTES",), -1),
}
CONTENTS_NAMES = {
    1: "bool_contents",
    2: "int_contents",
    3: "int64_contents",
    4: "uint_contents",
    5: "uint64_contents",
    6: "fp32_contents",
    7: "fp64_contents",
    8: "bytes_contents",
}
_SIGNED = frozenset((2, 3))
_BYTES_FIELD = 8

Span = Tuple[int, int]


class InputMessage(NamedTuple):
    """`ModelInferRequest.InferInputTensor`; `contents` says where its values lie."""

    name: str
    datatype: str
    shape: List[int]
    parameters: Dict[str, Any]
    contents: Optional[Span]


class InferMessage(NamedTuple):
    """`ModelInferRequest`; `raws` says where `raw_input_contents` lie."""

    model_name: str
    model_version: str
    id: str
    parameters: Dict[str, Any]
    inputs: List[InputMessage]
    outputs: List[Tuple[str, Dict[str, Any]]]
    raws: List[Span]


def read_infer(body: Body) -> InferMessage:
    """Return a request to a model.

    Raises:
        BadRequest: it is no such message, or holds too much of something.
    """
    name = version = identifier = ""
    parameters: Dict[str, Any] = {}
    inputs: List[InputMessage] = []
    outputs: List[Tuple[str, Dict[str, Any]]] = []
    raws: List[Span] = []
    for number, kind, start, stop in fields(body, 0, len(body)):
        if kind != BYTES:
            continue  # unknown, as every known field is of this kind
        if number == 1:
            name = text(body, start, stop)
        elif number == 2:
            version = text(body, start, stop)
        elif number == 3:
            identifier = text(body, start, stop)
        elif number == 4:
            _read_entry(body, start, stop, parameters)
        elif number == 5:
            _room(inputs, "inputs")
            inputs.append(_read_input(body, start, stop))
        elif number == 6:
            _room(outputs, "outputs")
            outputs.append(_read_output(body, start, stop))
        elif number == 7:
            _room(raws, "raw_input_contents")
            raws.append((start, stop))
    return InferMessage(name, version, identifier, parameters, inputs, outputs, raws)


def _read_input(body: Body, begin: int, end: int) -> InputMessage:
    name = datatype = ""
    shape: List[int] = []
    parameters: Dict[str, Any] = {}
    contents: Optional[Span] = None
    for number, kind, start, stop in fields(body, begin, end):
        if number == 3 and kind == VARINT:
            shape.append(signed(start))
        elif kind != BYTES:
            continue
        elif number == 1:
            name = text(body, start, stop)
        elif number == 2:
            datatype = text(body, start, stop)
        elif number == 3:
            shape += map(signed, varints(body, start, stop, MAX_RANK))
        elif number == 4:
            _read_entry(body, start, stop, parameters)
        elif number == 5:
            if contents is not None:
                raise BadRequest("an input has more than one `contents`")
            contents = (start, stop)
        if len(shape) > MAX_RANK:
            raise BadRequest("a `shape` has more than %d dimensions" % MAX_RANK)
    return InputMessage(name, datatype, shape, parameters, contents)


def _read_output(body: Body, begin: int, end: int) -> Tuple[str, Dict[str, Any]]:
    name = ""
    parameters: Dict[str, Any] = {}
    for number, kind, start, stop in fields(body, begin, end):
        if number == 1 and kind == BYTES:
            name = text(body, start, stop)
        elif number == 2 and kind == BYTES:
            _read_entry(body, start, stop, parameters)
    return name, parameters


def _read_entry(body: Body, begin: int, end: int, parameters: Dict[str, Any]) -> None:
    """Add an entry of a map from names to `InferParameter`."""
    if len(parameters) >= MAX_PARAMETERS:
        raise BadRequest("there are more than %d parameters" % MAX_PARAMETERS)
    key, value = "", None
    for number, kind, start, stop in fields(body, begin, end):
        if number == 1 and kind == BYTES:
            key = text(body, start, stop)
        elif number == 2 and kind == BYTES:
            value = _read_parameter(body, start, stop)
    parameters[key] = value


def _read_parameter(body: Body, begin: int, end: int) -> Any:
    value: Any = None
    for number, kind, start, stop in fields(body, begin, end):
        if number == 1 and kind == VARINT:
            value = bool(start)
        elif number == 2 and kind == VARINT:
            value = signed(start)
        elif number == 3 and kind == BYTES:
            value = text(body, start, stop)
        elif number == 4 and kind == FIXED64:
            value = double(body, start)
        elif number == 5 and kind == VARINT:
            value = start
    return value


def read_contents(
    body: Body, span: Span, datatype: str, where: str, *, count: int, limit: int
) -> Any:
    """Return an input's typed values: bytes for floats, a list for the others.

    Args:
        body: The message.
        span: Where the values lie in it.
        datatype: The protocol's name of the input's type.
        where: The input's name.
        count: How many values the shape needs.
        limit: The most bytes of values that are read one by one.

    Raises:
        BadRequest: another type's values, or too many.
    """
    pieces: List[Any] = []
    values: List[Any] = []
    start, stop = span
    size = stop - start
    for number, kind, begin, end in fields(body, start, stop, limit=limit):
        known = _CONTENTS.get(number)
        if known is None:
            continue
        types, width = known
        if datatype not in types:
            raise BadRequest(
                "`%s` is %s but its values are in `%s`" % (where, datatype, CONTENTS_NAMES[number])
            )
        if width > 0:
            alone = FIXED32 if width == 4 else FIXED64
            if kind not in (BYTES, alone) or (end - begin) % width:
                raise BadRequest("`%s` has values that are not whole numbers of bytes" % where)
            pieces.append(memoryview(body)[begin:end])
            continue
        if size > limit:
            raise BadRequest(
                "the values of `%s` have %d bytes where %d are the limit" % (where, size, limit),
                413,
                "send them in `raw_input_contents`",
            )
        if width < 0 and kind == BYTES:
            values.append(bytes(body[begin:end]))
        elif kind == BYTES:
            found = varints(body, begin, end, count + 1)
            values += map(signed, found) if number in _SIGNED else found
        elif kind == VARINT:
            values.append(signed(begin) if number in _SIGNED else begin)
        if len(values) > count:
            raise BadRequest("`%s` has more values than its shape needs, %d" % (where, count))
    return b"".join(pieces) if datatype in ("FP32", "FP64") else values


def read_name(body: Body) -> Tuple[str, str]:
    """Return the first two fields, which name a model and its version in all other requests.

    Raises:
        BadRequest: it is no such message.
    """
    found = {1: "", 2: ""}
    for number, kind, start, stop in fields(body, 0, len(body)):
        if kind == BYTES and number in found:
            found[number] = text(body, start, stop)
    return found[1], found[2]


def read_id(body: Body) -> str:
    """Return the id of a request to a model that was refused; empty where it cannot be read."""
    try:
        for number, kind, start, stop in fields(body, 0, len(body)):
            if number == 3 and kind == BYTES:
                return text(body, start, stop)
    except BadRequest:
        pass
    return ""


def flag(*, value: bool) -> bytes:
    """Return `ServerLiveResponse` and its like."""
    return pack_bool(1, value=value)


def server_metadata(name: str, version: str, extensions: Sequence[str]) -> bytes:
    """Return `ServerMetadataResponse`."""
    rest = b"".join(pack_bytes(3, extension) for extension in extensions)
    return pack_text(1, name) + pack_text(2, version) + rest


def model_metadata(name: str, version: str, platform: str, tensors: Sequence[Any]) -> bytes:
    """Return `ModelMetadataResponse`.

    Args:
        name: The model's.
        version: The only one.
        platform: What runs it.
        tensors: Field number (4 input, 5 output), name, datatype and shape of each, -1 for sizes
            that a request chooses.
    """
    head = pack_text(1, name) + pack_bytes(2, version) + pack_text(3, platform)
    return head + b"".join(
        pack_bytes(number, _tensor(tensor_name, datatype, shape))
        for number, tensor_name, datatype, shape in tensors
    )


def output_tensor(name: str, datatype: str, shape: Sequence[int]) -> bytes:
    """Return an `outputs` field of `ModelInferResponse`, its values not in it."""
    return pack_bytes(5, _tensor(name, datatype, shape))


def stream_response(response: bytes) -> bytes:
    """Return `ModelStreamInferResponse` with an answer."""
    return pack_bytes(2, response)


def stream_error(message: str, identifier: str) -> bytes:
    """Return `ModelStreamInferResponse` with an error, and the id of the request that has it."""
    return pack_bytes(1, message.encode("utf-8", "replace")) + pack_bytes(
        2, pack_text(3, identifier)
    )


def _tensor(name: str, datatype: str, shape: Sequence[int]) -> bytes:
    sizes = b"".join(map(pack_varint, shape))
    return pack_text(1, name) + pack_text(2, datatype) + (pack_bytes(3, sizes) if sizes else b"")


def _room(items: Sequence[Any], what: str) -> None:
    if len(items) >= MAX_TENSORS:
        raise BadRequest("there are more than %d `%s`" % (MAX_TENSORS, what))
