"""`/predict`: `{"data": …}` in, `{"result": …}` out, for people in a hurry; no I/O."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Union

from .errors import BadRequest
from .http1 import JSON_TYPE, Answer
from .inference import NON_FINITE
from .jsontext import Writer, clip, dumps, loads
from .signature import Signature
from .tensor import Tensor


class PlainProtocol:
    """Decodes `/predict` requests for one model and encodes its answers.

    Args:
        signature: The model's.
        tokenize: Turns texts into the model's inputs; None for a model that takes no text.
        say: Returns labels by name for an answer, which then is an object.
        bodies: Media types that are served beside JSON.

    Attributes:
        tokenize: As given.
    """

    def __init__(
        self,
        signature: Signature,
        tokenize: Optional[Callable[[List[str]], Dict[str, Tensor]]] = None,
        say: Optional[Callable[[Mapping[str, Tensor]], Dict[str, Any]]] = None,
        bodies: Iterable[str] = (),
    ) -> None:
        self._signature = signature
        self.tokenize = tokenize
        self._say = say
        self._bodies = sorted(bodies)
        self._writer = Writer()

    def decode(self, body: Union[bytes, bytearray]) -> Dict[str, Tensor]:
        """Return the inputs, checked; the nesting of the lists is their shape, batch first.

        A model that takes text takes a string, or a list of strings.

        Raises:
            BadRequest: says what is wrong.
        """
        try:
            document = loads(body)
        except BadRequest as error:
            if self._bodies and body and not bytes(body[:1]).strip(b' \t\r\n[{"'):
                raise
            raise BadRequest(error.message, hint=self._other_bodies()) from None
        if type(document) is not dict or "data" not in document:
            raise BadRequest('the body has to be {"data": …}', hint=_other_form(document))
        if len(document) != 1:
            odd = next(key for key in document if key != "data")
            raise BadRequest("the request has no `%s`, only `data`" % clip(odd))
        data = document["data"]
        inputs = self._signature.inputs
        texts = None if self.tokenize is None else _texts(data)
        if self.tokenize is not None and texts is not None:
            # The number of texts is checked before the work is done.
            for name, taken in inputs.items():
                rows = taken.dims[0]
                if not isinstance(rows, int) and rows.max is not None and len(texts) > rows.max:
                    raise BadRequest(
                        "there are %d texts where `%s` takes %d at most"
                        % (len(texts), name, rows.max)
                    )
            feeds = self.tokenize(texts)
            self._signature.check(feeds)
            return feeds
        if type(data) is not dict:
            if len(inputs) != 1:
                names = ", ".join("`%s`" % name for name in inputs)
                raise BadRequest("`data` has to be an object with the inputs %s" % names)
            data = dict.fromkeys(inputs, data)
        feeds = {}
        for name, value in data.items():
            spec = inputs.get(name)
            if spec is None:
                known = ", ".join("`%s`" % known for known in inputs)
                raise BadRequest("the model has no input `%s`" % clip(name), hint="it has " + known)
            feeds[name] = Tensor.from_nested(value, spec.dtype, where=name)
        self._signature.check(feeds)
        return feeds

    def _other_bodies(self) -> Optional[str]:
        """Return how a file is sent that came as if it were JSON."""
        if not self._bodies:
            return None
        kinds = " or ".join("`%s`" % kind for kind in self._bodies)
        return "a body that is no JSON needs its `Content-Type`, here %s" % kinds

    def encode(self, results: Mapping[str, Tensor]) -> Answer:
        """Return the answer: nested lists, or an object by name where there is more than one.

        Labels come beside the numbers they stand for.
        """
        said = self._say(results) if self._say is not None else {}
        alone = len(results) + len(said) == 1
        texts = []
        exact = True
        for name, tensor in results.items():
            text, is_exact = self._writer.nested(tensor)
            exact = exact and is_exact
            texts.append(text if alone else "%s:%s" % (dumps(name), text))
        texts += ["%s:%s" % (dumps(name), dumps(labels)) for name, labels in said.items()]
        result = texts[0] if alone else "{%s}" % ",".join(texts)
        body = ('{"result":%s}' % result).encode("ascii")
        return Answer(200, body, JSON_TYPE if exact else JSON_TYPE + NON_FINITE)


def _other_form(document: object) -> Optional[str]:
    """Return where a body belongs that is of the protocol's form."""
    if type(document) is dict and "inputs" in document:
        return "a request with `inputs` goes to `/v2/models/NAME/infer`"
    return None


def _texts(data: Any) -> Optional[List[str]]:
    """Return the texts of a request; None where it is no text.

    Raises:
        BadRequest: a text that is not Unicode.
    """
    texts = [data] if type(data) is str else data
    if type(texts) is not list or not texts or not all(type(text) is str for text in texts):
        return None
    for text in texts:
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise BadRequest("a text holds a lone surrogate") from None
    return texts
