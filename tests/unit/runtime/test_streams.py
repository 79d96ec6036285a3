"""The answers to one request come one by one, in order, as fast as the client takes them."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from runtime.app import App
from runtime.engine import open_engine
from runtime.errors import ModelFault
from tests.models.streaming_gru import (
    make_signal,
    make_streaming_gru,
    scores_of,
    sequences,
    signature,
)
from tests.unit.runtime.live_server import (
    Client,
    LiveServer,
    infer_body,
    make_release,
    request,
    serving,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STREAM = "/v2/models/gru/infer_stream"
INFER = "/v2/models/gru/infer"


@dataclasses.dataclass
class Event:
    name: str
    data: Any
    id: str | None = None


class Gate:
    """A real engine whose runs can be held up, made to fail, and counted."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.runs = 0
        self.fails_at: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "status":
            raise AttributeError(name)
        return getattr(self._engine, name)

    def run(self, feeds: Any, outputs: Any = None) -> Any:
        self.runs += 1
        self.entered.release()
        assert self.open.wait(20)
        if self.runs == self.fails_at:
            raise ModelFault("it failed with 1.5 in it")
        return self._engine.run(feeds, outputs)


@pytest.fixture(scope="module")
def gru(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gru") / "gru.onnx"
    onnx.save(make_streaming_gru(), path)
    return path


@dataclasses.dataclass
class Streaming:
    live: LiveServer
    gate: Gate

    def client(self) -> Client:
        return self.live.client()


@pytest.fixture
def open_model(gru: Path, engine_library: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    opened = []

    def opens(wire: dict[str, Any] | None, **server: Any) -> tuple[App, Gate]:
        release = make_release(tmp_path, gru, engine_library, **signature(), name="gru", **server)
        if wire is not None:
            release = dataclasses.replace(release, manifest={**release.manifest, "sequences": wire})
        gate = Gate(open_engine(release))
        opened.append(gate)
        return App(release, gate), gate

    yield opens
    for gate in opened:
        gate.open.set()
        gate.close()


@pytest.fixture
def stateful(open_model: Any) -> Iterator[Streaming]:
    app, gate = open_model(sequences())
    with serving(app) as live:
        yield Streaming(live, gate)


@pytest.fixture
def stateless(small_models: Any, engine_library: Path, tmp_path: Path) -> Iterator[Streaming]:
    rows = {"name": "n", "min": 0, "max": 8, "opt": 1}
    release = make_release(
        tmp_path,
        small_models["several"].path,
        engine_library,
        [tensor("a", "float32", rows, 3), tensor("b", "float32", rows, 3), tensor("k", "int64", 1)],
        [tensor("scaled", "float32", rows, 3), tensor("best", "int64", rows)],
        name="gru",
    )
    gate = Gate(open_engine(release))
    with serving(App(release, gate)) as live:
        yield Streaming(live, gate)
    gate.close()


def body_of(signal: np.ndarray, **parameters: Any) -> bytes:
    told = {"name": "signal", "shape": list(signal.shape), "datatype": "FP32",
            "data": signal.ravel().tolist()}  # fmt: skip
    return json.dumps({"id": "r1", "parameters": parameters, "inputs": [told]}).encode()


def is_listening(live: LiveServer) -> bool:
    try:
        with live.client():
            return True
    except ConnectionRefusedError:
        return False


def read_head(client: Client) -> tuple[int, dict[str, str]]:
    while b"\r\n\r\n" not in client._buffer:
        client._more()
    head, _, client._buffer = client._buffer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), fields


def read_chunk(client: Client) -> bytes:
    while b"\r\n" not in client._buffer:
        client._more()
    size, _, client._buffer = client._buffer.partition(b"\r\n")
    length = int(size, 16)
    while len(client._buffer) < length + 2:
        client._more()
    data, end = client._buffer[:length], client._buffer[length : length + 2]
    client._buffer = client._buffer[length + 2 :]
    assert end == b"\r\n"
    return data


def parse(text: bytes) -> list[Event]:
    events = []
    for block in text.decode().split("\n\n")[:-1]:
        fields = dict(line.partition(": ")[::2] for line in block.split("\n") if line[0] != ":")
        if fields:
            data = json.loads(fields["data"])
            events.append(Event(fields.get("event", "message"), data, fields.get("id")))
    return events


def read_events(client: Client) -> list[Event]:
    """Read a whole chunked stream; the connection can be used again."""
    whole = b""
    while chunk := read_chunk(client):
        whole += chunk
    return parse(whole)


def answers(events: list[Event], name: str = "scores") -> np.ndarray:
    found = []
    for event in events:
        (output,) = (each for each in event.data["outputs"] if each["name"] == name)
        found.append(np.array(output["data"], np.float32).reshape(output["shape"]))
    return np.concatenate(found, axis=1)


def test_a_long_request_is_answered_chunk_by_chunk_as_in_one_go(
    stateful: Streaming, gru: Path
) -> None:
    signal = make_signal(18)
    with stateful.client() as client:
        client.send(request("POST", STREAM, body_of(signal)))
        status, fields = read_head(client)
        assert status == 200
        assert fields["content-type"] == "text/event-stream"
        assert fields["transfer-encoding"] == "chunked"
        assert fields["cache-control"] == "no-store"
        assert fields["x-accel-buffering"] == "no"
        assert "connection" not in fields
        *got, end = read_events(client)
        assert [event.id for event in got] == ["0", "1", "2", "3", "4"]
        assert [event.data["parameters"]["index"] for event in got] == [0, 1, 2, 3, 4]
        assert {event.data["id"] for event in got} == {"r1"}
        assert end == Event("end", {"events": 5})
        assert np.allclose(answers(got), scores_of(gru, signal), atol=1e-6)
        # the connection goes on
        assert client.ask("GET", "/v2/health/live").status == 200
        metrics = client.ask("GET", "/metrics").body.decode()
    assert 'http_route="/v2/models/{model}/infer_stream"' in metrics


def test_a_request_longer_than_one_run_takes_comes_in_binary(
    stateful: Streaming, gru: Path
) -> None:
    signal = make_signal(1000)
    told = {"name": "signal", "shape": [1, 1000, 3], "datatype": "FP32",
            "parameters": {"binary_data_size": signal.nbytes}}  # fmt: skip
    body, fields = infer_body({"inputs": [told]}, signal.tobytes())
    with stateful.client() as client:
        # as one request it is too long
        assert client.ask("POST", INFER, body, fields).status in (400, 413)
    with stateful.client() as client:
        client.send(request("POST", STREAM, body, fields))
        assert read_head(client)[0] == 200
        *got, end = read_events(client)
    assert end.data == {"events": 250}
    assert np.allclose(answers(got), scores_of(gru, signal), atol=1e-5)


def test_a_stream_begins_and_ends_a_sequence_that_other_requests_go_on_with(
    stateful: Streaming, gru: Path
) -> None:
    signal = make_signal(16)
    with stateful.client() as client:
        got = []
        for at, flags in ((0, {"sequence_start": True}), (5, {}), (11, {"sequence_end": True})):
            piece = signal[:, at : {0: 5, 5: 11, 11: 16}[at]]
            client.send(request("POST", STREAM, body_of(piece, sequence_id=9, **flags)))
            assert read_head(client)[0] == 200
            *events, _ = read_events(client)
            got.append(answers(events))
        unknown = client.ask("POST", INFER, body_of(signal[:, :2], sequence_id=9))
    assert np.allclose(np.concatenate(got, axis=1), scores_of(gru, signal), atol=1e-6)
    assert unknown.status == 400


def test_a_sequence_is_busy_while_it_is_streamed(stateful: Streaming) -> None:
    signal = make_signal(8)
    with stateful.client() as client, stateful.client() as other:
        stateful.gate.open.clear()
        client.send(request("POST", STREAM, body_of(signal, sequence_id=1, sequence_start=True)))
        assert stateful.gate.entered.acquire(timeout=20)
        stateful.gate.open.set()
        assert read_head(client)[0] == 200
        read_chunk(client)
        # between two chunks or within one, it is the stream's until its end
        beside = other.ask("POST", INFER, body_of(signal[:, :2], sequence_id=1))
        assert beside.status in (200, 409)
        read_events(client)
        assert other.ask("POST", INFER, body_of(signal[:, :2], sequence_id=1)).status == 200


def test_http_1_0_gets_a_stream_until_the_connection_closes(stateful: Streaming, gru: Path) -> None:
    signal = make_signal(8)
    with stateful.client() as client:
        client.send(request("POST", STREAM, body_of(signal)).replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, fields = read_head(client)
        assert status == 200
        assert fields["connection"] == "close"
        assert "transfer-encoding" not in fields
        try:
            while True:
                client._more()
        except EOFError:
            *got, end = parse(client._buffer)
    assert end.data == {"events": 2}
    assert np.allclose(answers(got), scores_of(gru, signal), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "JSON"),
        (b'{"inputs": []}', "`inputs` has to be a list of the model's inputs"),
        (body_of(np.zeros((1, 0, 3))), "has size 0 in dimension 1"),
        (body_of(np.zeros((2, 4, 3))), "has size 2 in dimension 0"),
        (body_of(np.zeros((1, 4, 2))), "has size 2 in dimension 2"),
        (body_of(np.zeros((1, 4, 3)), sequence_id=5), "there is no sequence of this id"),
        (body_of(np.zeros((1, 4, 3)), binary_data_output=True), "carries no binary tensors"),
    ],
)
def test_what_cannot_be_streamed_gets_an_ordinary_answer(
    stateful: Streaming, body: bytes, message: str
) -> None:
    with stateful.client() as client:
        reply = client.ask("POST", STREAM, body)
        assert reply.status == 400
        assert message in reply.error
        assert client.ask("GET", "/v2/health/live").status == 200
    assert stateful.gate.runs == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_a_stream_is_only_posted_to(stateful: Streaming, method: str) -> None:
    with stateful.client() as client:
        reply = client.ask(method, STREAM)
    assert reply.status == 405
    assert reply.fields["allow"] == "POST"


