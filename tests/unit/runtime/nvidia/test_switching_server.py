"""A real server under load while engines come, fail and go: every request answered, every time."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest

from runtime.app import App
from runtime.engine import OnnxRuntimeEngine
from tests.unit.runtime.live_server import serving
from tests.unit.runtime.nvidia.simulated_maker import (
    SOFT,
    CudaFault,
    SimulatedEngine,
    SimulatedMaker,
    double_release,
    make_machine,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.runtime.live_server import LiveServer, OpenRelease
    from tests.unit.runtime.nvidia.simulated_maker import Machine

CLIENTS = 8
MODEL = "/v2/models/double"


@pytest.fixture
def release(tmp_path: Path, engine_library: Path) -> OpenRelease:
    (tmp_path / "release").mkdir()
    return double_release(tmp_path / "release", engine_library)


@pytest.fixture
def machine(tmp_path: Path, release: OpenRelease) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(**options: Any) -> Machine:
        maker = SimulatedMaker(
            **{name: options.pop(name) for name in list(options) if hasattr(SimulatedMaker, name)}
        )
        # ONNX Runtime itself answers until then; the clock makes it the slower one
        found = make_machine(tmp_path / "store", release, maker, fallback=Slow(release), **options)
        found.switch.fallback.clock = found.clock
        made.append(found)
        return found

    yield make
    for each in made:
        each.switch.close()
        assert [engine.misuse for engine in each.maker.engines if engine.misuse] == []


class Slow(OnnxRuntimeEngine):
    """ONNX Runtime, whose calls take ten milliseconds by the test's clock."""

    def __init__(self, release: OpenRelease) -> None:
        super().__init__(release, 1)
        self.clock: Any = None
        inner = self.run

        def run(*arguments: Any) -> Any:
            self.clock.now += 0.010
            return inner(*arguments)

        self.run = run


def get(live: LiveServer, path: str) -> Any:
    with live.client() as client:
        return client.ask("GET", path).json()


