"""One kept record as bytes: JSON that describes it, then its tensors."""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

from ..errors import BadRequest, IntegrityFault
from ..tensor import Tensor

REQUEST, DRIFT = "request", "drift"
_LENGTH = struct.Struct("<I")


class Record(NamedTuple):
    """What was kept at one moment.

    Attributes:
        kind: `request`, or `drift` for statistics.
        fields: For a request `time` (seconds since 1970), `id`, `request` (the id that its client
            gave, or null), `engine`, `precision`, `model`.
        inputs, outputs: By name; empty for statistics.
    """

    kind: str
    fields: Dict[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def pack_record(record: Record) -> bytes:
    """Return the bytes of a record."""
    described, parts = [], []
    for role, tensors in (("input", record.inputs), ("output", record.outputs)):
        for name, tensor in tensors.items():
            data = tensor.to_bytes()
            described.append([role, name, tensor.dtype, list(tensor.shape), len(data)])
            parts.append(data)
    text = json.dumps(
        {"kind": record.kind, "fields": record.fields, "tensors": described},
        sort_keys=True,
        separators=(",", ":"),
    ).encode("ascii")
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def unpack_record(data: bytes) -> Record:
    """Return the record that `pack_record` wrote.

    Raises:
        IntegrityFault: it is none.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        document = json.loads(data[_LENGTH.size : _LENGTH.size + length].decode("ascii"))
        found: Dict[str, Dict[str, Tensor]] = {"input": {}, "output": {}}
        start = _LENGTH.size + length
        for role, name, dtype, shape, size in document["tensors"]:
            part = data[start : start + size]
            found[role][name] = Tensor.from_bytes(part, shape, dtype, where=name)
            start += size
        return Record(document["kind"], document["fields"], found["input"], found["output"])
    # a part that is cut off has another size than its shape says
    except (BadRequest, ValueError, KeyError, TypeError, struct.error, RecursionError):
        raise IntegrityFault("a kept record is damaged") from None


def copy_tensors(tensors: Mapping[str, Tensor], masked: "frozenset[str]") -> Dict[str, Tensor]:
    """Return copies of all but the masked ones: what a request lent is given back after it."""
    return {
        name: Tensor(tensor.dtype, tuple(tensor.shape), _copy(tensor.data))
        for name, tensor in tensors.items()
        if name not in masked
    }


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return how many bytes tensors take, about."""
    return sum(
        sum(map(len, tensor.data)) + 8 * len(tensor.data)
        if tensor.dtype == "string"
        else memoryview(tensor.data).nbytes
        for tensor in tensors.values()
    )


def names_of(records: List[Record]) -> Tuple[str, ...]:
    """Return the names of all inputs that any record has, in their first order."""
    return tuple(dict.fromkeys(name for record in records for name in record.inputs))


def _copy(data: Any) -> Any:
    return list(data) if isinstance(data, list) else bytes(data)
