"""Statistics of inputs and outputs over many requests, from which no single one can be read.

A request adds a few elements of each tensor to a block. Only a block of at least 20 requests is
added to what is shown or written, as a whole: two looks differ by 20 requests or by none.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from ..dtypes import BY_NAME, FLOATS, unpack
from .records import DRIFT, Record

BLOCK = 20
MAX_ELEMENTS = 64
MAX_TENSORS = 32
MAX_CLASSES = 1024
MAX_ROWS = 8
MAX_QUEUED = 512
# Requests that are counted a second: more would tell the same and cost time.
MAX_PER_S = 50
WRITE_S = 600.0
BINS = 20
_LARGEST = 1e150
_WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_POWERS = [2.0**power for power in range(-10, 21)]
EDGES = tuple([-power for power in reversed(_POWERS)] + [0.0] + _POWERS)

# role (`input` or `output`) and name
Key = Tuple[str, str]
# element type, some elements, and the whole of a row of scores for each of the first rows
_Sampled = List[Tuple[Key, str, bytes, Sequence[bytes]]]


class Summary:
    """What is known of one tensor's elements.

    Args:
        edges: Of the histogram's bins, rising; there is one more bin at each end.

    Attributes:
        count: Finite elements.
        mean: Of them.
        squares: The sum of squared distances from the mean.
        low, high: Bounds of all, rounded outward to a power of two: no element's own value.
        strange: Elements that are no finite number, or too large to be squared.
        bins: Counts by bin.
        classes: How often each class had the best score.
    """

    __slots__ = ("bins", "classes", "count", "edges", "high", "low", "mean", "squares", "strange")

    def __init__(self, edges: Sequence[float] = EDGES) -> None:
        self.edges = edges
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        self.low = math.inf
        self.high = -math.inf
        self.strange = 0
        self.bins = [0] * (len(edges) + 1)
        self.classes: Dict[int, int] = {}

    def add(self, values: Sequence[Any]) -> None:
        """Count some elements."""
        finite = [float(value) for value in values if -_LARGEST < value < _LARGEST]
        self.strange += len(values) - len(finite)
        if not finite:
            return
        other = Summary(self.edges)
        other.count = len(finite)
        other.mean = math.fsum(finite) / len(finite)
        other.squares = math.fsum((value - other.mean) ** 2 for value in finite)
        other.low, other.high = -_outward(-min(finite)), _outward(max(finite))
        for value in finite:
            other.bins[bisect_right(self.edges, value)] += 1
        self.merge(other)

    def merge(self, other: Summary) -> None:
        """Add what another one of the same edges knows.

        Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample
        variances (1979).
        """
        total = self.count + other.count
        if total:
            shift = other.mean - self.mean
            self.squares += other.squares + shift * shift * self.count * other.count / total
            self.mean += shift * other.count / total
        self.count = total
        self.strange += other.strange
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.bins = [a + b for a, b in zip(self.bins, other.bins)]  # noqa: B905 - 3.8
        for number, count in other.classes.items():
            self.classes[number] = self.classes.get(number, 0) + count

    @property
    def deviation(self) -> float:
        """The standard deviation of all elements."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def to_json(self) -> Dict[str, Any]:
        """Return what is written."""
        return {
            "count": self.count,
            "mean": self.mean,
            "std": self.deviation,
            "low": self.low if self.count else None,
            "high": self.high if self.count else None,
            "strange": self.strange,
            "edges": list(self.edges),
            "bins": self.bins,
            "classes": {str(number): self.classes[number] for number in sorted(self.classes)},
        }


