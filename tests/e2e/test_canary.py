"""No payload leaves a server: everything the process wrote is searched for what it was sent."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.canary import (
    INDEX,
    MODEL,
    NUMBER,
    TEXT,
    TRIGGERS,
    Watched,
    allow_core_files,
    canary_bundle,
    forms,
    search,
    watched,
)
from tests.unit.runtime.live_server import Client, infer_body, pack_strings, request

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("form", forms())
def test_the_search_finds_what_is_planted(tmp_path: Path, form: str) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "log").write_bytes(b"\0before" + forms()[form] + b"after\xff")
    assert f"deep/er/log: {form}" in search(tmp_path)
    (tmp_path / "deep" / "er" / "log").write_bytes(forms()[form][:-1])
    assert f"deep/er/log: {form}" not in search(tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Path:
    return canary_bundle(tmp_path_factory.mktemp("bundle") / "canary.edgepack", engine_library)


def send(port: int, data: bytes, *, wait_s: float = 5.0) -> bytes:
    """Send exact bytes on a connection of their own, and return what comes until it is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        with suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with suppress(OSError):
            while part := connection.recv(65536):
                found += part
    return found


def document(trigger: float = 0.0, *, index: int = 3, name: str | None = None) -> dict[str, Any]:
    inputs = [
        {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]},
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [NUMBER, trigger, 0, 0]},
        {"name": "index", "shape": [1], "datatype": "INT64", "data": [index]},
    ]
    return {"inputs": inputs, **({"id": name} if name else {})}


def post(body: bytes, path: str = MODEL + "/infer", **fields: str) -> bytes:
    return request(
        "POST", path, body, {key.replace("_", "-"): value for key, value in fields.items()}
    )


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def binary(trigger: float = 0.0, *, index: int = 3) -> tuple[bytes, dict[str, str]]:
    parts = [
        pack_strings(TEXT.encode()),
        struct.pack("<4f", NUMBER, trigger, 0, 0),
        struct.pack("<q", index),
    ]
    described = document()
    for one, part in zip(described["inputs"], parts, strict=True):
        del one["data"]
        one["parameters"] = {"binary_data_size": len(part)}
    described["outputs"] = [{"name": "echo", "parameters": {"binary_data": True}}, {"name": "y"}]
    return infer_body(described, *parts)


def plain(trigger: float = 0.0, index: int = 3) -> bytes:
    data = {"text": [TEXT], "x": [[NUMBER, trigger, 0, 0]], "index": [index]}
    return as_json({"data": data})


def good_requests() -> list[bytes]:
    body, fields = binary()
    return [
        post(as_json(document(name=TEXT))),
        request("POST", MODEL + "/infer", body, fields),
        post(plain(), "/predict"),
        post(plain(), "/predict", X_Custom=TEXT, User_Agent=TEXT, Cookie=f"a={TEXT}"),
        post(plain(), f"/predict?token={TEXT}&n={INDEX}"),
        request("GET", f"/v2?{TEXT}", fields={"Accept": TEXT, "Referer": f"http://a/{TEXT}"}),
        request("GET", "/metrics", fields={"Authorization": f"Bearer {TEXT}"}),
        post(plain(), "/predict", X_Request_Id=f"{TEXT} with blanks", traceparent=TEXT),
    ]


