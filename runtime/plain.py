"""`/predict`: `{"data": …}` in, `{"result": …}` out, for people in a hurry; no I/O."""

from __future__ import annotations

from typing import Dict, Mapping, Union

from .errors import BadRequest
from .http1 import JSON_TYPE, Answer
from .inference import NON_FINITE
from .jsontext import Writer, clip, dumps, loads
from .signature import Signature
from .tensor import Tensor


class PlainProtocol:
    """Decodes `/predict` requests for one model and encodes its answers."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._writer = Writer()

    def decode(self, body: Union[bytes, bytearray]) -> Dict[str, Tensor]:
        """Return the inputs, checked; the nesting of the lists is their shape, batch first.

        Raises:
            BadRequest: says what is wrong.
        """
        document = loads(body)
        if type(document) is not dict or "data" not in document:
            raise BadRequest('the body has to be {"data": …}')
        if len(document) != 1:
            odd = next(key for key in document if key != "data")
            raise BadRequest("the request has no `%s`, only `data`" % clip(odd))
        data = document["data"]
        inputs = self._signature.inputs
        if type(data) is not dict:
            if len(inputs) != 1:
                names = ", ".join("`%s`" % name for name in inputs)
                raise BadRequest("`data` has to be an object with the inputs %s" % names)
            data = dict.fromkeys(inputs, data)
        feeds: Dict[str, Tensor] = {}
        for name, value in data.items():
            spec = inputs.get(name)
            if spec is None:
                known = ", ".join("`%s`" % known for known in inputs)
                raise BadRequest("the model has no input `%s`" % clip(name), hint="it has " + known)
            feeds[name] = Tensor.from_nested(value, spec.dtype, where=name)
        self._signature.check(feeds)
        return feeds

    def encode(self, results: Mapping[str, Tensor]) -> Answer:
        """Return the answer: nested lists, or an object by name where there are several outputs."""
        texts = []
        exact = True
        for name, tensor in results.items():
            text, is_exact = self._writer.nested(tensor)
            exact = exact and is_exact
            texts.append(text if len(results) == 1 else "%s:%s" % (dumps(name), text))
        result = texts[0] if len(texts) == 1 else "{%s}" % ",".join(texts)
        body = ('{"result":%s}' % result).encode("ascii")
        return Answer(200, body, JSON_TYPE if exact else JSON_TYPE + NON_FINITE)