class Drift:
    """Counts requests in blocks; `observe` runs in any thread, everything else in one.

    Args:
        masked: Inputs that are not counted.
        ranges: Returns the lowest and highest value of each tensor as the build host saw it.
        wall: Seconds since 1970, for what is written.
        steady: Seconds that only grow.
    """

    def __init__(
        self,
        masked: Iterable[str],
        ranges: Callable[[], Mapping[Key, Tuple[float, float]]] = dict,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._masked = frozenset(masked)
        self._ranges = ranges
        self._edges: Optional[Dict[Key, Sequence[float]]] = None
        self._wall = wall
        self._steady = steady
        self._queue: Deque[_Sampled] = deque()
        self._guard = threading.Lock()
        self._second = 0
        self._in_second = 0
        self._number = 0
        self._block: Dict[Key, Summary] = {}
        self._block_requests = 0
        self.shown: Dict[Key, Summary] = {}
        self.shown_requests = 0
        self._unwritten: Dict[Key, Summary] = {}
        self._unwritten_requests = 0
        self._unwritten_since = wall()
        self._write_at = steady() + WRITE_S

    def observe(self, request: Any, results: Mapping[str, Any]) -> None:
        """Take a few elements of a request, unless enough came in this second; never raises."""
        second = int(self._steady())
        if second == self._second:
            if self._in_second >= MAX_PER_S:
                return
            self._in_second += 1
        else:
            self._second, self._in_second = second, 1
        if len(self._queue) >= MAX_QUEUED:
            return
        self._number += 1
        try:
            found: _Sampled = []
            for role, tensors in (("input", request.feeds), ("output", results)):
                for name, tensor in tensors.items():
                    if role == "output" or name not in self._masked:
                        sampled = _sample(tensor, self._number, scores=role == "output")
                        if sampled is not None and len(found) < MAX_TENSORS:
                            found.append(((role, name), tensor.dtype, *sampled))
            self._queue.append(found)
        except Exception:  # noqa: BLE001 - no request fails because it could not be counted
            return

    def gather(self) -> None:
        """Add what was observed, and show the block if it is large enough."""
        if self._edges is None:
            self._edges = {key: _edges(*found) for key, found in self._ranges().items()}
        while self._queue:
            for key, dtype, elements, rows in self._queue.popleft():
                summary = self._block.get(key)
                if summary is None:
                    summary = self._block[key] = Summary(self._edges.get(key, EDGES))
                summary.add(unpack(dtype, elements))
                for row in rows:
                    scores = unpack(dtype, row)
                    best = scores.index(max(scores))
                    summary.classes[best] = summary.classes.get(best, 0) + 1
            self._block_requests += 1
            if self._block_requests >= BLOCK:
                self._show()

    def records(self, ending: bool) -> List[Record]:
        """Return what is to be written now; a block that is too small is lost at the end."""
        self.gather()
        if not self._unwritten_requests or (self._steady() < self._write_at and not ending):
            return []
        fields = {
            "time": round(self._wall(), 3),
            "since": round(self._unwritten_since, 3),
            "requests": self._unwritten_requests,
            "tensors": [
                {"role": role, "name": name, **summary.to_json()}
                for (role, name), summary in self._unwritten.items()
            ],
        }
        self._unwritten, self._unwritten_requests = {}, 0
        self._unwritten_since = self._wall()
        self._write_at = self._steady() + WRITE_S
        return [Record(DRIFT, fields, {}, {})]

    def snapshot(self) -> Tuple[int, Dict[Key, Tuple[int, float, float]]]:
        """Return how many requests are shown, and count, mean, deviation of each tensor."""
        with self._guard:
            return self.shown_requests, {
                key: (summary.count, summary.mean, summary.deviation)
                for key, summary in self.shown.items()
            }

    def _show(self) -> None:
        with self._guard:
            for shown in (self.shown, self._unwritten):
                for key, summary in self._block.items():
                    if key not in shown:
                        shown[key] = Summary(summary.edges)
                    shown[key].merge(summary)
            self.shown_requests += self._block_requests
        self._unwritten_requests += self._block_requests
        self._block, self._block_requests = {}, 0


def _sample(tensor: Any, number: int, *, scores: bool) -> Optional[Tuple[bytes, Sequence[bytes]]]:
    """Return some elements from all over a tensor, and the first rows of scores."""
    itemsize = BY_NAME[tensor.dtype].itemsize
    view = memoryview(tensor.data).cast("B") if itemsize else None
    if view is None or not view.nbytes:
        return None
    elements = view.cast(_WIDTHS[itemsize])  # type: ignore[call-overload]
    step = -(-len(elements) // MAX_ELEMENTS)
    taken = elements[number % step :: step].tobytes()
    shape = tensor.shape
    rows: List[bytes] = []
    if scores and tensor.dtype in FLOATS and len(shape) == 2 and 1 < shape[1] <= MAX_CLASSES:
        row = shape[1] * itemsize
        rows = [bytes(view[i * row : (i + 1) * row]) for i in range(min(shape[0], MAX_ROWS))]
    return taken, rows


def _edges(low: float, high: float) -> Sequence[float]:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return EDGES
    return tuple(low + (high - low) * number / BINS for number in range(BINS + 1))


def _outward(value: float) -> float:
    """Return the power of two, or zero, that is next above a number."""
    if value == 0:
        return 0.0
    mantissa, exponent = math.frexp(abs(value))
    if value > 0:
        return math.ldexp(1.0, exponent) if exponent <= 1023 else value
    # below zero, up is towards zero
    return -math.ldexp(1.0, exponent - 1) if mantissa > 0.5 else value