def bad_requests() -> list[bytes]:
    body, fields = binary(index=INDEX)
    wrong_type, unknown = document(), document()
    wrong_type["inputs"][1]["data"][2] = TEXT
    unknown["inputs"][0]["name"] = TEXT
    lying = document()
    lying["inputs"][1]["shape"] = [1, INDEX]
    return [
        # the model itself refuses: ONNX Runtime's message has the index
        post(as_json(document(index=INDEX))),
        request("POST", MODEL + "/infer", body, fields),
        post(plain(index=INDEX), "/predict"),
        *(post(as_json(value)) for value in (wrong_type, unknown, lying, {TEXT: 1}, TEXT, [TEXT])),
        post(as_json({"data": {"text": [TEXT], "x": [[TEXT]], "index": [1]}}), "/predict"),
        post(as_json({**document(), "outputs": [{"name": TEXT}]})),
        post(as_json({**document(), "parameters": {"sequence_id": TEXT}})),
        post(as_json(document())[:-9]),
        post(as_json(document())[:-9] + b"\xff\xfe"),
        post(b"[" * 200 + TEXT.encode()),
        post(TEXT.encode() * 10_000),
        post(body[:-3], **fields),
        post(body, Inference_Header_Content_Length=str(INDEX)),
        post(body, Inference_Header_Content_Length=TEXT),
        post(plain(), "/predict", Content_Encoding=TEXT),
        post(plain(), "/predict", Content_Type=f"image/{TEXT}"),
        post(plain(), "/predict", Content_Type="text/csv"),
        post(f"text,x\n{TEXT},{NUMBER}\n".encode(), "/predict", Content_Type="text/csv"),
        post(plain(), "/predict", Transfer_Encoding=TEXT),
        post(plain(), "/predict", Expect=TEXT),
        post(plain(), "/predict", Host=f"{TEXT}.example"),
        post(plain(), "/predict", Origin=f"http://{TEXT}.example"),
        post(plain(), f"/{TEXT}"),
        post(plain(), f"/v2/models/{TEXT}/infer"),
        post(plain(), f"/v2/models/mlp/versions/{TEXT}/infer"),
        post(plain(), f"/%6b{TEXT[1:]}/../{TEXT}"),
        request(TEXT.replace("-", ""), "/predict"),
        request("DELETE", f"/predict/{TEXT}", plain()),
        f"{TEXT}\r\n\r\n".encode(),
        f"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\n{TEXT}\r\n\r\n".encode(),
        f"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\n{TEXT} : x\r\n\r\n".encode(),
        post(TEXT.encode(), "/predict", Transfer_Encoding="chunked", Content_Length="9"),
        request("POST", "/predict", fields={"Transfer-Encoding": "chunked"})
        .replace(b"Content-Length: 0\r\n", b"") + TEXT.encode() + b"\r\n",
        post(plain(), "/predict", Content_Length=TEXT),
        post(plain() + TEXT.encode(), "/predict", Content_Length="5"),
        TEXT.encode() * 5000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + TEXT.encode() * 20,
        b"\x16\x03\x01" + TEXT.encode(),
    ]  # fmt: skip


def treacheries() -> list[bytes]:
    """Requests that make our own code fail with their payload in its hands."""
    found = []
    for name in ("raise", "thread", "unraisable"):
        body, fields = binary(TRIGGERS[name])
        found += [
            post(as_json(document(TRIGGERS[name]))),
            request("POST", MODEL + "/infer", body, fields),
            post(plain(TRIGGERS[name]), "/predict"),
        ]
    return found


def ask_grpc(port: int) -> int:
    """Send canaries over gRPC too; return how many calls were answered or refused."""
    import grpc
    import tritonclient.grpc as triton

    def inputs(trigger: float, index: int, shape: list[int]) -> list[Any]:
        text = triton.InferInput("text", [1], "BYTES")
        text.set_data_from_numpy(np.array([TEXT.encode()], np.object_))
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.array([[NUMBER, trigger, 0, 0]], np.float32))
        x.set_shape(shape)
        where = triton.InferInput("index", [1], "INT64")
        where.set_data_from_numpy(np.array([index]))
        return [text, x, where]

    count = 0
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        good = client.infer("mlp", inputs(0, 3, [1, 4]), request_id=TEXT, headers={"x-own": TEXT})
        assert good.as_numpy("echo")[0] == TEXT.encode()
        for model, arguments in (
            ("mlp", (0, INDEX, [1, 4])), ("mlp", (0, 3, [1, INDEX])), (TEXT, (0, 3, [1, 4])),
            *(("mlp", (TRIGGERS[name], 3, [1, 4])) for name in ("raise", "thread", "unraisable")),
        ):  # fmt: skip
            with suppress(triton.InferenceServerException):
                client.infer(model, inputs(*arguments), headers={"x-own": TEXT})
            count += 1
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for path in ("/inference.GRPCInferenceService/ModelInfer", f"/{TEXT}/{TEXT}"):
            call = channel.unary_unary(path)
            with pytest.raises(grpc.RpcError):
                call(TEXT.encode(), timeout=10, metadata=[("x-own", TEXT)])
            count += 1
    return count


def test_nothing_that_was_sent_is_in_anything_that_was_written(
    bundle: Path, tmp_path: Path
) -> None:
    with watched(bundle, tmp_path) as server:
        for data in good_requests():
            answer = send(server.port, data)
            assert answer.startswith(b"HTTP/1.1 200"), (data, answer)
        for data in bad_requests():
            answer = send(server.port, data)
            assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 500")), (data, answer)
        statuses = [send(server.port, data)[9:12] for data in treacheries()]
        assert statuses == [b"500"] * 3 + [b"200"] * 6
        for _ in range(25):  # a whole block of statistics
            assert b" 200 " in send(server.port, post(plain(), "/predict"))
        calls = ask_grpc(server.port)
        metrics = _metrics_with_drift(server.port)
        (server.folder / "metrics").write_bytes(metrics)
        assert b'tensor="index"' not in metrics
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0, server.read()
    log = server.read()
    # what was meant to be told was told: where it failed, and each request's line
    assert log.count("RuntimeError") >= 6
    assert log.count("ValueError") >= 3
    assert "in a thread" in log
    assert "_fail" in log
    assert log.count('"event":"request"') >= len(good_requests()) + len(treacheries()) + calls
    assert search(server.folder) == []
    # nor has the engine left anything: its library would keep an id of the device
    left = {name: sorted(path.name for path in (server.folder / name).iterdir())
            for name in ("cwd", "home", "cache", "tmp")}  # fmt: skip
    assert left == {"cwd": [], "home": [], "cache": ["edgepack"], "tmp": []}
    _look_into_captures(server, bundle, tmp_path)


