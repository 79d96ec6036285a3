"""The Open Inference Protocol's infer requests and answers, JSON and binary, without I/O.

Specification: Open Inference Protocol v2 REST, and the binary tensor data extension as Triton
Inference Server describes it.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from .core import InferRequest
from .dtypes import BY_NAME, BY_PROTOCOL
from .errors import BadRequest
from .http1 import JSON_TYPE, Answer
from .jsontext import Writer, clip, dumps, loads
from .shortcuts import BinaryHeaders, FlatFloats
from .signature import Signature
from .tensor import Tensor

Body = Union[bytes, bytearray]

NON_FINITE = b"X-Non-Finite: 1\r\n"
BINARY_TYPE = b"Content-Type: application/octet-stream\r\n"
MAX_ID_CHARACTERS = 1024
_MAX_OUTPUT_STARTS = 64
# the first two are what the address says; KServe's client repeats the name
_REQUEST_KEYS = frozenset(("model_name", "model_version", "id", "parameters", "inputs", "outputs"))
_INPUT_KEYS = frozenset(("name", "shape", "datatype", "parameters", "data"))
_OUTPUT_KEYS = frozenset(("name", "parameters"))
# parameters that would change the answer if they were known here
_UNSERVED = ("shared_memory_region", "classification")


class InferenceProtocol:
    """Decodes requests for one model and encodes its answers.

    Args:
        signature: What requests are checked against.
        name: The model's name, part of every answer.
        version: The model's version, likewise.
        read_sequence: Returns the sequence that parameters name; None for a model without state.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        name: str,
        version: str,
        read_sequence: Optional[Callable[[Mapping[str, Any]], Any]] = None,
    ) -> None:
        self._signature = signature
        self._read_sequence = read_sequence or _refuse_sequence
        self._writer = Writer()
        self._model = {"model_name": name, "model_version": version}
        self._start = '{"model_name":%s,"model_version":%s' % (dumps(name), dumps(version))
        self._output_starts: Dict[Tuple[object, ...], str] = {}
        self._flat_floats = FlatFloats(signature)
        self._binary_headers = BinaryHeaders()

    def decode(self, body: Body, header_bytes: Optional[int] = None) -> InferRequest:
        """Return the request that a body holds.

        Args:
            body: The JSON, followed by the binary tensors where there are any.
            header_bytes: The JSON's size as `Inference-Header-Content-Length` tells it; None
                where all of the body is JSON.

        Raises:
            BadRequest: says what is wrong with which part.
        """
        if header_bytes is None:
            document = loads(body)
            feeds = self._flat_floats.decode(body, document)
            if feeds is None:
                feeds = self._decode_all(document, None)
                self._flat_floats.remember(feeds)
            return InferRequest(feeds) if len(document) == 1 else self._rest(document, feeds)
        if header_bytes > len(body):
            raise BadRequest(
                "`Inference-Header-Content-Length` is %d but the body has %d bytes"
                % (header_bytes, len(body))
            )
        view = memoryview(body)
        header, tail = bytes(view[:header_bytes]), view[header_bytes:]
        known = self._binary_headers.decode(header, tail)
        if known is not None:
            return InferRequest(known[0], *known[1])
        document = loads(header)
        feeds = self._decode_all(document, _Binary(tail))
        request = self._rest(document, feeds)
        self._binary_headers.remember(header, document["inputs"], feeds, request[1:])
        return request

    def _decode_all(self, document: object, binary: Optional[_Binary]) -> Dict[str, Tensor]:
        """Return the inputs of a parsed request after the full check."""
        fields = _object(document, "the request", _REQUEST_KEYS)
        feeds = self._decode_inputs(fields.get("inputs"), binary)
        if binary is not None and binary.left:
            raise BadRequest("%d bytes follow the last binary tensor" % binary.left)
        self._signature.check(feeds)
        return feeds

    def _decode_inputs(self, inputs: object, binary: Optional[_Binary]) -> Dict[str, Tensor]:
        if type(inputs) is not list or not inputs:
            raise BadRequest("`inputs` has to be a list of the model's inputs")
        if len(inputs) > len(self._signature.inputs):
            # before any of them is decoded: a thousand copies would cost a thousand decodings
            self._refuse_inputs(inputs)
        feeds: Dict[str, Tensor] = {}
        for item in inputs:
            fields = _object(item, "an input", _INPUT_KEYS)
            name = fields.get("name")
            if type(name) is not str:
                raise BadRequest("an input needs a `name`")
            if name in feeds:
                raise BadRequest("input `%s` came twice" % name)
            feeds[name] = self._decode_input(name, fields, binary)
        return feeds

    def _refuse_inputs(self, inputs: Sequence[object]) -> None:
        seen = set()
        for item in inputs:
            name = item.get("name") if isinstance(item, dict) else None
            if isinstance(name, str) and name in seen:
                raise BadRequest("input `%s` came twice" % clip(name))
            seen.add(name if isinstance(name, str) else None)
        raise BadRequest(
            "%d inputs where the model takes %d" % (len(inputs), len(self._signature.inputs))
        )

    def _decode_input(
        self, name: str, fields: Mapping[str, Any], binary: Optional[_Binary]
    ) -> Tensor:
        if name not in self._signature.inputs:
            self._signature.check_dtype(clip(name), "")  # raises, and says which names there are
        shape = fields.get("shape")
        if type(shape) is not list:
            raise BadRequest("input `%s` needs a `shape`, a list of integers" % name)
        self._signature.check_shape(name, shape)
        wire_type = fields.get("datatype")
        known = BY_PROTOCOL.get(wire_type) if type(wire_type) is str else None
        if known is None:
            raise self._signature.wrong_datatype(name, wire_type)
        dtype = known.name
        self._signature.check_dtype(name, dtype)
        parameters = fields.get("parameters")
        size = None if parameters is None else _parameters(parameters).get("binary_data_size")
        if size is None:
            if "data" not in fields:
                raise BadRequest("input `%s` needs `data`" % name)
            return Tensor.from_flat(fields["data"], shape, dtype, where=name)
        if "data" in fields:
            raise BadRequest("input `%s` has both `data` and `binary_data_size`" % name)
        if binary is None:
            raise BadRequest(
                "input `%s` is binary but the request has no `Inference-Header-Content-Length`"
                % name
            )
        return Tensor.from_bytes(binary.take(name, size), shape, dtype, where=name)

    def _rest(self, document: Mapping[str, Any], feeds: Dict[str, Tensor]) -> InferRequest:
        """Return the request with what it has besides inputs."""
        fields = _object(document, "the request", _REQUEST_KEYS)
        for key, served in self._model.items():
            if fields.get(key, served) != served:
                raise BadRequest("`%s` is another than the address names" % key)
        request_id = fields.get("id")
        if request_id is not None and (
            type(request_id) is not str or len(request_id) > MAX_ID_CHARACTERS
        ):
            raise BadRequest("`id` has to be a text of up to %d characters" % MAX_ID_CHARACTERS)
        parameters = _parameters(fields.get("parameters", {}))
        default = parameters.get("binary_data_output", False)
        if type(default) is not bool:
            raise BadRequest("`binary_data_output` has to be true or false")
        timeout_s = _timeout_s(parameters)
        sequence = self._read_sequence(parameters)
        wanted = fields.get("outputs")
        if wanted is None:
            return InferRequest(feeds, request_id, None, None, default, timeout_s, sequence)
        if type(wanted) is not list:
            raise BadRequest("`outputs` has to be a list")
        binary: Dict[str, bool] = {}
        for item in wanted[: len(self._signature.outputs) + 1]:
            output = _object(item, "an output", _OUTPUT_KEYS)
            name = output.get("name")
            if type(name) is not str:
                raise BadRequest("an output needs a `name`")
            if name in binary:
                raise BadRequest("output `%s` came twice" % clip(name))
            if name not in self._signature.outputs:
                self._signature.check_outputs([clip(name)])
            choice = _parameters(output.get("parameters", {})).get("binary_data", default)
            if type(choice) is not bool:
                raise BadRequest("`binary_data` of output `%s` has to be true or false" % name)
            binary[name] = choice
        # an empty list asks for all, as tritonclient and other servers read it
        names = list(binary) or None
        return InferRequest(feeds, request_id, names, binary, default, timeout_s, sequence)

    def encode(self, request: InferRequest, results: Mapping[str, Tensor]) -> Answer:
        """Return the answer with `results`, in the order in which they come."""
        pieces = [self._start]
        if request.id is not None:
            pieces.append(',"id":' + dumps(request.id))
        pieces.append(',"outputs":[')
        tails: List[bytes] = []
        exact = True
        separator = ""
        binary, in_binary = request.binary, request.binary_default
        for name, tensor in results.items():
            if binary is not None:
                in_binary = binary.get(name, request.binary_default)
            pieces.append(separator + self._output_start(name, tensor))
            if in_binary:
                data = tensor.to_bytes()
                tails.append(data)
                pieces.append('"parameters":{"binary_data_size":%d}}' % len(data))
            else:
                text, is_exact = self._writer.flat(tensor)
                exact = exact and is_exact
                pieces.append('"data":' + text + "}")
            separator = ","
        pieces.append("]}")
        body = "".join(pieces).encode("ascii")
        marks = JSON_TYPE if exact else JSON_TYPE + NON_FINITE
        if not tails:
            return Answer(200, body, marks)
        length = b"Inference-Header-Content-Length: %d\r\n" % len(body)
        marks = BINARY_TYPE + length + (b"" if exact else NON_FINITE)
        return Answer(200, b"".join([body, *tails]), marks)

    def _output_start(self, name: str, tensor: Tensor) -> str:
        shape = tensor.shape
        key = (name, shape)
        start = self._output_starts.get(key)
        if start is None:
            start = '{"name":%s,"datatype":"%s","shape":%s,' % (
                dumps(name),
                BY_NAME[tensor.dtype].protocol,
                dumps(list(shape)),
            )
            if len(self._output_starts) >= _MAX_OUTPUT_STARTS:
                self._output_starts.clear()
            self._output_starts[key] = start
        return start


