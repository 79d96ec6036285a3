"""The Open Inference Protocol's infer messages against one model's signature; no I/O."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from ..core import InferRequest
from ..dtypes import BY_NAME, BY_PROTOCOL
from ..errors import BadRequest
from ..jsontext import clip
from ..signature import Signature
from ..tensor import Tensor
from .messages import InferMessage, InputMessage, output_tensor, read_contents, read_infer
from .protobuf import pack_text, pack_varint

Body = Union[bytes, bytearray]

MAX_ID_CHARACTERS = 1024
_MAX_REMEMBERED = 64
_MAX_HEAD_BYTES = 2048
_RAW_OUTPUT = b"\x32"  # the key of `raw_output_contents`
_RAW_ONLY = frozenset(("float16", "bfloat16"))
# parameters that would change the answer if they were known here
_UNSERVED = ("shared_memory_region", "classification")
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


class _Plan(NamedTuple):
    """A message that was allowed before, up to the bytes of its one tensor."""

    head: bytes
    name: str
    dtype: str
    shape: Tuple[int, ...]
    rest: Tuple[Any, ...]


class InferMessages:
    """Decodes requests for one model and encodes its answers.

    Args:
        signature: What requests are checked against.
        name: The model's name.
        version: The model's version.
        max_typed_bytes: The most bytes of typed values that are read one by one.
        read_sequence: Returns the sequence that parameters name; None for a model without state.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        name: str,
        version: str,
        max_typed_bytes: int,
        read_sequence: Optional[Callable[[Mapping[str, Any]], Any]] = None,
    ) -> None:
        self._signature = signature
        self._name = name
        self._version = version
        self._max_typed_bytes = max_typed_bytes
        self._read_sequence = read_sequence
        self._start = pack_text(1, name) + pack_text(2, version)
        self._plans: Dict[int, _Plan] = {}
        self._outputs: Dict[Tuple[str, Tuple[int, ...]], bytes] = {}

    def decode(self, body: Body) -> InferRequest:
        """Return the request that a `ModelInferRequest` holds.

        Raises:
            BadRequest: says what is wrong with which part.
        """
        plan = self._plans.get(len(body))
        if plan is not None and body.startswith(plan.head):
            # the length of the tensor's bytes is the last thing in the head
            data = memoryview(body)[len(plan.head) :]
            return InferRequest({plan.name: Tensor(plan.dtype, plan.shape, data)}, *plan.rest)
        message = read_infer(body)
        self.check_model(message.model_name, message.model_version)
        feeds = self._feeds(body, message)
        self._signature.check(feeds)
        request = self._request(message, feeds)
        self._remember(body, message, request)
        return request

    def encode(self, request: InferRequest, results: Mapping[str, Tensor]) -> bytes:
        """Return the `ModelInferResponse` with `results`, in the order in which they come."""
        pieces: List[bytes] = [self._start]
        if request.id:
            pieces.append(pack_text(3, request.id))
        tails: List[bytes] = []
        known = self._outputs
        for name, tensor in results.items():
            key = (name, tensor.shape)
            start = known.get(key)
            if start is None:
                start = self._describe(name, tensor)
            pieces.append(start)
            data = tensor.to_bytes()
            tails += (_RAW_OUTPUT, pack_varint(len(data)), data)
        return b"".join(pieces + tails)

    def check_model(self, name: str, version: str) -> None:
        """Check which model a request is for; an empty version stands for any.

        Raises:
            BadRequest: there is no such model here (404).
        """
        if name != self._name:
            message = "there is no model `%s` here" % clip(name) if name else "no model is named"
            raise BadRequest(message, 404 if name else 400, "this server has `%s`" % self._name)
        if version and version != self._version:
            raise BadRequest(
                "there is no version `%s` here" % clip(version),
                404,
                "this server has `%s`" % self._version,
            )

    def _feeds(self, body: Body, message: InferMessage) -> Dict[str, Tensor]:
        inputs, raws = message.inputs, message.raws
        if not inputs:
            raise BadRequest("`inputs` has to be a list of the model's inputs")
        if raws and len(raws) != len(inputs):
            raise BadRequest(
                "%d `raw_input_contents` where there are %d inputs" % (len(raws), len(inputs)),
                hint="all inputs have their values there, or none",
            )
        feeds: Dict[str, Tensor] = {}
        for index, item in enumerate(inputs):
            if item.name in feeds:
                raise BadRequest("input `%s` came twice" % item.name)
            feeds[item.name] = self._feed(body, item, raws[index] if raws else None)
        return feeds

    def _feed(self, body: Body, item: InputMessage, raw: Optional[Tuple[int, int]]) -> Tensor:
        name = item.name
        if name not in self._signature.inputs:
            if not name:
                raise BadRequest("an input needs a `name`")
            self._signature.check_dtype(clip(name), "")  # raises, and says which names there are
        self._signature.check_shape(name, item.shape)
        known = BY_PROTOCOL.get(item.datatype)
        if known is None:
            raise self._signature.wrong_datatype(name, item.datatype)
        dtype = known.name
        self._signature.check_dtype(name, dtype)
        _check_parameters(item.parameters)
        if raw is not None:
            if item.contents is not None and item.contents[0] != item.contents[1]:
                raise BadRequest("input `%s` has both `contents` and raw contents" % name)
            data = memoryview(body)[raw[0] : raw[1]]
            return Tensor.from_bytes(data, item.shape, dtype, where=name)
        if item.contents is None:
            raise BadRequest("input `%s` needs `contents` or `raw_input_contents`" % name)
        if dtype in _RAW_ONLY:
            raise BadRequest(
                "input `%s` is %s, whose values have to be in `raw_input_contents`"
                % (name, item.datatype)
            )
        return self._typed(body, item, dtype)

    def _typed(self, body: Body, item: InputMessage, dtype: str) -> Tensor:
        """Return the tensor of values that came in a field of their type."""
        name, shape = item.name, tuple(item.shape)
        count = math.prod(shape)
        assert item.contents is not None  # noqa: S101 - for the type checker: the caller looked
        values = read_contents(
            body, item.contents, item.datatype, name, count=count, limit=self._max_typed_bytes
        )
        if isinstance(values, bytes):
            return Tensor.from_bytes(values, shape, dtype, where=name)
        if dtype == "string":
            if len(values) != count:
                raise BadRequest(
                    "`%s` has %d elements where shape %s needs %d"
                    % (name, len(values), list(shape), count)
                )
            return Tensor(dtype, shape, values)
        if dtype == "bool":
            values = list(map(bool, values))
        return Tensor.from_flat(values, shape, dtype, where=name)

    def _request(self, message: InferMessage, feeds: Dict[str, Tensor]) -> InferRequest:
        """Return the request with what it has besides inputs."""
        if len(message.id) > MAX_ID_CHARACTERS:
            raise BadRequest("`id` has to be a text of up to %d characters" % MAX_ID_CHARACTERS)
        parameters = message.parameters
        _check_parameters(parameters)
        sequence = None
        if self._read_sequence is not None:
            sequence = self._read_sequence(parameters)
        else:
            for name in _SEQUENCE:
                if parameters.get(name):
                    raise BadRequest(
                        "the parameter `%s` is not served: the model keeps no state" % name
                    )
        wanted: List[str] = []
        for name, choices in message.outputs:
            if name in wanted:
                raise BadRequest("output `%s` came twice" % clip(name))
            if name not in self._signature.outputs:
                self._signature.check_outputs([clip(name)])
            _check_parameters(choices)
            wanted.append(name)
        return InferRequest(
            feeds,
            message.id or None,
            wanted or None,
            timeout_s=_timeout_s(parameters),
            sequence=sequence,
        )

    def _remember(self, body: Body, message: InferMessage, request: InferRequest) -> None:
        """Learn a message that ends with the bytes of its only tensor."""
        if len(message.raws) != 1 or message.raws[0][1] != len(body):
            return
        start = message.raws[0][0]
        ((name, tensor),) = request.feeds.items()
        # the contents of strings and booleans have to be looked at every time
        if tensor.dtype in ("string", "bool") or start > _MAX_HEAD_BYTES:
            return
        if len(self._plans) >= _MAX_REMEMBERED:
            self._plans.clear()
        self._plans[len(body)] = _Plan(
            bytes(body[:start]), name, tensor.dtype, tuple(tensor.shape), tuple(request[1:])
        )

    def _describe(self, name: str, tensor: Tensor) -> bytes:
        shape = tuple(tensor.shape)
        start = output_tensor(name, BY_NAME[tensor.dtype].protocol, shape)
        if len(self._outputs) >= _MAX_REMEMBERED:
            self._outputs.clear()
        self._outputs[name, shape] = start
        return start


def _timeout_s(parameters: Mapping[str, Any]) -> Optional[float]:
    """Return how long the client lets its request wait; Triton's unit is the microsecond."""
    timeout_us = parameters.get("timeout")
    if timeout_us is None:
        return None
    if type(timeout_us) is not int or timeout_us < 0:
        raise BadRequest("`timeout` has to be a whole number of microseconds")
    return timeout_us / 1e6 or None


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that would change the answer; those of other servers are ignored."""
    for name in _UNSERVED:
        if parameters.get(name):
            raise BadRequest("the parameter `%s` is not served" % name)
