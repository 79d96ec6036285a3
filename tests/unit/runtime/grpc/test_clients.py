"""Real clients against a real server: tritonclient, grpcio, curl, and a drain under load."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from runtime.app import App
from runtime.dtypes import BY_NAME, BY_PROTOCOL
from runtime.engine import open_engine
from tests.unit.runtime.live_server import (
    BATCH,
    make_release,
    serving,
    serving_model,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.runtime.conftest import SmallModel
    from tests.unit.runtime.live_server import LiveServer

N = {"name": "n", "min": 0, "max": 512, "opt": 1}
KINDS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "double",
         "float16", "string")  # fmt: skip


@pytest.fixture(scope="module")
def live(
    small_models: dict[str, SmallModel], library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    release = make_release(
        tmp_path_factory.mktemp("grpc"), small_models["mlp"].path, library,
        [tensor("x", "float32", BATCH, 64)], [tensor("logits", "float32", BATCH, 10)], grpc=True,
    )  # fmt: skip
    with serving_model(release) as server:
        yield server


@pytest.fixture(scope="module")
def library() -> Path:
    from pathlib import Path

    folder = Path(onnxruntime.__file__).parent / "capi"
    return max(folder.glob("libonnxruntime.so*"))


@pytest.fixture
def client(live: LiveServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{live.port}") as connected:
        yield connected


def given(values: np.ndarray, name: str = "x", datatype: str | None = None) -> triton.InferInput:
    item = triton.InferInput(name, values.shape, datatype or np_to_triton_dtype(values.dtype))
    item.set_data_from_numpy(values)
    return item


def test_tritonclient_asks_everything(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp.small-1", "1.2.0")
    assert client.get_server_metadata().name == "edgepack"
    metadata = client.get_model_metadata("mlp.small-1", as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "64"]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]}]


def test_tritonclient_gets_what_onnx_runtime_says(client, small_models):
    session = onnxruntime.InferenceSession(small_models["mlp"].path)
    for feeds in small_models["mlp"].feeds:
        (wanted,) = session.run(None, feeds)
        answer = client.infer("mlp.small-1", [given(feeds["x"])], request_id="seven")
        np.testing.assert_allclose(answer.as_numpy("logits"), wanted, rtol=1e-5, atol=1e-6)
        assert answer.get_response().id == "seven"
        output = triton.InferRequestedOutput("logits")
        answer = client.infer("mlp.small-1", [given(feeds["x"])], outputs=[output])
        np.testing.assert_allclose(answer.as_numpy("logits"), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_tritonclient_sends_and_gets_every_type(kind, small_models, library, tmp_path):
    model = small_models[kind]
    dtype = {"double": "float64"}.get(kind, kind)
    dims = [N, 2] if kind in ("double", "string") else [N]
    release = make_release(
        tmp_path, model.path, library, [tensor("x", dtype, *dims)], [tensor("y", dtype, *dims)],
        grpc=True,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(model.path)
    with (
        serving_model(release) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        for feeds in model.feeds:
            x = feeds["x"].astype(object) if kind == "string" else feeds["x"]
            answer = client.infer("mlp.small-1", [given(x, datatype=BY_NAME[dtype].protocol)])
            (wanted,) = session.run(None, feeds)
            found = answer.as_numpy("y")
            if kind == "string":
                found = np.array([[item.decode() for item in row] for row in found])
            assert found.tolist() == wanted.tolist()
            assert BY_PROTOCOL[answer.get_output("y").datatype].name == dtype


def test_bfloat16_goes_through_as_it_lies(library, tmp_path):
    value = helper.make_tensor_value_info
    kind = TensorProto.BFLOAT16
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g",
        [value("x", kind, ["n"])], [value("y", kind, ["n"])],
    )  # fmt: skip
    path = tmp_path / "bfloat16.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    spec = [tensor("x", "bfloat16", N)], [tensor("y", "bfloat16", N)]
    release = make_release(tmp_path, path, library, *spec, grpc=True)
    with (
        serving_model(release) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        message = pb.ModelInferRequest(model_name="mlp.small-1")
        message.inputs.add(name="x", datatype="BF16", shape=[3])
        message.raw_input_contents.append(b"\x80\x3f\xc0\x7f\x00\x80")
        answer = infer_method(channel)(message)
        assert answer.outputs[0].datatype == "BF16"
        assert answer.raw_output_contents[0] == message.raw_input_contents[0]


def test_errors_reach_tritonclient_with_code_and_words(client):
    x = np.zeros((1, 64), np.float32)
    for arguments, code, said in (
        (("nope", [given(x)]), "NOT_FOUND", "there is no model `nope` here"),
        (("mlp.small-1", [given(x[:, :3])]), "INVALID_ARGUMENT", "size 3 in dimension 1"),
        (("mlp.small-1", [given(x, "z")]), "INVALID_ARGUMENT", "no input `z`"),
        (("mlp.small-1", [given(np.zeros((40, 64), "f4"))]), "INVALID_ARGUMENT", "takes 1 to 32"),
    ):
        with pytest.raises(InferenceServerException, match=said) as caught:
            client.infer(*arguments)
        assert caught.value.status() == f"StatusCode.{code}"
    for ask in (client.get_model_repository_index, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="is not served") as caught:
            ask()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match="is not served") as caught:
        client.infer("mlp.small-1", [given(x)], compression_algorithm="gzip")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert client.is_server_live()


def test_tritonclient_streams_in_order_and_hears_errors_inside(client, small_models):
    heard: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: heard.put((result, error)))
    x = small_models["mlp"].feeds[0]["x"]
    for index in range(50):
        name = "nope" if index == 20 else "mlp.small-1"
        client.async_stream_infer(name, [given(x)], request_id=str(index))
    wanted = client.infer("mlp.small-1", [given(x)]).as_numpy("logits")
    for index in range(50):
        result, error = heard.get(timeout=30)
        if index == 20:
            assert "there is no model `nope`" in error.message()
        else:
            assert error is None
            assert result.get_response().id == str(index)
            assert result.as_numpy("logits").tolist() == wanted.tolist()
    client.stop_stream()


def infer_method(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )


def request(rows: int) -> Any:
    message = pb.ModelInferRequest(model_name="mlp.small-1", id=str(rows))
    message.inputs.add(name="x", datatype="FP32", shape=[rows, 64])
    message.raw_input_contents.append(np.full((rows, 64), rows, "<f4").tobytes())
    return message


def test_grpcio_has_many_calls_under_way_on_one_connection(live):
    with grpc.insecure_channel(f"127.0.0.1:{live.port}") as channel:
        infer = infer_method(channel)
        futures = [infer.future(request(1 + index % 32)) for index in range(200)]
        for index, future in enumerate(futures):
            answer = future.result(timeout=60)
            assert answer.id == str(1 + index % 32)
            assert list(answer.outputs[0].shape) == [1 + index % 32, 10]


def test_grpcio_sees_trailers_and_refusals(live):
    with grpc.insecure_channel(f"127.0.0.1:{live.port}") as channel:
        echo = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for message, code in (
            (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
            (b"", grpc.StatusCode.INVALID_ARGUMENT),
            (bytes(1 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                echo(message)
            assert caught.value.code() == code
            assert caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/nothing.Here/Method")(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"") == b"\x08\x01"
        # a time limit that is long enough changes nothing
        assert infer_method(channel)(request(2), timeout=30).id == "2"


def test_large_messages_go_both_ways(library, tmp_path):
    size = {"name": "n", "min": 1, "max": 3_000_000, "opt": 1}
    path = tmp_path / "relu.onnx"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [value("x", TensorProto.FLOAT, ["n"])], [value("y", TensorProto.FLOAT, ["n"])],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    spec = [tensor("x", "float32", size)], [tensor("y", "float32", size)]
    x = np.linspace(-1, 1, 3_000_000).astype(np.float32)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with serving_model(make_release(tmp_path, path, library, *spec, grpc=True)) as server:
        address = f"127.0.0.1:{server.port}"
        with triton.InferenceServerClient(address, channel_args=options) as client:
            for _ in range(3):
                found = client.infer("mlp.small-1", [given(x)]).as_numpy("y")
                assert np.array_equal(found, np.maximum(x, 0))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reaches_the_http_routes_over_http2(live):
    def curl(path: str, *arguments: str) -> tuple[str, str]:
        done = subprocess.run(
            ["curl", "-s", "--http2-prior-knowledge", "-w", "\n%{http_version} %{http_code}",
             *arguments, live.url + path],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        body, _, status = done.stdout.rpartition("\n")
        return body, status

    assert curl("/v2/health/live") == ('{"live":true}', "2 200")
    assert curl("/nothing")[1] == "2 404"
    body, status = curl("/predict", "-d", json.dumps({"data": [[0.5] * 64]}))
    assert status == "2 200"
    assert len(json.loads(body)["result"][0]) == 10
    assert "grpc_server_handled_total" in curl("/metrics")[0] or status
    assert curl("/v2", "-H", "Host: evil.example")[1] == "2 421"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("with_length", [True, False])
def test_curl_sees_why_a_large_body_was_refused_over_http2(live, with_length):
    large = "1" * 3_000_000
    length = ("-H", f"content-length: {len(large)}") if with_length else ()
    # an answer whose stream is reset while the body is on its way is forgotten, with exit code 92
    done = subprocess.run(
        ["curl", "-sS", "--http2-prior-knowledge", "-w", "\n%{http_code}", "-X", "POST", *length,
         "-T", "-", f"{live.url}/predict"],
        input=large, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    body, _, status = done.stdout.rpartition("\n")
    assert status == "413"
    assert "in binary" in json.loads(body)["error"]


def test_http1_is_served_on_the_same_port(live):
    with live.client() as client:
        assert client.ask("GET", "/v2/health/live").json() == {"live": True}


def test_a_drain_under_load_loses_no_call(small_models, library, tmp_path):
    release = make_release(
        tmp_path, small_models["mlp"].path, library,
        [tensor("x", "float32", BATCH, 64)], [tensor("logits", "float32", BATCH, 10)], grpc=True,
    )  # fmt: skip
    engine = open_engine(release)
    failures: list[str] = []
    answers = 0
    try:
        with serving(App(release, engine)) as server:
            channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
            infer = infer_method(channel)
            infer(request(1))
            futures = [infer.future(request(32)) for _ in range(60)]
            server.server.stop()
            for future in futures:
                error = future.exception(timeout=60)
                if error is None:
                    answers += 1
                elif "refused" not in error.details():  # by a port that nobody listens on
                    failures.append(error.details())
            channel.close()
    finally:
        engine.close()
    assert failures == []
    assert answers > 0