def metric(live: LiveServer, name: str) -> float:
    with live.client() as client:
        for line in client.ask("GET", "/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
    raise AssertionError(name)


class Load:
    """Clients that ask without a pause and keep what went wrong."""

    def __init__(self, live: LiveServer) -> None:
        self._live = live
        self._stop = threading.Event()
        self.answered = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, number: int) -> None:
        try:
            with self._live.client() as client:
                value = float(number)
                while not self._stop.is_set():
                    value += 1.0
                    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, -1.0]}
                    body = json.dumps({"inputs": [item]}).encode()
                    reply = client.ask("POST", MODEL + "/infer", body)
                    got = reply.json()["outputs"][0]["data"] if reply.status == 200 else reply.body
                    with self._lock:
                        self.answered += 1
                        if got != [value * 2, -2.0]:
                            self.wrong.append(f"{value}: {reply.status} {got!r}")
        except Exception as fault:  # noqa: BLE001 - told by the test
            with self._lock:
                self.wrong.append(repr(fault))

    def more(self, count: int = 40) -> None:
        """Wait until so many further requests were answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal or self.wrong)


def test_no_request_is_lost_while_engines_come_and_fail_under_load(
    machine: Callable[..., Machine], release: OpenRelease
) -> None:
    found = machine()
    gate = found.maker.gate = threading.Event()
    with serving(App(release, found.switch)) as live:
        found.life.start()
        with Load(live) as load:
            assert found.maker.begun.wait(60)
            load.more()
            told = get(live, MODEL)
            assert told["engine"] == told["platform"] == "onnxruntime"
            assert told["accelerator"]["state"] == "building"
            gate.set()
            for number in range(3):
                until(lambda: found.switch.state == "live")
                engine = found.maker.engines[number]
                before = engine.calls
                load.more()
                assert engine.calls > before
                assert get(live, MODEL)["engine"] == "tensorrt"
                engine.fault.extend(CudaFault("cudaErrorLaunchFailure") for _ in range(2))
                until(lambda: engine.closed)  # noqa: B023 - called in this turn
            until(lambda: found.switch.state == "live")
            load.more()
        assert load.wrong == []
        faults = metric(live, "edgepack_engine_faults_total")
        assert faults == metric(live, "edgepack_engine_rescued_total") >= 3
        told = live.app.metrics.http.items()
        answered = sum(found.count for key, found in told if key[:2] == ("infer", 200))
        assert answered == load.answered


def test_metadata_health_and_metrics_tell_the_truth_in_every_state(
    machine: Callable[..., Machine], release: OpenRelease
) -> None:
    found = machine()
    gate = found.maker.gate = threading.Event()
    held = threading.Event()
    plain = found.maker.make
    found.maker.make = lambda **fields: slow_check(plain(**fields), held)

    with serving(App(release, found.switch)) as live:

        def is_told(state: str, engine: str, reason: str | None) -> None:
            documents = (get(live, MODEL), get(live, "/v2/health/ready"))
            for document in documents:
                assert (document["engine"], document["accelerator"]["state"]) == (engine, state)
                assert document["accelerator"]["wanted"] == "tensorrt"
                said = document["accelerator"]["reason"]
                assert (reason is None) == (said is None)
                assert reason is None or reason in said
            assert documents[1]["ready"] is True
            assert metric(live, f'edgepack_engine_state{{state="{state}",wanted="tensorrt"}}') == 1
            assert metric(live, "edgepack_engine_fallback") == (engine == "onnxruntime")
            provider = "TensorRT" if engine == "tensorrt" else "CPUExecutionProvider"
            assert documents[0]["provider"] == provider
            labels = f'engine="{engine}",version="{documents[0]["engine_version"]}"'
            with live.client() as client:
                text = client.ask("GET", "/metrics").body.decode()
            assert f'edgepack_engine_info{{{labels},provider="{provider}"' in text

        is_told("missing", "onnxruntime", None)
        found.life.start()
        assert found.maker.begun.wait(60)
        until(lambda: found.switch.progress)
        is_told("building", "onnxruntime", "there is no engine for this device yet")
        assert metric(live, "edgepack_engine_build_progress_ratio") == 0.25
        assert metric(live, "edgepack_engine_build_left_seconds") == 30.0
        assert get(live, MODEL)["accelerator"]["step"] == "Timing tactics"
        gate.set()
        until(lambda: found.switch.state == "checking")
        is_told("checking", "onnxruntime", None)
        held.set()
        until(lambda: found.switch.state == "live")
        is_told("live", "tensorrt", None)
        found.life._policy = found.life._policy._replace(load_pauses_s=(3600.0,))
        found.maker.engines[0].fault.append(CudaFault("cudaErrorIllegalAddress"))
        body = json.dumps({"data": [[1, 2]]}).encode()
        with live.client() as client:
            assert client.ask("POST", "/predict", body).status == 200
        is_told("refused", "onnxruntime", "it failed while it served: cudaErrorIllegalAddress")


def slow_check(engine: SimulatedEngine, held: threading.Event) -> SimulatedEngine:
    """Let an engine's calls wait, so that its check takes as long as the test wants."""
    engine.held = held
    return engine


def test_a_change_of_the_power_mode_is_told_while_the_engine_serves(
    machine: Callable[..., Machine], release: OpenRelease
) -> None:
    found = machine()
    found.life._policy = found.life._policy._replace(look_s=0.01)
    with serving(App(release, found.switch)) as live:
        found.life.start()
        until(lambda: found.switch.state == "live")
        found.maker.soft_here = {**SOFT, "power_mode": "MAXN"}
        until(lambda: found.switch.state == "stale")
        told = get(live, MODEL)
        assert told["engine"] == "tensorrt"
        assert told["accelerator"]["notes"] == [
            "the engine was tuned in power mode `15W`, and the device is in `MAXN`"
        ]
        found.maker.soft_here = dict(SOFT)
        until(lambda: found.switch.state == "live")
        assert get(live, MODEL)["accelerator"]["notes"] == []
        # what cannot be seen has not changed
        found.maker.soft = lambda: 1 / 0  # type: ignore[method-assign]
        assert found.life._thread.is_alive()
        assert get(live, MODEL)["accelerator"]["state"] == "live"
