"""The server on real sockets: order, limits of time and number, threads, drain, its process."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime import connection as connection_module
from runtime.app import App, Limits
from runtime.errors import InputOutputFault, ModelFault, UsageFault
from runtime.options import ServeOptions
from runtime.server import listen, serve
from runtime.tensor import Tensor
from tests.unit.runtime.live_server import (
    BATCH,
    LiveServer,
    OpenRelease,
    infer_body,
    make_release,
    request,
    serving,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

INFER = "/v2/models/sum/infer"
PREDICT = b'{"data":[[1,2,3]]}'


class SumEngine:
    """Simulates an engine: adds up each row, and can be slow, wrong or out of memory."""

    name, version, provider, precision, threads = "sum", "1", "CPUExecutionProvider", "fp32", 1

    def __init__(self) -> None:
        self.seconds = 0.0
        self.fault: Exception | None = None
        self.gate: threading.Event | None = None
        self.threads_seen: set[str] = set()

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        self.threads_seen.add(threading.current_thread().name)
        if self.gate is not None:
            assert self.gate.wait(20)
        time.sleep(self.seconds)
        if self.fault is not None:
            raise self.fault
        rows = Tensor.to_nested(feeds["x"])
        sums = [sum(row) for row in rows]
        return {"y": Tensor.from_flat(sums, (len(sums),), "float32", allow_non_finite=True)}

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def engine() -> SumEngine:
    return SumEngine()


@pytest.fixture
def release(tmp_path: Path) -> OpenRelease:
    return make_release(
        tmp_path,
        tmp_path / "none.onnx",
        tmp_path / "none.so",
        [tensor("x", "float32", BATCH, 3)],
        [tensor("y", "float32", BATCH)],
        name="sum",
    )


@pytest.fixture
def live(release: OpenRelease, engine: SumEngine) -> Iterator[LiveServer]:
    with serving(App(release, engine)) as server:
        yield server


def predict_of(row: Sequence[float]) -> bytes:
    return request("POST", "/predict", f'{{"data":[{list(row)}]}}'.encode())


def test_a_kept_connection_answers_many_requests(live: LiveServer) -> None:
    with live.client() as client:
        for count in range(20):
            reply = client.ask("POST", "/predict", f'{{"data":[[1,2,{count}]]}}'.encode())
            assert reply.json() == {"result": [3 + count]}


def test_a_pipeline_is_answered_in_order(live: LiveServer, engine: SumEngine) -> None:
    engine.seconds = 0.005
    with live.client() as client:
        client.send(b"".join(predict_of([i, 0, 0]) for i in range(30)))
        assert [client.read().json()["result"] for _ in range(30)] == [[i] for i in range(30)]


def test_a_request_that_comes_byte_by_byte_is_answered(live: LiveServer) -> None:
    with live.client() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in predict_of([1, 2, 3]):
            client.send(bytes([byte]))
        assert client.read().json() == {"result": [6]}


def test_chunks_are_put_together(live: LiveServer) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with live.client() as client:
        client.send(head + b'8\r\n{"data":\r\nA\r\n[[1,2,3]]}\r\n0\r\n\r\n' + predict_of([1, 1, 1]))
        assert client.read().json() == {"result": [6]}
        assert client.read().json() == {"result": [3]}


def test_a_client_that_waits_to_continue_is_told_to(live: LiveServer) -> None:
    with live.client() as client:
        fields = {"Expect": "100-continue", "Content-Length": str(len(PREDICT))}
        client.send(request("POST", "/predict", b"", fields))
        assert client.read().status == 100
        client.send(PREDICT)
        assert client.read().json() == {"result": [6]}


def test_a_client_that_waits_to_continue_is_refused_before_it_sends(live: LiveServer) -> None:
    with live.client() as client:
        fields = {"Expect": "100-continue", "Content-Length": "99999999"}
        client.send(request("POST", "/predict", b"", fields))
        assert client.read().status == 413
        assert client.is_closed()


def test_a_refused_upload_can_be_sent_whole_and_its_answer_read(live: LiveServer) -> None:
    with live.client() as client:
        client.send(request("POST", "/predict", b" " * 3_000_000))
        reply = client.read()
        assert reply.status == 413
        assert "binary" in reply.error
        assert client.is_closed()


def test_connection_close_and_http_1_0_close(live: LiveServer) -> None:
    with live.client() as client:
        reply = client.ask("GET", "/v2", fields={"Connection": "close"})
        assert reply.fields["connection"] == "close"
        assert client.is_closed()
    with live.client() as client:
        client.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert client.read().status == 200
        assert client.is_closed()
    with live.client() as client:
        client.send(b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)
        assert client.read().fields["connection"] == "keep-alive"
        assert client.read().status == 200


def test_a_client_that_has_said_all_still_gets_its_answer(
    live: LiveServer, engine: SumEngine
) -> None:
    engine.seconds = 0.05
    with live.client() as client:
        client.send(predict_of([1, 2, 3]))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read().json() == {"result": [6]}
        assert client.is_closed()


def test_head_has_the_fields_of_get_and_no_body(live: LiveServer) -> None:
    with live.client() as client:
        length = client.ask("GET", "/v2").fields["content-length"]
        assert client.ask("HEAD", "/v2").fields["content-length"] == length
        assert client.ask("GET", "/v2").status == 200


def test_health_is_answered_while_the_model_works(live: LiveServer, engine: SumEngine) -> None:
    engine.gate = threading.Event()
    with live.client() as slow, live.client() as quick:
        slow.send(predict_of([1, 2, 3]))
        for _ in range(5):
            assert quick.ask("GET", "/v2/health/live").status == 200
        text = quick.ask("GET", "/metrics").body.decode()
        assert "http_server_active_requests 1" in text
        assert "edgepack_connections 2" in text
        engine.gate.set()
        assert slow.read().json() == {"result": [6]}


def test_a_quick_model_is_run_in_the_loop_and_a_slow_one_in_threads(
    live: LiveServer, engine: SumEngine
) -> None:
    with live.client() as client:
        for _ in range(20):
            client.ask("POST", "/predict", PREDICT)
        engine.threads_seen.clear()
        client.ask("POST", "/predict", PREDICT)
        assert not any(name.startswith("edgepack-worker") for name in engine.threads_seen)


def test_what_a_client_sends_ahead_is_bounded(live: LiveServer, engine: SumEngine) -> None:
    engine.gate = threading.Event()
    with live.client() as client:
        client.socket.settimeout(0.5)
        client.send(predict_of([1, 2, 3]))
        with pytest.raises(TimeoutError):
            client.send(predict_of([0, 0, 0]) * 300_000)
        engine.gate.set()
        client.socket.settimeout(10)
        assert client.read().json() == {"result": [6]}
        assert client.read().json() == {"result": [0]}


def test_the_models_failure_is_a_500_and_not_the_end(
    live: LiveServer, engine: SumEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    for fault, status in (
        (ModelFault("secret payload"), 500),
        (KeyError("secret payload"), 500),
        (MemoryError(), 503),
    ):
        engine.fault = fault
        with live.client() as client:
            reply = client.ask("POST", "/predict", PREDICT)
            assert reply.status == status
            assert "secret" not in reply.error
            engine.fault = None
            assert client.ask("POST", "/predict", PREDICT).status == 200
    assert "secret" not in capfd.readouterr().err


def test_a_head_that_never_ends_is_timed_out(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", 0.3)
    with live.client() as client:
        client.send(b"GET /v2 HT")
        started = time.monotonic()
        reply = None
        for _ in range(40):
            time.sleep(0.05)
            try:
                client.send(b"A")  # a drip does not stretch the time
                client.socket.setblocking(False)
                if client.socket.recv(12) == b"HTTP/1.1 408":
                    reply = 408
                    break
            except BlockingIOError:
                client.socket.settimeout(5)
            except OSError:
                break
        assert reply == 408
        assert time.monotonic() - started < 2


def test_a_body_that_never_comes_is_timed_out(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "BODY_TIMEOUT_S", 0.2)
    with live.client() as client:
        client.send(request("POST", "/predict", b"", {"Content-Length": "100"}))
        assert client.read().status == 408
        assert client.is_closed()


def test_silent_and_idle_connections_are_closed(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(connection_module, "IDLE_TIMEOUT_S", 0.2)
    with live.client() as silent, live.client() as idle:
        assert idle.ask("GET", "/v2").status == 200
        assert silent.is_closed()
        assert idle.is_closed()


def test_a_client_that_does_not_read_is_cut(
    release: OpenRelease, engine: SumEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "WRITE_TIMEOUT_S", 0.2)
    with serving(App(release, engine)) as live, live.client() as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.settimeout(1)
        with pytest.raises((TimeoutError, ConnectionError)):
            client.send(request("GET", "/metrics") * 1_000_000)
        time.sleep(1.2)
        with live.client() as other:
            assert "edgepack_connections 1" in other.ask("GET", "/metrics").body.decode()


def test_too_many_connections_are_told_so(release: OpenRelease, engine: SumEngine) -> None:
    app = App(release, engine, limits=Limits(1024, 1024, connections=3))
    with serving(app) as live:
        held = [live.client().__enter__() for _ in range(3)]
        assert held[-1].ask("GET", "/v2").status == 200
        with live.client() as surplus:
            assert surplus.read().status == 503
            assert surplus.is_closed()
        for client in held:
            client.socket.close()
        time.sleep(0.1)
        with live.client() as client:
            assert client.ask("GET", "/v2").status == 200


def test_stopping_answers_what_was_begun(release: OpenRelease, engine: SumEngine) -> None:
    engine.gate = threading.Event()
    with serving(App(release, engine)) as live, live.client() as busy, live.client() as idle:
        assert idle.ask("GET", "/v2").status == 200
        busy.send(predict_of([1, 2, 3]))
        time.sleep(0.1)
        live.server.stop()
        assert idle.is_closed()
        engine.gate.set()
        reply = busy.read()
        assert reply.json() == {"result": [6]}
        assert reply.fields["connection"] == "close"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", live.port))


def test_stopping_answers_who_has_just_connected(release: OpenRelease, engine: SumEngine) -> None:
    with serving(App(release, engine)) as live, live.client() as fresh, live.client() as idle:
        assert idle.ask("GET", "/v2").status == 200  # by then both are accepted
        live.server.stop()
        assert idle.is_closed()
        reply = fresh.ask("GET", "/v2")
        assert reply.status == 200
        assert reply.fields["connection"] == "close"


def test_a_page_of_this_very_server_may_ask(live: LiveServer) -> None:
    with live.client() as client:
        host = f"localhost:{live.port}"
        fields = {"Host": host, "Origin": f"http://{host}"}
        assert client.ask("POST", "/predict", PREDICT, fields).status == 200


def test_a_port_in_use_is_explained() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputOutputFault, match=f"^port {port} is in use$") as caught:
            listen("127.0.0.1", port)
    assert caught.value.exit_code == 10
    assert caught.value.hint == "choose another with `--port`; 0 takes a free one"


def test_an_address_of_another_machine_is_explained() -> None:
    with pytest.raises(InputOutputFault, match=r"no address `192\.0\.2\.1`") as caught:
        listen("192.0.2.1", 0)
    assert caught.value.exit_code == 10


def test_a_port_that_cannot_be_is_a_usage_fault() -> None:
    with pytest.raises(UsageFault, match="`70000` is no port"):
        listen("127.0.0.1", 70000)


def test_readiness_is_announced_on_standard_error(
    release: OpenRelease, engine: SumEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    app = App(release, engine)
    seen: list[str] = []
    thread = threading.Thread(
        target=serve, args=(app, ServeOptions(port=0)), kwargs={"ready": seen.append}
    )
    # serve() has no handle to stop it but signals, which belong to the main thread
    thread.daemon = True
    thread.start()
    for _ in range(100):
        if seen:
            break
        time.sleep(0.05)
    assert seen[0].startswith("http://127.0.0.1:")


def test_binary_answers_keep_what_json_cannot_say(live: LiveServer) -> None:
    row = b"\0\0\x80\x7f" + b"\0\0\x80\x3f" * 2  # an infinity and two ones
    item = {
        "name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12},
    }  # fmt: skip
    with live.client() as client:
        body, fields = infer_body({"inputs": [item]}, row)
        reply = client.ask("POST", INFER, body, fields)
        assert reply.json()["outputs"][0]["data"] == [None]
        assert reply.fields["x-non-finite"] == "1"
        wanted: dict[str, Any] = {"inputs": [item], "parameters": {"binary_data_output": True}}
        body, fields = infer_body(wanted, row)
        reply = client.ask("POST", INFER, body, fields)
        size = int(reply.fields["inference-header-content-length"])
        assert reply.body[size:] == row[:4]
        assert "x-non-finite" not in reply.fields
