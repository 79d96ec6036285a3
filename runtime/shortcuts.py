"""Decodes the requests that clients repeat in a few operations; whatever is unusual is left alone.

A shortcut only ever repeats what the full check has allowed before, and returns None otherwise, so
that every refusal, and its message, comes from the full check.
"""

from __future__ import annotations

import struct
from math import isfinite
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from .dtypes import BY_NAME
from .signature import Signature
from .tensor import Tensor

_MAX_REMEMBERED = 64
_MAX_HEADER_BYTES = 2048
_MAX_DATA_BYTES = 1 << 16
_ITEM_KEYS = 4  # name, shape, datatype, data


class FlatFloats:
    """One float32 input as a flat list of numbers, of a shape seen before."""

    def __init__(self, signature: Signature) -> None:
        specs = list(signature.inputs.values())
        self._name = specs[0].name if len(specs) == 1 and specs[0].dtype == "float32" else None
        self._shapes: Dict[str, Tuple[Tuple[int, ...], struct.Struct]] = {}

    def decode(self, body: Union[bytes, bytearray], document: Any) -> Optional[Dict[str, Tensor]]:
        """Return the inputs of a request, None where it is not of this kind.

        Args:
            body: The request's text.
            document: The same, parsed.
        """
        # Python takes booleans for numbers; that none is here is quicker seen in the text
        if b"true" in body or b"false" in body:
            return None
        try:
            (item,) = document["inputs"]
            shape, values = item["shape"], item["data"]
            if (
                item["name"] != self._name
                or item["datatype"] != "FP32"
                or len(item) != _ITEM_KEYS
                or type(shape) is not list
                or type(values) is not list
            ):
                return None
            # as text, since 1 and 1.0 are equal, and only one of them is a size
            sizes, packer = self._shapes[str(shape)]
            data = packer.pack(*values)
            # packing refuses what is too large, but not infinities; their sum shows them
            if not isfinite(sum(values)):
                return None
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, struct.error):
            return None
        return {item["name"]: Tensor("float32", sizes, data)}

    def remember(self, feeds: Dict[str, Tensor]) -> None:
        """Learn the shape of a request that the full check has allowed."""
        tensor = feeds.get(self._name or "")
        if tensor is not None and len(tensor.data) <= _MAX_DATA_BYTES:
            if len(self._shapes) >= _MAX_REMEMBERED:
                self._shapes.clear()
            sizes = tuple(tensor.shape)
            self._shapes[str(list(sizes))] = (
                sizes,
                struct.Struct("<%df" % (len(tensor.data) // 4)),
            )


class _Piece(NamedTuple):
    name: str
    dtype: str
    shape: Tuple[int, ...]
    start: int
    stop: int


class BinaryHeaders:
    """The JSON in front of binary tensors, which a client repeats byte for byte."""

    def __init__(self) -> None:
        self._plans: Dict[bytes, Tuple[int, List[_Piece], Any]] = {}

    def decode(self, header: bytes, tensors: memoryview) -> Optional[Tuple[Dict[str, Tensor], Any]]:
        """Return the inputs, and the rest of the request as it was remembered."""
        plan = self._plans.get(header)
        if plan is None or plan[0] != len(tensors):
            return None
        _, pieces, rest = plan
        feeds = {
            name: Tensor(dtype, shape, tensors[start:stop])
            for name, dtype, shape, start, stop in pieces
        }
        return feeds, rest

    def remember(
        self, header: bytes, inputs: Sequence[Any], feeds: Dict[str, Tensor], rest: Any
    ) -> None:
        """Learn a header that the full check has allowed; `inputs` is its list of inputs."""
        if len(header) > _MAX_HEADER_BYTES:
            return
        pieces: List[_Piece] = []
        at = 0
        for item in inputs:
            tensor = feeds[item["name"]]
            # the contents of strings and booleans have to be looked at every time
            if "data" in item or tensor.dtype in ("string", "bool"):
                return
            sizes = tuple(tensor.shape)
            stop = at + _bytes_of(tensor.dtype, sizes)
            pieces.append(_Piece(item["name"], tensor.dtype, sizes, at, stop))
            at = stop
        if len(self._plans) >= _MAX_REMEMBERED:
            self._plans.clear()
        self._plans[header] = (at, pieces, rest)


def _bytes_of(dtype: str, shape: Sequence[int]) -> int:
    size = BY_NAME[dtype].itemsize
    for axis in shape:
        size *= axis
    return size