def _metrics_with_drift(port: int) -> bytes:
    end = time.monotonic() + 30
    while True:
        with Client(port) as client:
            metrics = client.ask("GET", "/metrics").body
        if b'edgepack_drift_mean{role="input",tensor="x"}' in metrics:
            return metrics
        assert time.monotonic() < end, metrics.decode()
        time.sleep(0.1)


def _look_into_captures(server: Watched, bundle: Path, tmp_path: Path) -> None:
    """The canary is there for whoever has the key, but for what was masked; and then deleted."""
    listed = json.loads(server.captures(bundle, "list", "--json").stdout)["requests"]
    assert len(listed) >= 12
    assert TEXT in {one["request"] for one in listed}
    out = tmp_path / "rows.npz"
    done = server.captures(bundle, "export", "-o", out, "--outputs", "--json")
    assert done.returncode == 0, done.stderr
    with np.load(out) as rows:
        assert set(rows.files) == {"text", "x", "echo", "y"}
        assert set(rows["text"]) == {TEXT}
        assert NUMBER in rows["y"]
    assert out.stat().st_mode & 0o777 == 0o600
    told = server.captures(bundle, "drift", "--json")
    assert told.returncode == 0, told.stderr
    (block,) = json.loads(told.stdout)["drift"]
    assert block["requests"] >= 20
    assert {one["name"] for one in block["tensors"]} == {"x", "y"}
    done = server.captures(bundle, "delete", "--request", TEXT)
    assert done.returncode == 0, done.stderr
    left = json.loads(server.captures(bundle, "list", "--json").stdout)["requests"]
    assert TEXT not in {one["request"] for one in left}
    assert 0 < len(left) < len(listed)
    done = server.captures(bundle, "delete", "--all", "--json")
    assert json.loads(done.stdout)["proved"] is True
    assert server.captures(bundle, "verify").returncode == 0
    assert search(server.folder) == []
    state = {path.name for path in (server.folder / "state").iterdir()}
    assert state == {"lock", "state.json", "deletions.log"}


def test_a_server_that_leaks_is_caught(bundle: Path, tmp_path: Path) -> None:
    with watched(bundle, tmp_path) as server:
        send(server.port, post(as_json(document(TRIGGERS["leak"]))))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert "stderr: text" in search(server.folder)
    assert "stderr: number" in search(server.folder)


def test_a_crash_leaves_a_traceback_without_payload(bundle: Path, tmp_path: Path) -> None:
    with watched(bundle, tmp_path) as server:
        send(server.port, post(as_json(document(TRIGGERS["crash"], index=3))))
        assert server.process.wait(30) == 70, server.read()
    (kept,) = (server.folder / "tmp").glob("edgepack-*.log")
    text = kept.read_text()
    assert "RuntimeError" in text
    assert "KeyError" in text
    assert "_crash" in text
    assert str(kept) in server.read()
    assert search(server.folder) == []


@pytest.mark.parametrize("cause", ["in the request", "from outside"])
def test_an_abort_leaves_no_core_file(bundle: Path, tmp_path: Path, cause: str) -> None:
    pattern = _core_pattern()
    if not _leaves_core_file(tmp_path):
        pytest.skip(f"no core file is written here even where one is allowed: `{pattern}`")
    with watched(bundle, tmp_path) as server:
        send(server.port, post(as_json(document())))
        if cause == "from outside":
            server.process.send_signal(signal.SIGABRT)
        else:
            send(server.port, post(as_json(document(TRIGGERS["abort"]))))
        assert server.process.wait(30) == -signal.SIGABRT
    assert list((server.folder / "cwd").iterdir()) == []
    assert search(server.folder) == []


def _core_pattern() -> str:
    with open("/proc/sys/kernel/core_pattern") as stream:  # noqa: PTH123 - no file of ours
        return stream.read().strip()


def _leaves_core_file(tmp_path: Path) -> bool:
    """Say whether a process that nobody protects leaves one in its working folder here."""
    folder = tmp_path / "control"
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-I", "-c", "import os; os.abort()"],
        cwd=folder, check=False, preexec_fn=allow_core_files,
    )  # fmt: skip
    found = any(folder.iterdir())
    shutil.rmtree(folder)
    return found
