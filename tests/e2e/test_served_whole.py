"""A bundle built from a recipe with everything on: TLS, client certificates, keys, gRPC, privacy.

It is served as on a device: by an interpreter without packages, from an empty home folder.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.conftest import OLD_PYTHONS
from tests.unit.runtime.closed.authority import Authority, Pair
from tests.unit.runtime.live_server import tensor
from tests.unit.runtime.small_bundle import serving_process, write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]

RECIPE = """
model = "tiny.onnx"
name = "doorbell"
version = "%s"
targets = ["cpu-x86_64"]

[input.photo.image]
size = [32, 32]
resize = 40
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[output.scores]
activation = "softmax"
top_k = 2
labels = "classes.txt"

[compress]
precision = "fp32"

[privacy]
capture = 1.0
drift = true
"""
LABELS = ("cat", "dog", "bird", "fish")
WAIT_S = 60.0


def _write_project(folder: Path, version: str) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["photo", "kernel"], ["conv"], strides=[2, 2]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        ],
        "tiny",
        [value("photo", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [value("scores", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "kernel"),
            numpy_helper.from_array(rng.normal(size=(8, 4)).astype(np.float32), "weight"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "tiny.onnx")
    (folder / "classes.txt").write_text("".join(f"{label}\n" for label in LABELS))
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE % version)
    return recipe


@pytest.fixture(scope="module")
def releases(
    build: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Build two releases of one recipe."""
    return [
        Path(build("-r", _write_project(tmp_path_factory.mktemp("project"), version))["path"])
        for version in ("1.0.0", "2.0.0")
    ]


