"""A server in a process of its own, as its log, its manager and a tracing client see it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.unit.runtime.live_server import BATCH, Client, OpenRelease, make_release, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.unit.runtime.conftest import SmallModel

ROOT = Path(__file__).resolve().parents[3]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SERVE = """
import json, sys, types
from runtime.app import App
from runtime.engine import open_engine
from runtime.options import ServeOptions
from runtime.server import serve
release = types.SimpleNamespace(**json.loads(sys.argv[1]))
serve(App(release, open_engine(release)), ServeOptions(**json.loads(sys.argv[2])))
"""
ROW = json.dumps({"data": [[0.015625] * 64]}).encode()


@pytest.fixture(scope="module")
def release(
    small_models: dict[str, SmallModel],
    engine_library: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> OpenRelease:
    return make_release(
        tmp_path_factory.mktemp("release"), small_models["mlp"].path, engine_library,
        [tensor("x", "float32", BATCH, 64)], [tensor("logits", "float32", BATCH, 10)],
    )  # fmt: skip


@dataclass
class Running:
    """A serving process."""

    process: subprocess.Popen[str]
    first: str
    rest: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.first)
        assert found, self.first
        return int(found[1])

    def stop(self) -> list[str]:
        """Stop it and return what else it wrote."""
        self.process.send_signal(signal.SIGTERM)
        _, text = self.process.communicate(timeout=60)
        assert self.process.returncode in (0, -signal.SIGTERM)
        return text.splitlines()


@contextmanager
def running(
    release: OpenRelease,
    *prefix: str,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Running]:
    argv = [sys.executable, "-c", SERVE, json.dumps(asdict(release)), json.dumps(options)]
    process = subprocess.Popen(
        [*prefix, *argv], cwd=ROOT, env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        yield Running(process, "" if prefix else process.stderr.readline())
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_the_access_log_tells_figures_and_ids_but_nothing_that_was_said(
    release: OpenRelease,
) -> None:
    with running(release, port=0, log="json", access_log=True) as server:
        assert json.loads(server.first)["event"] == "ready"
        with Client(server.port) as client:
            traced = {
                "X-Request-ID": "mine-1", "traceparent": f"00-{TRACE}-{SPAN}-01",
                "X-Secret": "canary-header", "Content-Type": "application/json",
            }  # fmt: skip
            reply = client.ask("POST", "/predict?q=canary-query", ROW, traced)
            assert reply.status == 200
            assert reply.fields["x-request-id"] == "mine-1"
            assert reply.fields["traceparent"].startswith(f"00-{TRACE}-")
            assert client.ask("GET", "/canary-path").status == 404
            bad = client.ask("POST", "/predict", b'{"data": "canary-body"}')
            assert bad.status == 400
            assert bad.fields["x-request-id"]
        with Client(server.port) as client:
            client.send(b"canary-garbage\r\n\r\n")
            assert client.read().status == 400
        lines = server.stop()
    assert "canary" not in "\n".join(lines)
    documents = [json.loads(line) for line in lines]
    requests = [item for item in documents if item["event"] == "request"]
    assert [(item["route"], item["status"]) for item in requests] == [
        ("predict", 200), ("unknown", 404), ("predict", 400), ("malformed", 400),
    ]  # fmt: skip
    first = requests[0]
    assert first["request_id"] == "mine-1"
    assert first["trace_id"] == TRACE
    assert reply.fields["traceparent"] == f"00-{TRACE}-{first['span_id']}-01"
    assert first["bytes"] == len(reply.body)
    assert first["protocol"] == "HTTP/1.1"
    assert first["ms"] >= first["compute_ms"] > 0
    assert first["queue_ms"] >= 0
    assert "queue_ms" not in requests[1]
    assert "compute_ms" not in requests[2]
    assert documents[-1]["event"] == "drain"


def test_a_grpc_call_is_a_line_like_any_other(release: OpenRelease) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    release.manifest["server"]["grpc"] = True
    with running(release, port=0, log="json", access_log=True) as found:
        server = Running(found.process, json.loads(found.first)["url"])
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        rows = triton.InferInput("x", [1, 64], "FP32")
        rows.set_data_from_numpy(np.zeros((1, 64), np.float32))
        metadata = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "call-1"}
        client.infer("mlp.small-1", [rows], headers=metadata)
        with pytest.raises(triton.InferenceServerException):
            client.infer("canary-model", [rows])
        client.close()
        lines = server.stop()
    assert "canary" not in "\n".join(lines)
    requests = [item for item in map(json.loads, lines) if item["event"] == "request"]
    good, bad = requests
    assert (good["protocol"], good["route"], good["status"]) == ("gRPC", "ModelInfer", 0)
    assert (good["request_id"], good["trace_id"]) == ("call-1", TRACE)
    assert re.fullmatch("[0-9a-f]{16}", good["span_id"])
    assert good["span_id"] != SPAN
    assert "span_id" not in bad
    assert good["ms"] >= good["compute_ms"] > 0
    assert bad["status"] != 0


def test_a_trace_is_answered_without_an_access_log_and_a_false_one_is_not(
    release: OpenRelease,
) -> None:
    with running(release, port=0) as server, Client(server.port) as client:
        good = {"traceparent": f"00-{TRACE}-{SPAN}-00", "tracestate": "a=b"}
        reply = client.ask("POST", "/predict", ROW, good)
        assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00", reply.fields["traceparent"])
        assert "x-request-id" not in reply.fields
        bad = client.ask("POST", "/predict", ROW, {"traceparent": f"00-{TRACE}-{SPAN}-0x"})
        assert bad.status == 200
        assert "traceparent" not in bad.fields


def test_nobody_reading_the_log_stops_no_request(release: OpenRelease) -> None:
    with running(release, port=0, access_log=True) as server, Client(server.port) as client:
        for _ in range(2000):  # more lines than the pipe takes
            assert client.ask("GET", "/v2/health/live").status == 200
        assert client.ask("POST", "/predict", ROW).status == 200


def test_the_manager_hears_of_readiness_life_and_the_end(
    release: OpenRelease, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with running(release, port=0, environment=environment) as server:
            ready = manager.recv(4096).decode().split("\n")
            assert ready[0] == "READY=1"
            assert ready[1] == f"STATUS=serving mlp.small-1 1.2.0 on http://127.0.0.1:{server.port}"
            with Client(server.port) as client:
                assert client.ask("GET", "/v2/health/ready").status == 200
            assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            # A loop that hangs feeds nobody; one that goes on does.
            server.process.send_signal(signal.SIGSTOP)
            os.waitpid(server.process.pid, os.WUNTRACED)
            manager.settimeout(0)
            drain(manager)
            time.sleep(1.2)
            with pytest.raises(BlockingIOError):
                manager.recv(4096)
            server.process.send_signal(signal.SIGCONT)
            manager.settimeout(60)
            assert manager.recv(4096) == b"WATCHDOG=1"
            assert server.stop() == ["stopping: answering what was begun"]
            manager.settimeout(0)
            heard = drain(manager)
        assert any(message.startswith(b"STOPPING=1") for message in heard)


def drain(manager: socket.socket) -> list[bytes]:
    heard = []
    while True:
        try:
            heard.append(manager.recv(4096))
        except BlockingIOError:
            return heard


def test_a_socket_of_systemd_is_served_whatever_the_options_say(release: OpenRelease) -> None:
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("systemd-socket-activate is not installed (package systemd)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(release, program, "-l", f"127.0.0.1:{port}", "--", port=1) as server:
        assert server.process.stderr is not None
        assert "Listening on" in server.process.stderr.readline()
        with Client(port, timeout_s=60) as client:
            # the first client starts the server, which answers it all the same
            assert client.ask("POST", "/predict", ROW).status == 200
        heard = server.stop()
    assert f"ready on http://127.0.0.1:{port}" in heard
