"""Counts what a server does, a few additions a request; `exposition.py` writes it out."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

CONTENT_TYPE = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
# OpenTelemetry's advice for HTTP from 5 ms on, and finer below: a small model answers in 0.1 ms.
BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
BUCKETS_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
# What a client can send becomes at most so many series of one metric; the rest is one more.
MAX_SERIES = 256
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE",
                     "PATCH"))  # fmt: skip
OTHER = "_OTHER"  # OpenTelemetry's word for a method that it does not know
OVERFLOW = "overflow"
Labels = Tuple[Tuple[str, str], ...]


class Histogram:
    """Observations by bucket, and their sum.

    Attributes:
        counts: How many fell into each bucket alone; one more for those past the last bound.
        total: The sum of all of them.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Tuple[float, ...] = BUCKETS_S) -> None:
        self.bounds = bounds
        self.counts: List[int] = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)


class Metrics:
    """What one server has done; changed by its loop only.

    Args:
        info: Returns the labels of what the server is, by metric.
        engine: Returns the state of an engine that may change; None for one that does not.

    Attributes:
        in_flight: Requests being answered.
        pending: Returns how many requests wait for a worker.
        connections: Open connections.
        refused_connections: Connections turned away because there were too many.
        sequences: Sequences whose state is kept; None for a model without.
        certificate_not_after: When the TLS certificate ends, in seconds since 1970.
        http: Histograms of seconds by route, status and method.
        grpc: Histograms of seconds by method and status code.
        queue: Seconds that requests waited for a worker.
        compute: Seconds in the engine, per execution.
        batch: Rows per execution.
        counters: What `count` counted, by name and labels.
        sources: Called with the page, `exposition.Page`, to add what only they know.
    """

    def __init__(
        self,
        info: Callable[[], Mapping[str, Mapping[str, str]]],
        engine: Optional[Callable[[], Mapping[str, Any]]] = None,
    ) -> None:
        self.in_flight = 0
        self.pending: Callable[[], int] = lambda: 0
        self.connections = 0
        self.refused_connections = 0
        self.sequences: Optional[int] = None
        self.certificate_not_after: Optional[float] = None
        self.http: Dict[Tuple[str, int, str], Histogram] = {}
        self.grpc: Dict[Tuple[str, int], Histogram] = {}
        self.queue = Histogram()
        self.compute = Histogram()
        self.batch = Histogram(BUCKETS_ROWS)
        self.counters: Dict[Tuple[str, Labels], int] = {}
        self.sources: List[Callable[[Any], None]] = []
        self._info = info
        self._engine = engine
        self._exposition: Any = None
        self.observe_queue = self.queue.observe
        self.observe_compute = self.compute.observe
        self.observe_batch = self.batch.observe

    def observe(self, route: str, status: int, seconds: float, method: str = "") -> None:
        """Count one HTTP answer.

        Args:
            route: The endpoint's name, one of a fixed set.
            status: The answer's status.
            seconds: From the whole request read to its answer written.
            method: As the client sent it; empty for the method that the route takes.
        """
        found = self.http.get((route, status, method))
        if found is None:
            found = self._add_http(route, status, method)
        found.counts[bisect_left(BUCKETS_S, seconds)] += 1
        found.total += seconds

    def observe_grpc(self, method: str, code: int, seconds: float) -> None:
        """Count one gRPC call.

        Args:
            method: As `/package.Service/Method` or, of the inference service, `Method` alone;
                what no service has is counted as `unknown`.
            code: gRPC's status code, 0 for success.
            seconds: From the call's headers to its trailers.
        """
        found = self.grpc.get((method, code))
        if found is None:
            from .exposition import is_grpc_method

            key = (method if is_grpc_method(method) else "unknown", code if 0 <= code <= 16 else 2)
            found = self.grpc.setdefault(key, Histogram())
        found.observe(seconds)

    def count(self, name: str, /, **labels: str) -> None:
        """Count one event of our own: `rejected` with a `reason`, `captured`."""
        key = (name, tuple(sorted(labels.items())))
        if key not in self.counters and len(self.counters) >= MAX_SERIES:
            key = (OVERFLOW, ())
        self.counters[key] = self.counters.get(key, 0) + 1

    def text(self) -> str:
        """Return everything in the exposition format."""
        if self._exposition is None:
            # imported when first asked for: a server that nobody watches starts without
            from .exposition import Exposition

            self._exposition = Exposition(self)
        text: str = self._exposition.text(self._info(), self._engine and self._engine())
        return text

    def _add_http(self, route: str, status: int, method: str) -> Histogram:
        if method not in METHODS and method:
            method = OTHER
        if len(self.http) >= MAX_SERIES:
            route = OVERFLOW
        return self.http.setdefault((route, status, method), Histogram())