class _Binary:
    """The binary tensors behind the JSON, taken in the order of the inputs."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    @property
    def left(self) -> int:
        return len(self._view)

    def take(self, name: str, size: object) -> memoryview:
        if type(size) is not int or size < 0:
            raise BadRequest("`binary_data_size` of input `%s` is not a number of bytes" % name)
        if size > len(self._view):
            raise BadRequest(
                "`binary_data_size` of input `%s` is %d but %d bytes are left"
                % (name, size, len(self._view))
            )
        piece, self._view = self._view[:size], self._view[size:]
        return piece


def _object(value: object, what: str, keys: "frozenset[str]") -> Dict[str, Any]:
    if type(value) is not dict:
        raise BadRequest("%s has to be an object" % what)
    if not value.keys() <= keys:
        odd = sorted(value.keys() - keys)[0]
        raise BadRequest(
            "%s takes no `%s`" % (what, clip(odd)), hint="it takes " + ", ".join(sorted(keys))
        )
    return value


def _refuse_sequence(parameters: Mapping[str, Any]) -> None:
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if parameters.get(name):
            raise BadRequest("the parameter `%s` is not served: the model keeps no state" % name)


def _timeout_s(parameters: Mapping[str, Any]) -> Optional[float]:
    """Return how long the client lets its request wait; Triton's unit is the microsecond."""
    timeout_us = parameters.get("timeout")
    if timeout_us is None:
        return None
    if type(timeout_us) is not int or timeout_us < 0:
        raise BadRequest("`timeout` has to be a whole number of microseconds")
    return timeout_us / 1e6 or None


def _parameters(value: object) -> Dict[str, Any]:
    """Return parameters; those of other servers are ignored unless they would change the answer."""
    if type(value) is not dict:
        raise BadRequest("`parameters` has to be an object")
    for name in _UNSERVED:
        if value.get(name):
            raise BadRequest("the parameter `%s` is not served" % name)
    return value