@pytest.fixture(scope="module")
def photo() -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@dataclass(kw_only=True)
class Device:
    """A server with everything on, and what its clients hold.

    Attributes:
        folder: Home, certificates, keys, kept requests and the log.
        link: What the server was started with; points at the release.
        keys: Secrets by name.
    """

    folder: Path
    link: Path
    python: str
    authority: Authority
    server: Pair
    client: Pair
    keys: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)
    port: int = field(init=False)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines written so far, each a JSON object."""
        lines = (self.folder / "stderr").read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def command(self, *words: str | Path) -> str:
        """Run another command of the bundle and return what it printed."""
        done = subprocess.run(
            [self.python, "-I", "-S", self.link, *map(str, words)],
            env=self.environment, check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.folder / "home"), "PATH": "/usr/bin:/bin"}

    def new_key(self, name: str, scopes: str) -> None:
        file = self.folder / "keys.json"
        told = self.command("new-key", name, "--file", file, "--scopes", scopes)
        self.keys[name] = told.split()[0]

    def context(self, client: Pair | None) -> ssl.SSLContext:
        return self.authority.context(client)

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=30, context=self.context(self.client)
        )

    def ask(
        self, path: str, body: bytes | None = None, *, key: str | None = None, kind: str = ""
    ) -> tuple[int, bytes]:
        """Ask over a connection of its own, with the key of this name or with these words."""
        connection = self.connect()
        fields = {"Content-Type": kind} if kind else {}
        if key is not None:
            fields["Authorization"] = f"Bearer {self.keys.get(key, key)}"
        try:
            connection.request("GET" if body is None else "POST", path, body, fields)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def grpc(self) -> Any:
        """Return a client of `tritonclient.grpc` with certificates."""
        import tritonclient.grpc as triton

        return triton.InferenceServerClient(
            f"127.0.0.1:{self.port}", ssl=True, root_certificates=str(self.authority.cert),
            private_key=str(self.client.key), certificate_chain=str(self.client.cert),
        )  # fmt: skip

    def metadata(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys.get(key, key)}"}

    def version(self) -> str:
        status, body = self.ask("/v2/models/doorbell", key="line")
        assert status == 200, body
        found: str = json.loads(body)["versions"][0]
        return found

    def point_at(self, bundle: Path) -> None:
        following = self.link.with_suffix(".next")
        following.symlink_to(bundle)
        following.replace(self.link)

    def wait_until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < end, (self.folder / "stderr").read_text()
            time.sleep(0.05)


@contextmanager
def serving(bundle: Path, python: Path | str, folder: Path) -> Iterator[Device]:
    """Serve a bundle with every option on."""
    authority = Authority(folder)
    device = Device(
        folder=folder, link=folder / "current.edgepack", python=str(python), authority=authority,
        server=authority.issue("server"), client=authority.issue("client", client=True),
    )  # fmt: skip
    (folder / "home").mkdir()
    device.link.symlink_to(bundle)
    for name, scopes in (("line", "infer"), ("watch", "metrics")):
        device.new_key(name, scopes)
    capture_key = folder / "capture.key"
    capture_key.touch(mode=0o600)
    capture_key.write_text("0f" * 32)
    with (folder / "stderr").open("wb") as stderr:
        device.process = subprocess.Popen(
            [device.python, "-I", "-S", device.link, "serve", "--port", "0",
             "--tls-cert", device.server.cert, "--tls-key", device.server.key,
             "--tls-client-ca", authority.cert, "--keys", folder / "keys.json",
             "--log", "json", "--access-log",
             "--capture-dir", folder / "kept", "--capture-key", capture_key],
            env=device.environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=stderr,
            stderr=stderr, start_new_session=True,
        )  # fmt: skip
    try:

        def is_ready() -> bool:
            assert device.process.poll() is None, (folder / "stderr").read_text()
            found = re.search(r"https://127\.0\.0\.1:(\d+)", (folder / "stderr").read_text())
            if found is not None:
                device.port = int(found[1])
            return found is not None

        device.wait_until(is_ready)
        yield device
    finally:
        with suppress(ProcessLookupError):
            os.killpg(device.process.pid, signal.SIGKILL)
        device.process.wait(30)


@pytest.fixture
def device(releases: list[Path], tmp_path: Path) -> Iterator[Device]:
    with serving(releases[0], sys.executable, tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    "old_python",
    [
        version
        if version in {OLD_PYTHONS[0], OLD_PYTHONS[-1]}
        else pytest.param(version, marks=pytest.mark.slow)
        for version in OLD_PYTHONS
    ],
    indirect=True,
)
def test_everything_at_once_works_under_every_cpython(
    releases: list[Path], old_python: Path, tmp_path: Path, photo: bytes
) -> None:
    import tritonclient.grpc as triton
    from PIL import Image
    from tritonclient.utils import InferenceServerException

    with serving(releases[0], old_python, tmp_path) as device:
        assert device.ask("/v2/health/ready") == (200, b'{"ready":true}')
        # the photo as a file, as a tensor over REST, and as a tensor over gRPC
        status, body = device.ask("/predict", photo, key="line", kind="image/png")
        assert status == 200, body
        result = json.loads(body)["result"]
        (labels,) = result["scores_labels"]
        assert len(set(labels) & set(LABELS)) == 2
        pixels = np.asarray(Image.open(io.BytesIO(photo)))[None]
        item = {"name": "photo", "datatype": "UINT8", "shape": list(pixels.shape)}
        document = {"inputs": [{**item, "data": pixels.ravel().tolist()}]}
        infer = "/v2/models/doorbell/infer"
        status, body = device.ask(infer, json.dumps(document).encode(), key="line")
        assert status == 200, body
        assert json.loads(body)["outputs"][0]["data"] == result["scores"][0]
        given = triton.InferInput("photo", list(pixels.shape), "UINT8")
        given.set_data_from_numpy(pixels)
        with device.grpc() as client:
            assert client.is_server_ready()  # needs no key
            answer = client.infer("doorbell", [given], headers=device.metadata("line"))
            np.testing.assert_allclose(answer.as_numpy("scores"), result["scores"], rtol=1e-6)
            for key, code in (("epk_wrong", "UNAUTHENTICATED"), ("watch", "PERMISSION_DENIED")):
                with pytest.raises(InferenceServerException) as caught:
                    client.infer("doorbell", [given], headers=device.metadata(key))
                assert caught.value.status() == f"StatusCode.{code}"
        for path, key, status in (
            ("/predict", None, 401), ("/predict", "epk_wrong", 401), ("/predict", "watch", 403),
            ("/metrics", "line", 403), ("/metrics", None, 401), ("/openapi.json", None, 401),
        ):  # fmt: skip
            body = photo if path == "/predict" else None
            assert device.ask(path, body, key=key, kind="image/png")[0] == status, (path, key)
        assert b"<!doctype html>" in device.ask("/")[1][:200].lower()
        status, body = device.ask("/openapi.json", key="line")
        assert (status, json.loads(body)["info"]["version"]) == (200, "1.0.0")
        status, body = device.ask("/metrics", key="watch")
        assert status == 200
        for metric in (b"nv_inference_count", b"edgepack_captured_total", b"edgepack_drift_mean",
                       b'edgepack_rejected_total{reason="key"}', b"grpc_server_handled_total",
                       b"edgepack_tls_certificate_not_after_seconds"):  # fmt: skip
            assert metric in body, metric
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _ask_without_certificate(device)
        device.process.send_signal(signal.SIGTERM)
        assert device.process.wait(30) == 0
        assert {line.get("key") for line in device.log if line.get("route")} >= {"line", "watch"}
        kept = json.loads(
            device.command(
                "captures", "list", "--dir", tmp_path / "kept",
                "--capture-key", tmp_path / "capture.key", "--json",
            )
        )  # fmt: skip
        assert len(kept["requests"]) == 3
        assert kept["faults"] == []
    home = {path.relative_to(tmp_path / "home").parts[:2] for path in (tmp_path / "home").iterdir()}
    assert home == {(".cache",)}
    assert not list(tmp_path.rglob("__pycache__"))


def _ask_without_certificate(device: Device) -> None:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", device.port, timeout=30, context=device.context(None)
    )
    try:
        connection.request("GET", "/v2/health/ready")
        connection.getresponse()
    finally:
        connection.close()


def test_another_release_takes_over_from_under_tls_clients_and_no_request_is_lost(
    device: Device, releases: list[Path], photo: bytes
) -> None:
    answers: list[Any] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                answers.append(device.ask("/predict", photo, key="line", kind="image/png"))
            except OSError as fault:
                answers.append((0, repr(fault)))

    def load_by_one_connection() -> None:
        connection = device.connect()
        fields = {"Authorization": f"Bearer {device.keys['line']}", "Content-Type": "image/png"}
        while not stop.is_set():
            try:
                connection.request("POST", "/predict", photo, fields)
                reply = connection.getresponse()
                answers.append((reply.status, reply.read()))
            except OSError as fault:
                answers.append((0, repr(fault)))
        connection.close()

    assert device.version() == "1.0.0"
    threads = [threading.Thread(target=load) for _ in range(2)]
    threads.append(threading.Thread(target=load_by_one_connection))
    for thread in threads:
        thread.start()
    device.point_at(releases[1])
    device.process.send_signal(signal.SIGHUP)
    try:
        assert device.process.wait(WAIT_S) == 0
        before = len(answers)
        device.wait_until(lambda: len(answers) > before + 20)
        assert device.version() == "2.0.0"
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert {status for status, _ in answers} == {200}
    assert len({body for _, body in answers}) == 1


def test_certificates_and_keys_are_renewed_while_it_serves(device: Device, photo: bytes) -> None:
    def serial() -> str:
        connection = device.connect()
        connection.connect()
        shown = connection.sock.getpeercert()
        connection.close()
        return str(shown["serialNumber"])

    held = device.connect()
    held.request("GET", "/v2/health/ready")
    assert held.getresponse().read()
    before = serial()
    device.authority.issue("server", replace=device.server)
    device.new_key("line-2", "infer")
    device.command("new-key", "--revoke", "line", "--file", device.folder / "keys.json")
    device.process.send_signal(signal.SIGHUP)
    device.wait_until(lambda: serial() != before)
    device.wait_until(
        lambda: device.ask("/predict", photo, key="line-2", kind="image/png")[0] == 200
    )
    device.wait_until(lambda: device.ask("/predict", photo, key="line", kind="image/png")[0] == 401)
    # who was connected stays so
    held.request("GET", "/v2/health/ready")
    assert held.getresponse().status == 200
    held.close()
    device.process.send_signal(signal.SIGTERM)
    assert device.process.wait(30) == 0


def test_the_cache_may_be_deleted_at_any_time(device: Device, photo: bytes) -> None:
    status, first = device.ask("/predict", photo, key="line", kind="image/png")
    assert status == 200
    (release,) = (device.folder / "home/.cache/edgepack/releases").glob("[0-9a-f]*[0-9a-f]")
    shutil.rmtree(device.folder / "home" / ".cache")
    # what is in memory goes on at once
    assert device.ask("/predict", photo, key="line", kind="image/png") == (200, first)
    device.wait_until(lambda: any(line["event"] == "release_restored" for line in device.log))
    assert release.is_dir()
    # and so does what was not needed before
    assert device.ask("/openapi.json", key="line")[0] == 200
    assert device.ask("/")[0] == 200
    assert device.ask("/metrics", key="watch")[0] == 200
    with device.grpc() as client:
        assert client.is_server_live()
    device.process.send_signal(signal.SIGTERM)
    assert device.process.wait(30) == 0


def test_a_cache_that_cannot_be_restored_is_told_of_and_the_server_goes_on(
    releases: list[Path], tmp_path: Path
) -> None:
    bundle, cache, key = tmp_path / "moved.edgepack", tmp_path / "cache", tmp_path / "capture.key"
    shutil.copy(releases[0], bundle)
    key.touch(mode=0o600)
    key.write_text("0f" * 32)
    kept = str(tmp_path / "kept")
    options = ("--capture-dir", kept, "--capture-key", str(key), "--log", "json")
    with serving_process(bundle, cache, *options) as (process, port):
        bundle.unlink()
        shutil.rmtree(cache)
        assert process.stderr is not None
        while json.loads(line := process.stderr.readline())["event"] != "release_lost":
            pass
        assert "moved.edgepack" in json.loads(line)["reason"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        connection.close()


SLOW_ROWS = 1024


def _slow_model() -> bytes:
    """Return a model that multiplies matrices for some tenths of a second."""
    from onnx import TensorProto, helper, numpy_helper

    shape = numpy_helper.from_array(np.array([SLOW_ROWS, SLOW_ROWS], np.int64), "shape")
    nodes = [helper.make_node("Expand", ["x", "shape"], ["m0"])]
    nodes += [
        helper.make_node("MatMul", [f"m{index}", "m0"], [f"m{index + 1}"]) for index in range(10)
    ]
    nodes.append(helper.make_node("ReduceMax", ["m10"], ["y"], axes=[0], keepdims=1))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "slow",
        [value("x", TensorProto.FLOAT, [1, SLOW_ROWS])],
        [value("y", TensorProto.FLOAT, [1, SLOW_ROWS])],
        [shape],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Path:
    fields = {
        "model": {
            "source": "slow.onnx", "source_sha256": "0" * 64, "exporter": "none",
            "signature": {
                "inputs": [tensor("x", "float32", 1, SLOW_ROWS)],
                "outputs": [tensor("y", "float32", 1, SLOW_ROWS)],
            },
            "images": {}, "labels": {},
        }
    }  # fmt: skip
    return write_bundle(
        tmp_path_factory.mktemp("slow") / "slow.edgepack", engine_library,
        model=_slow_model(), fields=fields,
    )  # fmt: skip


def test_health_is_answered_before_the_model_that_eight_connections_wait_for(
    slow: Path, tmp_path: Path
) -> None:
    finished: list[int] = []
    body = json.dumps({"data": [[0.0] * SLOW_ROWS]})

    def infer(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("POST", "/predict", body)
        finished.append(connection.getresponse().status)
        connection.close()

    with serving_process(slow, tmp_path, "--workers", "1", "--threads", "1") as (_, port):
        threads = [threading.Thread(target=infer, args=(port,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        health = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        while not finished:  # from here on seven wait, one behind the other
            time.sleep(0.01)
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/mlp"):
            health.request("GET", path)
            reply = health.getresponse()
            assert reply.status == 200
            reply.read()
        while_waiting = 8 - len(finished)
        health.close()
        for thread in threads:
            thread.join(WAIT_S)
    assert finished == [200] * 8
    assert while_waiting > 0


def test_sigterm_answers_what_was_begun(slow: Path, tmp_path: Path) -> None:
    with serving_process(slow, tmp_path, "--threads", "1") as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("POST", "/predict", json.dumps({"data": [[0.0] * SLOW_ROWS]}))
        metrics = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        end = time.monotonic() + WAIT_S
        while True:
            metrics.request("GET", "/metrics")
            if b"\nhttp_server_active_requests 1\n" in metrics.getresponse().read():
                break
            assert time.monotonic() < end
        process.send_signal(signal.SIGTERM)
        reply = connection.getresponse()
        assert reply.status == 200
        assert len(json.loads(reply.read())["result"][0]) == SLOW_ROWS
        connection.close()
        metrics.close()
        assert process.wait(30) == 0
