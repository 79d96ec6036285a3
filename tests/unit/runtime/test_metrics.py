"""Metrics as Prometheus reads them."""

from __future__ import annotations

import re

from runtime.metrics import Metrics

LINE = re.compile(r'[a-z_]+(\{[a-z]+="(\\.|[^"\\])*"(,[a-z]+="(\\.|[^"\\])*")*\})? -?[0-9.e+-]+')


def test_every_line_is_of_the_exposition_format() -> None:
    metrics = Metrics({"edgepack_model_info": {"name": 'a"\\\n', "version": "1"}})
    metrics.observe("infer", 200, 0.003)
    for line in metrics.text().splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line


def test_answers_are_counted_by_route_and_status_and_sorted_into_buckets() -> None:
    metrics = Metrics({})
    for seconds in (0.0002, 0.003, 0.003, 60.0):
        metrics.observe("infer", 200, seconds)
    metrics.observe("infer", 400, 0.0)
    text = metrics.text()
    assert 'edgepack_requests_total{route="infer",code="200"} 4' in text
    assert 'edgepack_requests_total{route="infer",code="400"} 1' in text
    name = "edgepack_request_duration_seconds"
    assert f'{name}_bucket{{route="infer",le="0.00025"}} 2' in text
    assert f'{name}_bucket{{route="infer",le="5.0"}} 4' in text
    assert f'{name}_bucket{{route="infer",le="+Inf"}} 5' in text
    assert f'{name}_count{{route="infer"}} 5' in text
    assert f'{name}_sum{{route="infer"}} 60.0062' in text


def test_the_process_tells_its_memory_and_start() -> None:
    text = Metrics({}).text()
    assert int(re.search(r"process_resident_memory_bytes (\d+)", text)[1]) > 1_000_000
    assert float(re.search(r"process_start_time_seconds ([\d.]+)", text)[1]) > 1_700_000_000
