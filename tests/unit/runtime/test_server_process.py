"""A bundle that serves as on a device: its own process, each CPython, the field's clients."""

from __future__ import annotations

import http.client
import json
import platform
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from packager.bundle.archive import Entry, write_archive
from packager.bundle.render import render_server
from tests.models.mlp import make_mlp
from tests.unit.runtime.live_server import BATCH, make_release, serving_model, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
MODEL = "/v2/models/net.v2-b"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    library_version = onnxruntime.__version__
    fields = {
        "format": 1,
        "requires": ["xz"],
        "name": "net.v2-b",
        "version": "1.2.0",
        "sequence": 1,
        "edgepack": "0.1.0",
        "target": {
            "name": "any", "family": "cpu", "arch": platform.machine(), "os": "linux",
            "libc": "glibc 2.28", "python": "3.8",
            "cpu_features_all": [], "cpu_features_any": [], "memory_mib": 64,
            "board": None,
        },
        "engine": {
            "name": "onnxruntime", "version": library_version, "library": "lib/libonnxruntime.so",
            "artifact": "model/model.onnx", "threads": 1, "precision": "fp32", "scheme": "",
        },
        "model": {
            "source": "net.onnx", "source_sha256": "0" * 64, "exporter": "none",
            "signature": {
                "inputs": [tensor("x", "float32", BATCH, 64)],
                "outputs": [tensor("logits", "float32", BATCH, 10)],
            },
            "images": {}, "labels": {},
        },
        "golden": {"samples": 0},
        "server": {
            "max_json_kb": 64, "metrics": True, "openapi": True, "plain": True, "grpc": True,
        },
    }  # fmt: skip
    entries = [
        *(Entry(path=path, source=data) for path, data in render_server(fields).items()),
        *(
            Entry(path=f"{folder}/{file.name}", source=file)
            for folder in ("runtime", "runtime/grpc")
            for file in sorted((ROOT / folder).glob("*.py"))
        ),
        Entry(path="model/model.onnx", source=make_mlp().SerializeToString()),
        Entry(path="lib/libonnxruntime.so", source=engine_library),
    ]
    path = folder / "net.edgepack"
    write_archive(path, fields, entries)
    return path