def test_a_model_that_fails_midway_ends_the_stream_with_an_error_and_keeps_the_state(
    stateful: Streaming, gru: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    signal = make_signal(12)
    stateful.gate.fails_at = 2
    flags = {"sequence_id": 3, "sequence_start": True, "sequence_end": True}
    with stateful.client() as client:
        client.send(request("POST", STREAM, body_of(signal, **flags)))
        assert read_head(client)[0] == 200
        first, error = read_events(client)
        assert error.name == "error"
        assert error.data == {"error": "the model failed", "status": 500, "index": 1}
        said = capfd.readouterr().err
        assert "warning: an event stream ended with status 500; events sent: 1" in said
        # the sequence stands where its last answer left it
        rest = client.ask("POST", INFER, body_of(signal[:, 4:], sequence_id=3))
    (output,) = rest.json()["outputs"]
    whole = scores_of(gru, signal)
    assert np.allclose(answers([first]), whole[:, :4], atol=1e-6)
    assert np.allclose(np.reshape(output["data"], (1, 8, 2)), whole[:, 4:], atol=1e-6)


def test_nothing_more_is_computed_for_a_client_that_has_gone(stateful: Streaming) -> None:
    gate = stateful.gate
    gate.open.clear()
    body = body_of(make_signal(400), sequence_id=1, sequence_start=True)
    with stateful.client() as client:
        client.send(request("POST", STREAM, body))
        assert gate.entered.acquire(timeout=20)
        # unread bytes make the close a reset: the server hears of it at once
        client.socket.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
    with stateful.client() as other:
        # a whole round of the loop later, the loss is known
        assert other.ask("GET", "/v2/health/live").status == 200
        gate.open.set()
        for _ in range(200):
            again = other.ask("POST", INFER, body_of(make_signal(2), sequence_id=1))
            if again.status != 409:
                break
            time.sleep(0.02)
        assert again.status in (200, 400)
    assert gate.runs <= 4


def test_a_client_that_reads_nothing_stops_the_computing(open_model: Any) -> None:
    app, gate = open_model(sequences(chunk=1))
    signal = make_signal(4096)
    told = {"name": "signal", "shape": [1, 4096, 3], "datatype": "FP32",
            "parameters": {"binary_data_size": signal.nbytes}}  # fmt: skip
    # a long id makes long events
    body, fields = infer_body({"id": "x" * 1000, "inputs": [told]}, signal.tobytes())
    with serving(app) as live:
        client = Client(live.port)
        import socket

        client.socket = socket.socket()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.connect(("127.0.0.1", live.port))
        client.socket.settimeout(20)
        with client.socket:
            client.send(request("POST", STREAM, body, fields))
            before = -1
            while gate.runs != before or not gate.runs:
                before = gate.runs
                time.sleep(0.3)
            stalled_at = gate.runs
            assert stalled_at < 4096
            assert read_head(client)[0] == 200
            text = b""
            while gate.runs == stalled_at:
                text += read_chunk(client)
    ids = [event.id for event in parse(text)]
    assert ids == [str(index) for index in range(len(ids))]


def test_other_requests_are_answered_between_the_chunks(stateful: Streaming) -> None:
    told = {"name": "signal", "shape": [1, 8000, 3], "datatype": "FP32",
            "parameters": {"binary_data_size": 96000}}  # fmt: skip
    body, fields = infer_body({"inputs": [told]}, bytes(96000))
    with stateful.client() as client, stateful.client() as other:
        client.send(request("POST", STREAM, body, fields))
        assert read_head(client)[0] == 200
        before = stateful.gate.runs
        assert other.ask("POST", INFER, body_of(make_signal(4))).status == 200
        assert before < 2000
        assert len(read_events(client)) == 2001


def test_a_slow_model_sends_comments_meanwhile(
    stateful: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.streams.BEAT_S", 0.1)
    stateful.gate.open.clear()
    with stateful.client() as client:
        client.send(request("POST", STREAM, body_of(make_signal(8))))
        assert read_head(client)[0] == 200
        assert read_chunk(client) == b":\n\n"
        stateful.gate.open.set()
        assert [event.name for event in read_events(client)] == ["message", "message", "end"]


def test_a_request_that_fails_after_a_comment_is_told_in_the_stream(
    stateful: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.streams.BEAT_S", 0.1)
    stateful.gate.open.clear()
    stateful.gate.fails_at = 1
    with stateful.client() as client:
        client.send(request("POST", STREAM, body_of(make_signal(8))))
        assert read_head(client)[0] == 200
        stateful.gate.open.set()
        (error,) = read_events(client)
    assert (error.name, error.data["index"]) == ("error", 0)


def stop_midway(live: LiveServer, gate: Gate, client: Client, pieces: int) -> list[Event]:
    """Stop the server while it works on a stream's first piece; return all events."""
    gate.open.clear()
    client.send(request("POST", STREAM, body_of(make_signal(4 * pieces))))
    assert gate.entered.acquire(timeout=20)
    live.server.stop()
    while is_listening(live):
        time.sleep(0.05)
    gate.open.set()
    status, fields = read_head(client)
    assert (status, fields["connection"]) == (200, "close")
    events = read_events(client)
    assert client.is_closed()
    return events


def test_a_server_that_stops_lets_its_streams_end(open_model: Any) -> None:
    app, gate = open_model(sequences())
    with serving(app) as live, live.client() as client:
        *got, end = stop_midway(live, gate, client, 40)
    assert (len(got), end) == (40, Event("end", {"events": 40}))


def test_a_server_that_stops_ends_streams_in_order_that_take_too_long(
    open_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.streams.DRAIN_S", 0.0)
    app, gate = open_model(sequences())
    with serving(app) as live, live.client() as client:
        first, error = stop_midway(live, gate, client, 40)
    assert first.data["parameters"]["index"] == 0
    assert error.name == "error"
    assert error.data == {"error": "the server is stopping", "status": 503, "index": 1}


def test_a_stream_waits_for_room_in_a_full_queue(open_model: Any) -> None:
    app, gate = open_model(sequences(), queue=1, workers=1)
    with serving(app) as live, live.client() as client:
        gate.open.clear()
        client.send(request("POST", STREAM, body_of(make_signal(8))))
        assert gate.entered.acquire(timeout=20)
        others = [live.client() for _ in range(3)]
        for other in others:
            other.__enter__()
            other.send(request("POST", INFER, body_of(make_signal(2))))
        # one waits in the queue, and two are turned away at once
        gone = 0
        while gone < 2:
            with live.client() as probe:
                text = probe.ask("GET", "/metrics").body.decode()
            gone = text.count('code="503"') and 2
        gate.open.set()
        assert read_head(client)[0] == 200
        assert [event.name for event in read_events(client)] == ["message", "message", "end"]
        for other in others:
            assert other.read().status in (200, 503)
            other.__exit__()


def test_a_model_without_state_answers_row_by_row(stateless: Streaming) -> None:
    a = np.arange(9, dtype=np.float32).reshape(3, 3)
    b = np.ones((3, 3), np.float32)
    inputs = [
        {"name": "a", "shape": [3, 3], "datatype": "FP32", "data": a.ravel().tolist()},
        {"name": "b", "shape": [3, 3], "datatype": "FP32", "data": b.ravel().tolist()},
        {"name": "k", "shape": [1], "datatype": "INT64", "data": [2]},
    ]
    body = json.dumps({"inputs": inputs, "outputs": [{"name": "scaled"}]}).encode()
    with stateless.client() as client:
        client.send(request("POST", STREAM, body))
        assert read_head(client)[0] == 200
        *got, end = read_events(client)
        rows = [event.data["outputs"] for event in got]
        assert [[each["name"] for each in row] for row in rows] == [["scaled"]] * 3
        assert [row[0]["shape"] for row in rows] == [[1, 3]] * 3
        assert np.array_equal(np.array([row[0]["data"] for row in rows]), (a + b) * 2)
        assert end.data == {"events": 3}
        empty = [{**each, "shape": [0, 3], "data": []} for each in inputs[:2]]
        none = client.ask("POST", STREAM, json.dumps({"inputs": [*empty, inputs[2]]}).encode())
        assert none.status == 400
        assert "1 to 4096 answers" in none.error


def test_a_stream_is_refused_for_the_wrong_host(stateful: Streaming) -> None:
    with stateful.client() as client:
        reply = client.ask("POST", STREAM, body_of(make_signal(4)), {"Host": "evil.example"})
    assert reply.status == 421
    assert stateful.gate.runs == 0


def test_rows_of_a_stream_may_be_joined_with_other_requests(
    small_models: Any, engine_library: Path, tmp_path: Path
) -> None:
    rows = {"name": "n", "min": 1, "max": 32, "opt": 1}
    release = make_release(
        tmp_path,
        small_models["mlp"].path,
        engine_library,
        [tensor("x", "float32", rows, 64)],
        [tensor("logits", "float32", rows, 10)],
        name="gru",
        batching={"rows": 8, "wait_ms": 0},
    )
    x = np.random.default_rng(4).random((20, 64), np.float32)

    def body(part: np.ndarray) -> bytes:
        told = {"name": "x", "shape": list(part.shape), "datatype": "FP32",
                "data": part.ravel().tolist()}  # fmt: skip
        return json.dumps({"inputs": [told]}).encode()

    engine = open_engine(release)
    with serving(App(release, engine)) as live, live.client() as client, live.client() as other:
        client.send(request("POST", STREAM, body(x)))
        reply = other.ask("POST", INFER, body(x[:2]))
        assert read_head(client)[0] == 200
        *got, end = read_events(client)
    engine.close()
    whole = np.array([event.data["outputs"][0]["data"] for event in got])
    assert end.data == {"events": 20}
    assert np.allclose(whole[:2].ravel(), reply.json()["outputs"][0]["data"], atol=1e-5)
    assert whole.shape == (20, 10)
