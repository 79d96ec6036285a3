"""Turns lines of text into a model's inputs: one row each."""

from __future__ import annotations

from typing import Callable, Dict, List, Union

from ..errors import BadRequest
from ..signature import Signature
from ..tensor import Tensor

Body = Union[bytes, bytearray]


def read_text(body: Body) -> str:
    """Return a body as text, without a byte order mark.

    Raises:
        BadRequest: it is not UTF-8.
    """
    try:
        return str(body, "utf-8-sig")
    except UnicodeDecodeError as fault:
        line = body.count(b"\n", 0, fault.start) + 1
        raise BadRequest("line %d is not UTF-8" % line, hint="send text in UTF-8") from None


def most_rows(signature: Signature) -> int:
    """Return how many rows one request may have, a large number where there is no limit."""
    found = 1 << 20
    for spec in signature.inputs.values():
        if spec.dims:
            first = spec.dims[0]
            most = first if isinstance(first, int) else first.max
            found = found if most is None else min(found, most)
    return found


class TextDecoder:
    """Decodes texts, one on each line that is not empty.

    Args:
        signature: The model's.
        tokenize: Turns texts into inputs.
    """

    def __init__(
        self, signature: Signature, tokenize: Callable[[List[str]], Dict[str, Tensor]]
    ) -> None:
        self._tokenize = tokenize
        self._most = most_rows(signature)

    def decode(self, body: Body) -> Dict[str, Tensor]:
        """Return the inputs that the texts are.

        Raises:
            BadRequest: not UTF-8, no text, or more than the model takes at once.
        """
        lines = read_text(body).replace("\r\n", "\n").split("\n")
        texts = [line for line in lines if line.strip()]
        if not texts:
            raise BadRequest("the body holds no text", hint="send one text per line")
        # the work grows with the texts: counted before it is done
        if len(texts) > self._most:
            raise BadRequest(
                "there are %d texts where the model takes %d at most" % (len(texts), self._most)
            )
        return self._tokenize(texts)