@contextmanager
def started(argv: list[str | Path], cache: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [*map(str, argv)], env={"XDG_CACHE_HOME": str(cache)}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        match = re.fullmatch(r"ready on http://127\.0\.0\.1:(\d+)\n", line)
        assert match, line + process.stderr.read()
        yield process, int(match[1])
    finally:
        process.kill()
        process.communicate(timeout=30)


def ask(port: int, method: str, path: str, document: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, None if document is None else json.dumps(document))
        reply = connection.getresponse()
        assert reply.status == 200
        return json.loads(reply.read())
    finally:
        connection.close()


def test_a_bundle_file_serves_under_every_cpython(
    bundle: Path, old_python: Path, tmp_path: Path
) -> None:
    row = [0.5] * 64
    item = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": row}
    with started([old_python, "-I", bundle, "serve", "--port", "0"], tmp_path) as (process, port):
        assert ask(port, "GET", "/v2/health/ready") == {"ready": True}
        assert ask(port, "GET", "/openapi.json")["info"]["title"] == "net.v2-b"
        first = ask(port, "POST", "/predict", {"data": [row]})["result"]
        second = ask(port, "POST", MODEL + "/infer", {"inputs": [item]})["outputs"][0]["data"]
        assert first == [second]
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            tensor_x = triton_grpc.InferInput("x", [1, 64], "FP32")
            tensor_x.set_data_from_numpy(np.array([row], np.float32))
            for _ in range(3):
                answer = client.infer("net.v2-b", [tensor_x]).as_numpy("logits")
                np.testing.assert_allclose(answer, first, rtol=1e-6)
            with pytest.raises(InferenceServerException, match="no model `other` here"):
                client.infer("other", [tensor_x])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/predict", b"[" * 60000)
        assert connection.getresponse().status == 400
        connection.close()
        assert ask(port, "POST", "/predict", {"data": [row]})["result"] == first
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not list(tmp_path.rglob("__pycache__"))


def test_an_interrupt_ends_it_cleanly_too(bundle: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-I", bundle, "serve", "--port", "0"]
    with started(argv, tmp_path) as (process, port):
        with socket.create_connection(("127.0.0.1", port)) as idle:
            process.send_signal(signal.SIGINT)
            assert idle.recv(1) == b""
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_port_in_use_ends_it_with_10(bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-I", bundle, "serve", "--port", str(port)],
            env={"XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
    assert done.returncode == 10
    assert done.stderr == (
        f"error: port {port} is in use\n\nhint: choose another with `--port`; 0 takes a free one\n"
    )


def test_running_out_of_descriptors_is_survived(bundle: Path, tmp_path: Path) -> None:
    argv = ["sh", "-c", f"ulimit -n 40; exec {sys.executable} -I {bundle} serve --port 0"]
    with started(argv, tmp_path) as (_, port):
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        for connection in held:
            connection.close()
        assert ask(port, "GET", "/v2/health/live") == {"live": True}


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, small_models: dict[str, Any], engine_library: Path
) -> Iterator[triton.InferenceServerClient]:
    release = make_release(
        tmp_path_factory.mktemp("release"),
        small_models["mlp"].path,
        engine_library,
        [tensor("x", "float32", BATCH, 64)],
        [tensor("logits", "float32", BATCH, 10)],
        name="net.v2-b",
    )
    with serving_model(release) as live:
        connected = triton.InferenceServerClient(f"127.0.0.1:{live.port}")
        yield connected
        connected.close()


def triton_input(rows: np.ndarray, *, binary: bool) -> triton.InferInput:
    given = triton.InferInput("x", list(rows.shape), "FP32")
    given.set_data_from_numpy(rows, binary_data=binary)
    return given


def test_tritonclient_finds_server_and_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net.v2-b")
    assert client.is_model_ready("net.v2-b", "1.2.0")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("net.v2-b")["precision"] == "fp32"
    assert client.get_model_metadata("net.v2-b", "1.2.0")["versions"] == ["1.2.0"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_gets_the_original_answers(
    client: triton.InferenceServerClient,
    small_models: dict[str, Any],
    binary_in: bool,
    binary_out: bool | None,
) -> None:
    rows = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        small_models["mlp"].path, providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {"x": rows})
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    given = [triton_input(rows, binary=binary_in)]
    result = client.infer("net.v2-b", given, outputs=outputs, request_id="seven")
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-6)
    assert result.get_response()["id"] == "seven"


def test_tritonclient_can_ask_ahead(client: triton.InferenceServerClient) -> None:
    rows = np.ones((1, 64), np.float32)
    waiting = [
        client.async_infer("net.v2-b", [triton_input(rows * n, binary=True)]) for n in range(8)
    ]
    assert all(one.get_result().as_numpy("logits").shape == (1, 10) for one in waiting)


def test_tritonclient_is_told_what_is_wrong(client: triton.InferenceServerClient) -> None:
    given = [triton_input(np.ones((1, 64), np.float32), binary=True)]
    with pytest.raises(triton.InferenceServerException, match="Content-Encoding") as caught:
        client.infer("net.v2-b", given, request_compression_algorithm="gzip")
    assert "415" in str(caught.value.status())
    with pytest.raises(triton.InferenceServerException, match="33"):
        client.infer("net.v2-b", [triton_input(np.ones((33, 64), np.float32), binary=False)])
    with pytest.raises(triton.InferenceServerException, match="there is no model `other`"):
        client.infer("other", given)
    assert client.infer("net.v2-b", given).as_numpy("logits").shape == (1, 10)
