"""What every protocol of a server shares: the model behind its requests."""

from __future__ import annotations

from math import prod
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from .dtypes import BY_NAME
from .errors import DeviceError, ModelFault
from .signature import Signature, TensorSpec
from .tensor import Tensor

# given a request and its results
Observer = Callable[[Any, Mapping[str, Tensor]], None]


class InferRequest(NamedTuple):
    """A decoded and checked request, of any protocol.

    Attributes:
        feeds: The inputs by name.
        id: Echoed in the answer; None where the request has none.
        outputs: The names wanted, None for all.
        binary: Names of the outputs wanted in binary; None where the default holds for all.
        binary_default: Whether outputs that say nothing are wanted in binary.
        timeout_s: How long the client lets it wait; None for no limit of its own.
        sequence: Its sequence's id, and whether it begins and ends it; None outside of any. Of a
            piece of a stream, the lease that the stream has.
    """

    feeds: Dict[str, Tensor]
    id: Optional[str] = None
    outputs: Optional[List[str]] = None
    binary: Optional[Mapping[str, bool]] = None
    binary_default: bool = False
    timeout_s: Optional[float] = None
    sequence: Any = None


class Inference:
    """One model as its clients see it.

    Args:
        signature: What requests are checked against.
        engine: Runs the model.
        name: The model's name.
        version: The model's version.

    Attributes:
        sequences: Keeps state from request to request; None for a model that has none. It has
            `run(request, caller)`.
        observers: Called with each request and its results, in the thread that ran it; they raise
            nothing.
    """

    def __init__(self, signature: Signature, engine: Any, *, name: str, version: str) -> None:
        self.signature = signature
        self.engine = engine
        self.name = name
        self.version = version
        self.sequences: Any = None
        self.observers: List[Observer] = []

    def run(self, request: Any, caller: str = "") -> Dict[str, Tensor]:
        """Return the outputs that a request asks for.

        Args:
            request: Has `.feeds`, `.outputs` and `.sequence`.
            caller: Who asks: sequences of the same id but other callers are others.
        """
        if self.sequences is not None:
            results: Dict[str, Tensor] = self.sequences.run(request, caller)
        else:
            results = self.engine.run(request.feeds, request.outputs)
        for observe in self.observers:
            observe(request, results)
        return results

    def warm_up(self) -> None:
        """Run the model once at its usual sizes: the first client need not wait for that.

        On nothing but zeros a model may fail; that is its good right.
        """
        try:
            feeds = {spec.name: _zeros(spec) for spec in self.signature.inputs.values()}
            self.run(InferRequest(feeds))
        except (DeviceError, MemoryError):
            pass

    def run_rows(self, requests: Sequence[Any]) -> List[Dict[str, Tensor]]:
        """Run several requests as one batch and return all results of each.

        Args:
            requests: Their `.feeds` are equal but for their rows, the first axis.
        """
        feeds: List[Mapping[str, Tensor]] = [request.feeds for request in requests]
        whole = {name: _joined([one[name] for one in feeds]) for name in feeds[0]}
        results = self.engine.run(whole, None)
        first = next(iter(whole))
        rows = whole[first].shape[0]
        if any(tensor.shape[:1] != (rows,) for tensor in results.values()):
            raise ModelFault("the model's answers are not one row for each of its inputs' rows")
        found = []
        start = 0
        for one in feeds:
            stop = start + one[first].shape[0]
            found.append({name: _rows(tensor, start, stop) for name, tensor in results.items()})
            start = stop
        for request, answered in zip(requests, found):  # noqa: B905 - not in CPython 3.8
            for observe in self.observers:
                observe(request, answered)
        return found


def _zeros(spec: TensorSpec) -> Tensor:
    shape = tuple(dim if isinstance(dim, int) else dim.opt or dim.min for dim in spec.dims)
    count = prod(shape)
    if spec.dtype == "string":
        return Tensor(spec.dtype, shape, [b""] * count)
    return Tensor(spec.dtype, shape, bytes(count * BY_NAME[spec.dtype].itemsize))


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    rows = sum(tensor.shape[0] for tensor in tensors)
    data: Any
    if first.dtype == "string":
        data = [item for tensor in tensors for item in tensor.data]
    else:
        data = b"".join([tensor.data for tensor in tensors])
    return Tensor(first.dtype, (rows, *first.shape[1:]), data)


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    step = len(tensor.data) // tensor.shape[0] if tensor.shape[0] else 0
    data = tensor.data if tensor.dtype == "string" else memoryview(tensor.data)
    return Tensor(tensor.dtype, (stop - start, *tensor.shape[1:]), data[start * step : stop * step])
