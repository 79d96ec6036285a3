"""Event streams over HTTP/2: the same events, within the client's windows."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import numpy as np
import onnx
import pytest

from runtime.app import App
from runtime.engine import open_engine
from tests.models.streaming_gru import (
    make_signal,
    make_streaming_gru,
    scores_of,
    sequences,
    signature,
)
from tests.unit.runtime.live_server import OpenRelease, make_release, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

STREAM = "/v2/models/gru/infer_stream"


class Gate:
    """The real engine, its runs counted, and held up where a test wants."""

    def __init__(self, release: OpenRelease) -> None:
        self._engine = open_engine(release)
        self.name, self.version = self._engine.name, self._engine.version
        self.provider, self.precision = self._engine.provider, self._engine.precision
        self.open = threading.Event()
        self.open.set()
        self.runs = 0

    def run(self, feeds: Any, outputs: Any = None) -> Any:
        self.runs += 1
        assert self.open.wait(20)
        return self._engine.run(feeds, outputs)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module")
def gru(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gru") / "gru.onnx"
    onnx.save(make_streaming_gru(), path)
    return path


@pytest.fixture
def served(gru: Path, engine_library: Path, tmp_path: Path) -> Iterator[tuple[Any, Gate]]:
    release = make_release(tmp_path, gru, engine_library, **signature(), name="gru", grpc=True)
    manifest = {**release.manifest, "sequences": sequences(chunk=1)}
    release = OpenRelease(folder=release.folder, manifest=manifest)
    gate = Gate(release)
    with serving(App(release, gate)) as live:
        yield live, gate
    gate.open.set()
    gate.close()


class Http2Client:
    """One connection of the h2 library."""

    def __init__(self, port: int, *, window: int = 65535) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.http.initiate_connection()
        self.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.flush()
        self.data: dict[int, bytes] = {}
        self.status: dict[int, str] = {}
        self.fields: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()

    def flush(self) -> None:
        self.socket.sendall(self.http.data_to_send())

    def ask(
        self, method: str, path: str, body: bytes = b"", fields: Sequence[tuple[str, str]] = ()
    ) -> int:
        number = self.http.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "http"),
                (":authority", "127.0.0.1")]  # fmt: skip
        self.http.send_headers(number, [*head, *fields], end_stream=not body)
        self.data[number] = b""
        if body:
            self.http.send_data(number, body, end_stream=True)
        self.flush()
        return number

    def read(self, until: Callable[[], bool], *, acknowledge: bool = True) -> None:
        while not until():
            came = self.socket.recv(65536)
            assert came, "the server closed"
            for event in self.http.receive_data(came):
                if isinstance(event, h2.events.ResponseReceived):
                    fields = {str(key): str(value) for key, value in event.headers}
                    self.status[event.stream_id] = fields[":status"]
                    self.fields[event.stream_id] = fields
                elif isinstance(event, h2.events.DataReceived):
                    self.data[event.stream_id] += event.data
                    if acknowledge:
                        size = event.flow_controlled_length
                        self.http.acknowledge_received_data(size, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    self.ended.add(event.stream_id)
            self.flush()

    def status_of(self, method: str, path: str, body: bytes = b"") -> str:
        number = self.ask(method, path, body)
        self.read(lambda: number in self.ended)
        return self.status[number]

    def whole(self, number: int) -> list[dict[str, str]]:
        self.read(lambda: number in self.ended)
        return [
            dict(line.partition(": ")[::2] for line in block.split("\n"))
            for block in self.data[number].decode().split("\n\n")[:-1]
        ]


def body_of(signal: np.ndarray, **parameters: Any) -> bytes:
    told = {"name": "signal", "shape": list(signal.shape), "datatype": "FP32",
            "data": signal.ravel().tolist()}  # fmt: skip
    return json.dumps({"id": "x" * 500, "parameters": parameters, "inputs": [told]}).encode()


def test_events_over_http2_are_those_of_http1(served: tuple[Any, Gate], gru: Path) -> None:
    signal = make_signal(40)
    live, gate = served
    client = Http2Client(live.port)
    with client.socket:
        number = client.ask("POST", STREAM, body_of(signal))
        *got, end = client.whole(number)
        assert client.status[number] == "200"
        assert client.fields[number]["content-type"] == "text/event-stream"
        assert end == {"event": "end", "data": '{"events":40}'}
        assert [event["id"] for event in got] == list(map(str, range(40)))
        assert gate.runs == 40
        rows = [json.loads(event["data"])["outputs"][0]["data"] for event in got]
        assert np.allclose(np.array(rows), scores_of(gru, signal)[0], atol=1e-6)
        assert client.status_of("GET", "/v2/health/live") == "200"


def test_a_stream_is_counted_and_carries_its_trace(served: tuple[Any, Gate]) -> None:
    client = Http2Client(served[0].port)
    trace = "0af7651916cd43dd8448eb211c80319c"
    with client.socket:
        fields = [("traceparent", f"00-{trace}-b7ad6b7169203331-01")]
        number = client.ask("POST", STREAM, body_of(make_signal(2)), fields)
        assert len(client.whole(number)) == 3
        assert trace in client.fields[number]["traceparent"]
        metrics = client.ask("GET", "/metrics")
        client.read(lambda: metrics in client.ended)
    text = client.data[metrics].decode()
    assert 'http_route="/v2/models/{model}/infer_stream"' in text


def test_what_cannot_be_streamed_gets_an_ordinary_answer(served: tuple[Any, Gate]) -> None:
    client = Http2Client(served[0].port)
    with client.socket:
        number = client.ask("POST", STREAM, b"{}")
        client.read(lambda: number in client.ended)
        assert client.status[number] == "400"
        assert "`inputs` has to be a list" in json.loads(client.data[number])["error"]
        assert client.status_of("GET", STREAM) == "405"


def test_a_client_whose_window_is_full_stops_the_computing_until_it_takes_more(
    served: tuple[Any, Gate],
) -> None:
    live, gate = served
    client = Http2Client(live.port, window=2000)
    with client.socket:
        number = client.ask("POST", STREAM, body_of(make_signal(60)))
        client.read(lambda: len(client.data[number]) >= 2000, acknowledge=False)
        assert client.status_of("GET", "/v2/health/live") == "200"
        assert gate.runs < 10
        client.http.increment_flow_control_window(1 << 20, number)
        client.flush()
        assert len(client.whole(number)) == 61
    assert gate.runs == 60


def test_nothing_more_is_computed_for_a_stream_that_the_client_reset(
    served: tuple[Any, Gate],
) -> None:
    live, gate = served
    client = Http2Client(live.port)
    with client.socket:
        gate.open.clear()
        flags = {"sequence_id": 1, "sequence_start": True}
        number = client.ask("POST", STREAM, body_of(make_signal(60), **flags))
        while not gate.runs:
            client.status_of("GET", "/v2/health/live")
        client.http.reset_stream(number)
        client.flush()
        client.status_of("GET", "/v2/health/live")
        gate.open.set()
        # the sequence is free again, as its first piece left it
        status = "409"
        while status == "409":
            body = body_of(make_signal(1), sequence_id=1)
            status = client.status_of("POST", "/v2/models/gru/infer", body)
    assert status == "200"
    assert gate.runs == 2
