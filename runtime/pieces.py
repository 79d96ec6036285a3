"""Cuts one request into the pieces whose answers a stream sends one after the other; no I/O."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from .core import InferRequest
from .dtypes import BY_NAME
from .errors import BadRequest
from .signature import Dimension, Signature
from .tensor import Tensor

# A stream of more answers is another request.
MAX_PIECES = 4096


class Cutter:
    """Knows where requests to one model are cut, and what they may then hold.

    A model with state is cut along its axis of time as its manifest says, any other one between
    the rows of its batch.

    Args:
        model: `manifest["model"]`.
        sequences: `manifest["sequences"]`; None for a model without state.

    Attributes:
        signature: What a whole request is checked against.
    """

    def __init__(self, model: Mapping[str, Any], sequences: Optional[Mapping[str, Any]]) -> None:
        wire = model["signature"] if sequences is None else sequences["signature"]
        plain = Signature(wire)
        if sequences is None:
            self._axis, self._length, self._inputs = 0, 1, _rowed(plain)
            self._least: Optional[int] = 1
            self.signature = plain
        else:
            self._axis = sequences["axis"] or 0
            self._length = sequences["chunk"]
            self._inputs = list(sequences["cut"])
            self._least = _least_piece(plain, self._inputs, self._axis)
            self.signature = Signature(self._widened(wire))

    def cut(self, request: InferRequest) -> Tuple[int, Iterator[Dict[str, Tensor]]]:
        """Return the number of pieces and the inputs of each, made as they are asked for.

        Raises:
            BadRequest: a length that makes no whole pieces, or too many of them.
        """
        feeds = request.feeds
        if not self._inputs:
            return 1, iter([feeds])
        lengths = {name: feeds[name].shape[self._axis] for name in self._inputs}
        total = max(lengths.values())
        if min(lengths.values()) != total:
            told = ", ".join("`%s` %d" % pair for pair in lengths.items())
            raise BadRequest("along axis %d the inputs differ in length: %s" % (self._axis, told))
        rest = total % self._length
        if rest and (self._least is None or rest < self._least):
            raise BadRequest(
                "`%s` has length %d along axis %d, which leaves a last piece of %d"
                % (self._inputs[0], total, self._axis, rest),
                hint="pieces have %d%s"
                % (
                    self._length,
                    "" if self._least is None else ", the last one at least %d" % self._least,
                ),
            )
        count = -(-total // self._length)
        if not 1 <= count <= MAX_PIECES:
            raise BadRequest("a stream has 1 to %d answers, and this is %d" % (MAX_PIECES, count))
        return count, self._pieces(feeds, total)

    def _pieces(self, feeds: Mapping[str, Tensor], total: int) -> Iterator[Dict[str, Tensor]]:
        for start in range(0, total, self._length):
            stop = min(start + self._length, total)
            yield {
                name: cut_tensor(tensor, self._axis, start, stop)
                if name in self._inputs
                else tensor
                for name, tensor in feeds.items()
            }

    def _widened(self, wire: Mapping[str, Any]) -> Dict[str, Any]:
        """Return the signature whose inputs may be as long as all pieces together."""
        longest = {"min": self._least or self._length, "max": self._length * MAX_PIECES}
        inputs: List[Dict[str, Any]] = []
        for spec in wire["inputs"]:
            shape = list(spec["shape"])
            if spec["name"] in self._inputs:
                dim = shape[self._axis]
                name = dim["name"] if isinstance(dim, dict) else "length"
                shape[self._axis] = {"name": name, **longest}
            inputs.append({**spec, "shape": shape})
        return {**wire, "inputs": inputs}


def _rowed(signature: Signature) -> List[str]:
    """Return the inputs that have a row for each answer: those whose first axis is the batch."""
    firsts = [(spec.name, spec.dims[0]) for spec in signature.inputs.values() if spec.dims]
    batches = [dim for _, dim in firsts if isinstance(dim, Dimension)]
    if not batches or batches[0].min > 1:
        return []
    batch = batches[0].name
    return [name for name, dim in firsts if isinstance(dim, Dimension) and dim.name == batch]


def _least_piece(signature: Signature, names: List[str], axis: int) -> Optional[int]:
    """Return the shortest last piece that the model takes; None where all are of one length."""
    least = 1
    for name in names:
        dim = signature.inputs[name].dims[axis]
        if not isinstance(dim, Dimension):
            return None
        least = max(least, dim.min)
    return least


def cut_tensor(tensor: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """Return a part along one axis; a view where the part lies in one piece."""
    shape = tensor.shape
    outer = math.prod(shape[:axis])
    step = math.prod(shape[axis + 1 :])
    is_text = tensor.dtype == "string"
    if not is_text:
        step *= BY_NAME[tensor.dtype].itemsize
    row = step * shape[axis]
    data = tensor.data if is_text else memoryview(tensor.data)
    found: Any = data[start * step : stop * step]
    if outer != 1:
        parts = [data[at * row + start * step : at * row + stop * step] for at in range(outer)]
        found = [item for part in parts for item in part] if is_text else b"".join(parts)
    return Tensor(tensor.dtype, (*shape[:axis], stop - start, *shape[axis + 1 :]), found)
