"""Writes metrics as Prometheus text (exposition format 0.0.4), by names that others gave them.

HTTP is named as OpenTelemetry's semantic conventions are shown by Prometheus, gRPC as
go-grpc-prometheus names it, inference as Triton does, the process as client libraries do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .metrics import OTHER, Histogram
from .procfs import process_facts
from .sensors import Sensors

if TYPE_CHECKING:
    from .metrics import Metrics

ENGINE_STATES = ("missing", "building", "checking", "live", "stale", "refused")
_MODEL = "/v2/models/{model}"
# What a route is called outside: the method that it takes and its path.
ROUTES: Mapping[str, Tuple[str, str]] = {
    "server_metadata": ("GET", "/v2"),
    "live": ("GET", "/v2/health/live"),
    "ready": ("GET", "/v2/health/ready"),
    "model_metadata": ("GET", _MODEL),
    "infer": ("POST", _MODEL + "/infer"),
    "infer_stream": ("POST", _MODEL + "/infer_stream"),
    "predict": ("POST", "/predict"),
    "metrics": ("GET", "/metrics"),
    "openapi": ("GET", "/openapi.json"),
    "page": ("GET", "/"),
    "page_facts": ("GET", "/page.json"),
}
# Answered before a route was known: the conventions then have an error type in its place.
UNROUTED = frozenset(("unknown", "refused", "malformed", "overflow"))
INFERENCE_ROUTES = frozenset(("infer", "infer_stream", "predict"))
INFERENCE_CALLS = frozenset(("ModelInfer", "ModelStreamInfer"))
_INFERENCE_SERVICE = "inference.GRPCInferenceService"
GRPC_METHODS: Mapping[str, Tuple[str, ...]] = {
    _INFERENCE_SERVICE: (
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
        "ModelStreamInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex",
    ),
    "grpc.health.v1.Health": ("Check", "Watch", "List"),
    "grpc.reflection.v1.ServerReflection": ("ServerReflectionInfo",),
    "grpc.reflection.v1alpha.ServerReflection": ("ServerReflectionInfo",),
}  # fmt: skip
_UNKNOWN = "unknown/unknown"
_GRPC_TYPES = {
    "ModelStreamInfer": "bidi_stream",
    "ServerReflectionInfo": "bidi_stream",
    "Watch": "server_stream",
}
# go-grpc's names of the status codes 0 to 16
GRPC_CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound",
    "AlreadyExists", "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted",
    "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated",
)  # fmt: skip
_COUNTED = {
    "rejected": "Requests refused before they reached the model, by reason.",
    "captured": "Requests kept as encrypted samples.",
    "tls_handshakes_failed": "Clients that TLS could not be agreed on with, by OpenSSL's reason.",
    "overflow": "Events whose labels were too many to be kept apart.",
}
# Read again at most so often, whoever asks: a sensor on a slow bus takes a millisecond.
SENSORS_S = 5.0


class Exposition:
    """Writes one server's metrics.

    Args:
        metrics: What was counted.
        sensors: Temperature and power of this device.
    """

    def __init__(self, metrics: Metrics, sensors: Optional[Sensors] = None) -> None:
        self._metrics = metrics
        self._sensors = sensors or Sensors()
        self._readings: Sequence[Tuple[str, Mapping[str, str], float]] = ()
        self._read_at = -SENSORS_S

    def text(
        self, info: Mapping[str, Mapping[str, str]], engine: Optional[Mapping[str, Any]]
    ) -> str:
        """Return everything in the exposition format.

        Args:
            info: Labels of what the server is, by metric.
            engine: The state of an engine that may change, or None.
        """
        page = Page()
        for name, labels in info.items():
            page.family(name, "gauge", "Always 1; the labels tell.")
            page.sample(name, labels, 1)
        model = info.get("edgepack_model_info", {})
        self._http(page)
        self._grpc(page)
        self._inference(page, {key: model[key] for key in ("name", "version") if key in model})
        self._own(page)
        for add in self._metrics.sources:
            add(page)
        if engine is not None:
            _accelerator(page, engine)
        for name, kind, meaning, value in process_facts():
            page.single(name, kind, meaning, value)
        self._device(page)
        return page.text()

    def _http(self, page: Page) -> None:
        name = "http_server_request_duration_seconds"
        merged: Dict[Tuple[str, str, int], Histogram] = {}
        for (route, status, method), histogram in self._metrics.http.items():
            # a method that was not told is the route's own
            key = (route, method or ROUTES.get(route, (OTHER, ""))[0], status)
            merged[key] = _add(merged[key], histogram) if key in merged else histogram
        page.family(name, "histogram", "From the whole request read to its answer written.")
        for (route, method, status), histogram in sorted(merged.items(), key=_first):
            labels = {"http_request_method": method, "http_response_status_code": str(status)}
            if route in UNROUTED:
                labels["error_type"] = route
            else:
                labels["http_route"] = ROUTES.get(route, ("", route))[1]
            page.histogram(name, labels, histogram)
        page.single(
            "http_server_active_requests", "gauge", "Requests being answered.",
            self._metrics.in_flight,
        )  # fmt: skip

    def _grpc(self, page: Page) -> None:
        if not self._metrics.grpc:
            return
        # told by their whole path or by their name alone: one series all the same
        by_code: Dict[Tuple[str, int], Histogram] = {}
        by_method: Dict[str, Histogram] = {}
        for (method, code), histogram in self._metrics.grpc.items():
            path = _grpc_path(method)
            by_code[path, code] = _add(by_code.get((path, code), Histogram()), histogram)
            by_method[path] = _add(by_method.get(path, Histogram()), histogram)
        page.family("grpc_server_handled_total", "counter", "Calls completed, by status code.")
        for (path, code), histogram in sorted(by_code.items(), key=_first):
            labels = {**_grpc_labels(path), "grpc_code": grpc_code(code)}
            page.sample("grpc_server_handled_total", labels, histogram.count)
        name = "grpc_server_handling_seconds"
        page.family(name, "histogram", "From a call's headers to its trailers.")
        for path, histogram in sorted(by_method.items()):
            page.histogram(name, _grpc_labels(path), histogram)

    def _inference(self, page: Page, model: Mapping[str, str]) -> None:
        metrics = self._metrics
        labels = {"model": model.get("name", ""), "version": model.get("version", "")}
        succeeded, failed, seconds = self._outcomes()
        # an execution that joined no requests is one inference
        inferences = metrics.batch.total + max(0, metrics.compute.count - metrics.batch.count)
        page.family("nv_inference_request_success", "counter", "Inference requests answered.")
        page.sample("nv_inference_request_success", labels, succeeded)
        page.family("nv_inference_request_failure", "counter", "Inference requests that failed.")
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
            page.sample(
                "nv_inference_request_failure", {**labels, "reason": reason}, failed[reason]
            )
        for name, kind, meaning, value in (
            ("count", "counter", "Inferences: rows of batches, other requests.", inferences),
            ("exec_count", "counter", "Executions of the model.", metrics.compute.count),
            ("request_duration_us", "counter", "Time of answered requests.", seconds * 1e6),
            ("queue_duration_us", "counter", "Time in the queue.", metrics.queue.total * 1e6),
            (
                "compute_infer_duration_us",
                "counter",
                "Time in the model.",
                metrics.compute.total * 1e6,
            ),
            ("pending_request_count", "gauge", "Requests in the queue.", metrics.pending()),
        ):
            page.family("nv_inference_" + name, kind, meaning)
            page.sample("nv_inference_" + name, labels, int(value))
        for name, meaning, histogram in (
            ("inference_queue_duration_seconds", "Wait of a request for a worker.", metrics.queue),
            ("inference_compute_infer_duration_seconds", "One execution.", metrics.compute),
            ("inference_batch_size", "Rows of one execution.", metrics.batch),
        ):
            page.family(name, "histogram", meaning)
            page.histogram(name, labels, histogram)

    def _outcomes(self) -> Tuple[int, Dict[str, int], float]:
        """Return successes, failures by Triton's reasons, and seconds of the successes."""
        found: List[Tuple[str, Histogram]] = [
            (_http_outcome(status), histogram)
            for (route, status, _), histogram in self._metrics.http.items()
            if route in INFERENCE_ROUTES
        ]
        found += [
            (_grpc_outcome(code), histogram)
            for (method, code), histogram in self._metrics.grpc.items()
            if method.rpartition("/")[2] in INFERENCE_CALLS
        ]
        outcomes = dict.fromkeys(("", "REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        seconds = 0.0
        for outcome, histogram in found:
            outcomes[outcome] += histogram.count
            if not outcome:
                seconds += histogram.total
        return outcomes.pop(""), outcomes, seconds

    def _own(self, page: Page) -> None:
        metrics = self._metrics
        page.single("edgepack_connections", "gauge", "Open connections.", metrics.connections)
        page.single(
            "edgepack_connections_refused_total",
            "counter",
            "Connections turned away at the limit.",
            metrics.refused_connections,
        )
        if metrics.sequences is not None:
            page.single(
                "edgepack_sequences", "gauge", "Sequences whose state is kept.", metrics.sequences
            )
        if metrics.certificate_not_after is not None:
            page.single(
                "edgepack_tls_certificate_not_after_seconds",
                "gauge",
                "When the server's TLS certificate ends, in seconds since 1970.",
                metrics.certificate_not_after,
            )
        last = ""
        for (name, labels), count in sorted(metrics.counters.items()):
            full = "edgepack_%s_total" % name
            if name != last:
                page.family(full, "counter", _COUNTED.get(name, "Events of this kind."))
                last = name
            page.sample(full, dict(labels), count)

    def _device(self, page: Page) -> None:
        now = time.monotonic()
        if now - self._read_at >= SENSORS_S:
            self._read_at = now
            self._readings = self._sensors.read()
        last = ""
        for name, labels, value in self._readings:
            if name != last:
                kind, meaning = _SENSED[name]
                page.family(name, kind, meaning)
                last = name
            page.sample(name, labels, value)


_SENSED = {
    "hw_energy_joules_total": ("counter", "Energy taken since the counter's last overflow."),
    "hw_power_watts": ("gauge", "Power drawn."),
    "hw_temperature_celsius": ("gauge", "Temperature."),
}


class Page:
    """Lines of the exposition format."""

    def __init__(self) -> None:
        self._lines: List[str] = []

    def family(self, name: str, kind: str, meaning: str) -> None:
        """Begin a metric."""
        self._lines.append("# HELP %s %s" % (name, _escape_help(meaning)))
        self._lines.append("# TYPE %s %s" % (name, kind))

    def sample(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Add one value."""
        self._lines.append("%s%s %s" % (name, _labels(labels), _number(value)))

    def single(self, name: str, kind: str, meaning: str, value: float) -> None:
        """Add a metric of one value without labels."""
        self.family(name, kind, meaning)
        self.sample(name, {}, value)

    def histogram(self, name: str, labels: Mapping[str, str], histogram: Histogram) -> None:
        """Add the buckets, sum and count of one histogram."""
        seen = 0
        for bound, count in zip((*map(repr, histogram.bounds), "+Inf"), histogram.counts):  # noqa: B905 - 3.8
            seen += count
            self.sample(name + "_bucket", {**labels, "le": bound}, seen)
        self.sample(name + "_sum", labels, histogram.total)
        self.sample(name + "_count", labels, seen)

    def text(self) -> str:
        """Return everything."""
        return "\n".join(self._lines) + "\n"


def is_grpc_method(method: str) -> bool:
    """Say whether a method is of a service that this server has."""
    return _grpc_path(method) != _UNKNOWN


def grpc_code(code: int) -> str:
    """Return go-grpc's name of a status code."""
    return GRPC_CODES[code] if 0 <= code < len(GRPC_CODES) else "Code(%d)" % code


def _grpc_path(method: str) -> str:
    """Return `package.Service/Method` of a method told in full or by its name alone."""
    service, _, name = method.lstrip("/").rpartition("/")
    service = service or _INFERENCE_SERVICE
    return "%s/%s" % (service, name) if name in GRPC_METHODS.get(service, ()) else _UNKNOWN


def _grpc_labels(path: str) -> Dict[str, str]:
    service, _, name = path.rpartition("/")
    kind = _GRPC_TYPES.get(name, "unary")
    return {"grpc_type": kind, "grpc_service": service, "grpc_method": name}


def _http_outcome(status: int) -> str:
    if status < 400:
        return ""
    return {429: "REJECTED", 503: "REJECTED", 504: "REJECTED", 500: "BACKEND"}.get(status, "OTHER")


def _grpc_outcome(code: int) -> str:
    reasons = {0: "", 1: "CANCELED", 4: "REJECTED", 8: "REJECTED", 13: "BACKEND", 14: "REJECTED"}
    return reasons.get(code, "OTHER")


def _accelerator(page: Page, status: Mapping[str, Any]) -> None:
    """Add the state of an engine that may change."""
    page.family("edgepack_engine_state", "gauge", "1 for the state that the engine is in.")
    for state in ENGINE_STATES:
        labels = {"state": state, "wanted": status["wanted"]}
        page.sample("edgepack_engine_state", labels, state == status["state"])
    for name, kind, meaning, key in (
        ("fallback", "gauge", "Whether the fallback answers.", "fallback"),
        ("faults_total", "counter", "Calls that failed in the wanted engine.", "faults"),
        (
            "rescued_total",
            "counter",
            "Calls that the fallback answered after such a failure.",
            "rescued",
        ),
        ("build_progress_ratio", "gauge", "How much of the build is done, 0 to 1.", "progress"),
        ("build_left_seconds", "gauge", "Estimate of what the build still takes.", "seconds_left"),
    ):
        if status.get(key) is not None:
            page.single("edgepack_engine_" + name, kind, meaning, status[key])


def _add(one: Histogram, other: Histogram) -> Histogram:
    result = Histogram(one.bounds)
    result.counts = [a + b for a, b in zip(one.counts, other.counts)]  # noqa: B905 - 3.8
    result.total = one.total + other.total
    return result


def _first(item: Tuple[Any, Any]) -> Any:
    return item[0]


def _number(value: float) -> str:
    return "%d" % value if isinstance(value, int) else repr(float(value))


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{%s}" % ",".join('%s="%s"' % (name, _escape(labels[name])) for name in labels)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escape_help(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
