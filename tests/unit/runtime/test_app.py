"""Routes: what is admitted from the head alone, and what the model tells of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from packager.bundle.render import render_server
from runtime.access import Access
from runtime.app import UNBOUNDED_BYTES, App, default_limits, default_routes, load_app
from runtime.errors import BadRequest, InputOutputFault, ModelFault
from runtime.http1 import parse_head
from runtime.signature import Signature
from runtime.tensor import Tensor
from tests.unit.runtime.live_server import BATCH, OpenRelease, make_release, tensor

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.framing import Admission

ANY = "0.0.0.0"  # noqa: S104 - compared with, not bound to
MODEL = "/v2/models/net.v2-b"


class Doubler:
    """Simulates an engine that doubles."""

    name, version, provider, precision = "onnxruntime", "9.9", "CPUExecutionProvider", "int8-static"

    def run(self, feeds: dict[str, Tensor], outputs: Any = None) -> dict[str, Tensor]:
        doubled = [value * 2 for value in feeds["x"].to_flat()]
        return {"y": Tensor.from_flat(doubled, feeds["x"].shape, "float32")}


def make(folder: Path, **server: Any) -> OpenRelease:
    return make_release(
        folder,
        folder / "m.onnx",
        folder / "lib.so",
        [tensor("x", "float32", BATCH, 2)],
        [tensor("y", "float32", BATCH, 2)],
        name="net.v2-b",
        **server,
    )


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(make(tmp_path), Doubler())


def admit(app: App, method: str, path: str, *fields: str) -> Admission:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields]
    return app.admit(parse_head("\r\n".join(lines).encode()))


def get(app: App, path: str) -> Any:
    admission = admit(app, "GET", path)
    assert admission.refusal is None
    return json.loads(admission.act(b"").body)


def refused(admission: Admission) -> tuple[int, str]:
    assert admission.refusal is not None
    return admission.refusal.status, json.loads(admission.refusal.body)["error"]


def test_the_metadata_tell_what_really_runs(app: App) -> None:
    assert get(app, MODEL) == {
        "name": "net.v2-b",
        "versions": ["1.2.0"],
        "platform": "onnxruntime",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        "engine": "onnxruntime",
        "engine_version": "9.9",
        "provider": "CPUExecutionProvider",
        "precision": "int8-static",
    }
    assert get(app, MODEL + "/versions/1.2.0") == get(app, MODEL)
    assert get(app, "/v2") == {
        "name": "edgepack", "version": "0.1.0", "extensions": ["binary_tensor_data"],
    }  # fmt: skip


def test_readiness_follows_the_server(app: App) -> None:
    assert get(app, "/v2/health/live") == {"live": True}
    for path in ("/v2/health/ready", MODEL + "/ready", MODEL + "/versions/1.2.0/ready"):
        assert admit(app, "GET", path).act(b"").status == 503
    app.ready = True
    assert get(app, "/v2/health/ready") == {"ready": True}


@pytest.mark.parametrize(
    "path", [MODEL + "/infer", "/v2/models/net%2Ev2-b/infer", MODEL + "/infer?a=b"]
)
def test_infer_is_found_under_every_spelling_of_its_path(app: App, path: str) -> None:
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    answer = admit(app, "POST", path).act(json.dumps({"inputs": [item]}).encode())
    assert json.loads(answer.body)["outputs"][0]["data"] == [2, 4]


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/", 404, "nothing at `/`"),
        ("GET", "/v2/models/other", 404, "this server has `net.v2-b`"),
        ("GET", MODEL + "/versions/2", 404, "this server has `1.2.0`"),
        ("GET", MODEL + "/versions/2/ready", 404, "this server has `1.2.0`"),
        ("GET", MODEL + "/infer", 405, "only POST"),
        ("PUT", "/v2", 405, "only GET, HEAD"),
    ],
)
def test_a_path_or_method_that_is_not_served_is_told_so(
    app: App, method: str, path: str, status: int, said: str
) -> None:
    found, message = refused(admit(app, method, path))
    assert found == status
    assert said in message


def test_a_wrong_method_names_the_right_ones(app: App) -> None:
    refusal = admit(app, "GET", MODEL + "/infer").refusal
    assert refusal is not None
    assert b"Allow: POST\r\n" in refusal.fields


def test_sizes_are_bound_by_the_signature_before_a_byte_is_read(app: App) -> None:
    largest = 32 * 2 * 4
    length = "Inference-Header-Content-Length: 100"
    fitting = admit(app, "POST", MODEL + "/infer", f"Content-Length: {100 + largest}", length)
    assert fitting.refusal is None
    assert fitting.max_body_bytes == 100 + largest
    too_large = admit(app, "POST", MODEL + "/infer", f"Content-Length: {101 + largest}", length)
    assert refused(too_large)[0] == 413
    status, message = refused(admit(app, "POST", MODEL + "/infer", "Content-Length: 65537"))
    assert status == 413
    assert "binary tensor extension" in message
    assert admit(app, "POST", "/predict", "Content-Length: 65536").refusal is None
    chunked = admit(app, "POST", "/predict", "Transfer-Encoding: chunked")
    assert chunked.max_body_bytes == 65536
    assert chunked.advice in message  # which names the binary way


def test_only_what_was_asked_for_is_served(tmp_path: Path) -> None:
    app = App(make(tmp_path, plain=False, metrics=False, openapi=False), Doubler())
    for method, path in (("POST", "/predict"), ("GET", "/metrics"), ("GET", "/openapi.json")):
        assert refused(admit(app, method, path))[0] == 404


def test_a_model_without_a_largest_size_has_a_limit_all_the_same() -> None:
    signature = Signature({"inputs": [tensor("s", "string", BATCH)], "outputs": []})
    limits = default_limits({"server": {"max_json_kb": 8}}, signature)
    assert (limits.json_bytes, limits.binary_bytes) == (8192, UNBOUNDED_BYTES)


@pytest.mark.parametrize("plain", [True, False])
def test_the_rendered_app_serves_what_the_manifest_asks_for(tmp_path: Path, plain: bool) -> None:
    release = make(tmp_path, plain=plain)
    for path, data in render_server(release.manifest).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    app = load_app(release, Doubler())
    signature = Signature(release.manifest["model"]["signature"])
    assert app.limits == default_limits(release.manifest, signature)
    assert set(app._paths) == {path for path, _ in default_routes(release.manifest)}
    assert get(app, "/openapi.json")["info"]["title"] == "net.v2-b"


def test_a_release_without_a_server_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputOutputFault, match=r"cannot read `.*app\.py`"):
        load_app(make(tmp_path), Doubler())
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "app.py").write_text("x = 1\n")
    with pytest.raises(ModelFault, match="has no `build`"):
        load_app(make(tmp_path), Doubler())


def head_of(host: str, *fields: str) -> Any:
    return parse_head("\r\n".join(["GET / HTTP/1.1", f"Host: {host}", *fields]).encode())


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "localhost"), ("127.0.0.1", "LOCALHOST:99"), ("127.0.0.1", "[::1]:8000"),
        ("192.168.1.5", "192.168.1.5:8000"), ("::1", "[::1]"), ("board.lan", "board.lan:80"),
        (ANY, "10.9.8.7:8000"), ("::", "[fe80::1]:8000"),
    ],
)  # fmt: skip
def test_names_of_this_machine_are_answered(address: str, host: str) -> None:
    Access(address).check(head_of(host))


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "192.168.1.5"), ("127.0.0.1", "evil.example"), (ANY, "evil.example"),
        (ANY, "1.2.3.4.evil.example"), ("127.0.0.1", "localhost:"), ("127.0.0.1", "[::1"),
        ("192.168.1.5", "192.168.1.6"), (ANY, "999.1.1.1"),
    ],
)  # fmt: skip
def test_other_names_are_not(address: str, host: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Access(address).check(head_of(host))
    assert caught.value.status == 421
