"""Counters and histograms, shown as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

CONTENT_TYPE = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
             2.5, 5.0)  # fmt: skip
ENGINE_STATES = ("missing", "building", "checking", "live", "stale", "refused")


class Metrics:
    """What one server has done; changed by its loop only.

    Args:
        info: Returns the labels of what the server is, by metric.
        engine: Returns the state of an engine that may change; None for one that does not.

    Attributes:
        in_flight: Requests being answered.
        connections: Open connections.
        refused_connections: Connections turned away because there were too many.
    """

    def __init__(
        self,
        info: Callable[[], Mapping[str, Mapping[str, str]]],
        engine: Optional[Callable[[], Mapping[str, Any]]] = None,
    ) -> None:
        self.in_flight = 0
        self.connections = 0
        self.refused_connections = 0
        self._info = info
        self._engine = engine
        self._requests: Dict[Tuple[str, int], int] = {}
        # per route: one count a bucket, one past the last, and the sum of seconds
        self._seconds: Dict[str, Tuple[List[int], List[float]]] = {}

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        key = (route, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        found = self._seconds.get(route)
        if found is None:
            found = self._seconds[route] = ([0] * (len(BUCKETS_S) + 1), [0.0])
        found[0][bisect_left(BUCKETS_S, seconds)] += 1
        found[1][0] += seconds

    def text(self) -> str:
        """Return everything in the exposition format."""
        lines: List[str] = []
        for name, labels in self._info().items():
            _describe(lines, name, "gauge", "Always 1; the labels tell.")
            lines.append("%s%s 1" % (name, _labels(labels)))
        _describe(lines, "edgepack_requests_total", "counter", "Answers by route and status.")
        for (route, status), count in sorted(self._requests.items()):
            labels = {"route": route, "code": str(status)}
            lines.append("edgepack_requests_total%s %d" % (_labels(labels), count))
        self._histogram(lines, "edgepack_request_duration_seconds")
        plain = [
            ("edgepack_requests_in_flight", "gauge", "Requests being answered.", self.in_flight),
            ("edgepack_connections", "gauge", "Open connections.", self.connections),
            (
                "edgepack_connections_refused_total",
                "counter",
                "Connections turned away at the limit.",
                self.refused_connections,
            ),
        ]
        for name, kind, meaning, value in plain:
            _describe(lines, name, kind, meaning)
            lines.append("%s %d" % (name, value))
        if self._engine is not None:
            _accelerator(lines, self._engine())
        _process(lines)
        return "\n".join(lines) + "\n"

    def _histogram(self, lines: List[str], name: str) -> None:
        _describe(lines, name, "histogram", "From the whole request read to its answer made.")
        for route, (counts, total) in sorted(self._seconds.items()):
            seen = 0
            for bound, count in zip((*map(repr, BUCKETS_S), "+Inf"), counts):  # noqa: B905 - 3.8
                seen += count
                labels = _labels({"route": route, "le": bound})
                lines.append("%s_bucket%s %d" % (name, labels, seen))
            lines.append("%s_sum%s %.9g" % (name, _labels({"route": route}), total[0]))
            lines.append("%s_count%s %d" % (name, _labels({"route": route}), seen))


def _accelerator(lines: List[str], status: Mapping[str, Any]) -> None:
    """Append the state of an engine that may change."""
    _describe(lines, "edgepack_engine_state", "gauge", "1 for the state that the engine is in.")
    for state in ENGINE_STATES:
        labels = _labels({"state": state, "wanted": status["wanted"]})
        lines.append("edgepack_engine_state%s %d" % (labels, state == status["state"]))
    plain = [
        ("fallback", "gauge", "Whether the fallback answers.", status["fallback"]),
        ("faults_total", "counter", "Calls that failed in the wanted engine.", status["faults"]),
        (
            "rescued_total",
            "counter",
            "Calls that the fallback answered after such a failure.",
            status["rescued"],
        ),
    ]
    for name, kind, meaning, value in plain:
        _describe(lines, "edgepack_engine_" + name, kind, meaning)
        lines.append("edgepack_engine_%s %d" % (name, value))
    for key, name, meaning in (
        ("progress", "build_progress_ratio", "How much of the build is done, 0 to 1."),
        ("seconds_left", "build_left_seconds", "Estimate of what the build still takes."),
    ):
        if status.get(key) is not None:
            _describe(lines, "edgepack_engine_" + name, "gauge", meaning)
            lines.append("edgepack_engine_%s %.9g" % (name, status[key]))


def _process(lines: List[str]) -> None:
    """Append what Linux knows of this process; nothing where it does not tell."""
    times = os.times()
    _describe(lines, "process_cpu_seconds_total", "counter", "User and system CPU time.")
    lines.append("process_cpu_seconds_total %.2f" % (times.user + times.system))
    try:
        with open("/proc/self/statm", "rb") as stream:
            pages = int(stream.read().split()[1])
        with open("/proc/self/stat", "rb") as stream:
            ticks = int(stream.read().rpartition(b")")[2].split()[19])
    except OSError:
        return
    _describe(lines, "process_resident_memory_bytes", "gauge", "Resident memory.")
    lines.append("process_resident_memory_bytes %d" % (pages * os.sysconf("SC_PAGE_SIZE")))
    uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    _describe(lines, "process_start_time_seconds", "gauge", "Start, in seconds since 1970.")
    lines.append("process_start_time_seconds %.2f" % (time.time() - uptime_s))


def _describe(lines: List[str], name: str, kind: str, meaning: str) -> None:
    lines.append("# HELP %s %s" % (name, meaning))
    lines.append("# TYPE %s %s" % (name, kind))


def _labels(labels: Mapping[str, str]) -> str:
    return "{%s}" % ",".join('%s="%s"' % (name, _escape(labels[name])) for name in labels)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
