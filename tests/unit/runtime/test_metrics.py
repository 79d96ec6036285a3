"""Metrics as Prometheus reads them."""

from __future__ import annotations

import re

from runtime.metrics import Metrics
from runtime.nvidia.switching import STATES

LINE = re.compile(r'[a-z_]+(\{[a-z]+="(\\.|[^"\\])*"(,[a-z]+="(\\.|[^"\\])*")*\})? -?[0-9.e+-]+')


def test_every_line_is_of_the_exposition_format() -> None:
    metrics = Metrics(lambda: {"edgepack_model_info": {"name": 'a"\\\n', "version": "1"}})
    metrics.observe("infer", 200, 0.003)
    for line in metrics.text().splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line


def test_answers_are_counted_by_route_and_status_and_sorted_into_buckets() -> None:
    metrics = Metrics(dict)
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
    text = Metrics(dict).text()
    assert int(re.search(r"process_resident_memory_bytes (\d+)", text)[1]) > 1_000_000
    assert float(re.search(r"process_start_time_seconds ([\d.]+)", text)[1]) > 1_700_000_000


def test_the_state_of_an_engine_is_one_among_all_states() -> None:
    status = {
        "state": "building", "wanted": "tensorrt", "fallback": True, "faults": 3, "rescued": 2,
        "progress": 0.25, "seconds_left": None,
    }  # fmt: skip
    text = Metrics(dict, lambda: status).text()
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line
    for state in STATES:
        value = int(state == "building")
        assert f'edgepack_engine_state{{state="{state}",wanted="tensorrt"}} {value}\n' in text
    for line in (
        "edgepack_engine_fallback 1",
        "edgepack_engine_faults_total 3",
        "edgepack_engine_rescued_total 2",
        "edgepack_engine_build_progress_ratio 0.25",
    ):
        assert line + "\n" in text
    assert "edgepack_engine_build_left_seconds" not in text
    assert "edgepack_engine_state" not in Metrics(dict).text()
