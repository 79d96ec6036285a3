"""Metrics as Prometheus reads them, by the names that others gave them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.app import default_routes
from runtime.exposition import ROUTES, Exposition, grpc_code
from runtime.metrics import BUCKETS_S, MAX_SERIES, Metrics
from runtime.nvidia.switching import STATES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

MODEL = {"edgepack_model_info": {"name": "m", "version": "1", "target": "cpu"}}
NAMED = {"model": "m", "version": "1"}


def families(text: str) -> dict[str, Metric]:
    """Parse with Prometheus's own reader; every sample must belong to a described metric."""
    found = {family.name: family for family in text_string_to_metric_families(text)}
    for family in found.values():
        assert family.type != "unknown", family.name
        assert family.documentation, family.name
    return found


def value(metrics: Metrics, name: str, /, **labels: str) -> float:
    if name.startswith("nv_") and f"# TYPE {name} counter\n" in metrics.text():
        name += "_total"  # the reader's own name for what Triton leaves bare
    values = [
        sample.value
        for family in families(metrics.text()).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(values) == 1, (name, labels, metrics.text())
    return float(values[0])


def has(metrics: Metrics, name: str) -> bool:
    return any(name == line.split("{")[0].split()[0] for line in metrics.text().splitlines())


def used() -> Metrics:
    metrics = Metrics(lambda: MODEL)
    metrics.observe("infer", 200, 0.003)
    metrics.observe("malformed", 400, 0.0)
    metrics.observe_grpc("ModelInfer", 0, 0.002)
    metrics.observe_queue(0.001)
    metrics.observe_compute(0.02)
    metrics.observe_batch(4)
    metrics.count("rejected", reason="queue")
    return metrics


def test_prometheus_reads_every_line_and_no_series_comes_twice() -> None:
    text = used().text()
    seen = set()
    for family in families(text).values():
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in seen
            seen.add(key)
    for kind in ("HELP", "TYPE"):
        names = [line.split()[2] for line in text.splitlines() if line.startswith(f"# {kind} ")]
        assert len(names) == len(set(names))


def test_buckets_of_every_histogram_rise_to_its_count() -> None:
    metrics = used()
    for seconds in (0.0, 0.0001, 0.00011, 9.9, 60.0):
        metrics.observe("infer", 200, seconds)
        metrics.observe_queue(seconds)
    histograms = [f for f in families(metrics.text()).values() if f.type == "histogram"]
    assert len(histograms) >= 5
    for family in histograms:
        series: dict[Any, list[tuple[float, float]]] = {}
        counts = {}
        for sample in family.samples:
            labels = dict(sample.labels)
            bound = labels.pop("le", None)
            key = tuple(sorted(labels.items()))
            if sample.name.endswith("_bucket"):
                assert bound is not None
                series.setdefault(key, []).append((float(bound), sample.value))
            elif sample.name.endswith("_count"):
                counts[key] = sample.value
        for key, buckets in series.items():
            assert buckets == sorted(buckets)
            assert [count for _, count in buckets] == sorted(count for _, count in buckets)
            assert buckets[-1] == (math.inf, counts[key])


def test_hostile_labels_come_back_as_they_were() -> None:
    name = 'a"b\\n\\\n}{,='
    metrics = Metrics(lambda: {"edgepack_model_info": {"name": name, "version": "1"}})
    assert value(metrics, "edgepack_model_info", name=name, version="1") == 1
    assert value(metrics, "nv_inference_count", model=name, version="1") == 0


def test_http_answers_are_named_by_opentelemetry() -> None:
    metrics = Metrics(dict)
    for seconds in (0.0002, 0.003, 0.003, 60.0):
        metrics.observe("infer", 200, seconds)
    metrics.observe("infer", 200, 0.003, "POST")
    metrics.observe("infer", 405, 0.0, "GET")
    metrics.observe("infer", 405, 0.0, "BREW")
    metrics.observe("malformed", 400, 0.0)
    metrics.in_flight = 3
    name = "http_server_request_duration_seconds"
    labels = {
        "http_request_method": "POST",
        "http_route": "/v2/models/{model}/infer",
        "http_response_status_code": "200",
    }
    assert value(metrics, name + "_bucket", le="0.00025", **labels) == 1
    assert value(metrics, name + "_bucket", le="5.0", **labels) == 4
    assert value(metrics, name + "_bucket", le="+Inf", **labels) == 5
    assert value(metrics, name + "_count", **labels) == 5
    assert value(metrics, name + "_sum", **labels) == pytest.approx(60.0092)
    wrong = {**labels, "http_response_status_code": "405"}
    for method in ("GET", "_OTHER"):
        assert value(metrics, name + "_count", **{**wrong, "http_request_method": method}) == 1
    malformed = {
        "http_request_method": "_OTHER",
        "http_response_status_code": "400",
        "error_type": "malformed",
    }
    assert value(metrics, name + "_count", **malformed) == 1
    assert value(metrics, "http_server_active_requests") == 3


def test_every_route_that_is_served_is_known_by_its_path() -> None:
    server = {"page": True, "grpc": True}
    for path, name in default_routes({"name": "m", "version": "1", "server": server}):
        if "/versions/" not in path and not path.startswith("/v2/models/m/ready"):
            assert ROUTES[name][1] == path.replace("/v2/models/m", "/v2/models/{model}"), name


def test_an_observation_on_a_bound_belongs_to_that_bucket() -> None:
    metrics = Metrics(lambda: MODEL)
    for bound in BUCKETS_S:
        metrics.observe_queue(bound)
    name = "inference_queue_duration_seconds_bucket"
    for rank, bound in enumerate(BUCKETS_S, start=1):
        assert value(metrics, name, le=repr(bound), **NAMED) == rank


def test_grpc_calls_are_named_as_the_go_middleware_does() -> None:
    metrics = Metrics(dict)
    assert not has(metrics, "grpc_server_handled_total")
    metrics.observe_grpc("ModelInfer", 0, 0.002)
    metrics.observe_grpc("/inference.GRPCInferenceService/ModelInfer", 3, 0.001)
    metrics.observe_grpc("/no.such.Service/Method", 12, 0.0)
    metrics.observe_grpc("ModelStreamInfer", 0, 1.0)
    infer = {
        "grpc_type": "unary",
        "grpc_service": "inference.GRPCInferenceService",
        "grpc_method": "ModelInfer",
    }
    handled = "grpc_server_handled_total"
    assert value(metrics, handled, grpc_code="OK", **infer) == 1
    assert value(metrics, handled, grpc_code="InvalidArgument", **infer) == 1
    assert value(metrics, "grpc_server_handling_seconds_count", **infer) == 2
    stream = {**infer, "grpc_type": "bidi_stream", "grpc_method": "ModelStreamInfer"}
    assert value(metrics, handled, grpc_code="OK", **stream) == 1
    unknown = {"grpc_type": "unary", "grpc_service": "unknown", "grpc_method": "unknown"}
    assert value(metrics, handled, grpc_code="Unimplemented", **unknown) == 1
    assert grpc_code(99) == "Code(99)"


def test_inference_is_told_in_tritons_words() -> None:
    metrics = Metrics(lambda: MODEL)
    metrics.observe("infer", 200, 0.5)
    metrics.observe("predict", 200, 0.25)
    metrics.observe("metrics", 200, 0.5)
    metrics.observe_grpc("ModelInfer", 0, 0.25)
    for status in (400, 500, 429, 503, 504):
        metrics.observe("infer", status, 0.5)
    for code in (1, 3, 13, 14):
        metrics.observe_grpc("ModelInfer", code, 0.5)
    metrics.observe_queue(0.125)
    metrics.observe_compute(0.25)
    metrics.observe_compute(0.25)
    metrics.observe_batch(3)
    metrics.observe_batch(8)
    metrics.pending = lambda: 5
    assert value(metrics, "nv_inference_request_success", **NAMED) == 3
    for reason, count in {"REJECTED": 4, "CANCELED": 1, "BACKEND": 2, "OTHER": 2}.items():
        assert value(metrics, "nv_inference_request_failure", reason=reason, **NAMED) == count
    for name, expected in {
        "count": 11,
        "exec_count": 2,
        "request_duration_us": 1_000_000,
        "queue_duration_us": 125_000,
        "compute_infer_duration_us": 500_000,
        "pending_request_count": 5,
    }.items():
        assert value(metrics, f"nv_inference_{name}", **NAMED) == expected
    assert value(metrics, "inference_compute_infer_duration_seconds_sum", **NAMED) == 0.5
    assert value(metrics, "inference_batch_size_bucket", le="4.0", **NAMED) == 1
    assert value(metrics, "inference_batch_size_sum", **NAMED) == 11


def test_events_are_counted_by_their_labels() -> None:
    metrics = Metrics(dict)
    for reason in ("queue", "queue", "key"):
        metrics.count("rejected", reason=reason)
    metrics.count("captured")
    assert value(metrics, "edgepack_rejected_total", reason="queue") == 2
    assert value(metrics, "edgepack_rejected_total", reason="key") == 1
    assert value(metrics, "edgepack_captured_total") == 1


def test_no_client_can_make_ever_more_series() -> None:
    metrics = Metrics(dict)
    for number in range(3000):
        metrics.count("rejected", reason=str(number))
        metrics.observe("infer", 200, 0.0, f"M{number}")
        metrics.observe_grpc(f"/s/{number}", number % 17, 0.0)
        metrics.observe(f"r{number}", 200, 0.0)
    assert len(metrics.counters) == MAX_SERIES + 1
    assert len(metrics.http) <= MAX_SERIES + 2
    assert len(metrics.grpc) == 17
    assert value(metrics, "edgepack_overflow_total") == 3000 - MAX_SERIES


def test_the_state_of_an_engine_is_one_among_all_states() -> None:
    status = {
        "state": "building", "wanted": "tensorrt", "fallback": True, "faults": 3, "rescued": 2,
        "progress": 0.25, "seconds_left": None,
    }  # fmt: skip
    metrics = Metrics(dict, lambda: status)
    for state in STATES:
        found = value(metrics, "edgepack_engine_state", state=state, wanted="tensorrt")
        assert found == (state == "building")
    assert value(metrics, "edgepack_engine_fallback") == 1
    assert value(metrics, "edgepack_engine_faults_total") == 3
    assert value(metrics, "edgepack_engine_rescued_total") == 2
    assert value(metrics, "edgepack_engine_build_progress_ratio") == 0.25
    assert not has(metrics, "edgepack_engine_build_left_seconds")
    assert not has(Metrics(dict), "edgepack_engine_state")


def test_gauges_tell_connections_and_sequences_where_there_are_any() -> None:
    metrics = Metrics(dict)
    metrics.connections = 2
    metrics.refused_connections = 7
    assert value(metrics, "edgepack_connections") == 2
    assert value(metrics, "edgepack_connections_refused_total") == 7
    assert not has(metrics, "edgepack_sequences")
    metrics.sequences = 0
    assert value(metrics, "edgepack_sequences") == 0


def test_sensors_are_asked_once_for_scrapes_in_a_row() -> None:
    asked = []

    class Counting:
        def read(self) -> list[Any]:
            asked.append(1)
            return [("hw_temperature_celsius", {"hw_id": "zone", "hw_name": "cpu"}, 41.5)]

    exposition = Exposition(Metrics(dict), Counting())  # type: ignore[arg-type] - only read
    for _ in range(3):
        found = families(exposition.text({}, None))["hw_temperature_celsius"].samples[0]
        assert (found.value, found.labels["hw_name"]) == (41.5, "cpu")
    assert len(asked) == 1
