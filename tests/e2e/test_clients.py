"""The field's own clients against a running bundle: tritonclient, KServe's SDK and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.unit.runtime.live_server import infer_body, tensor
from tests.unit.runtime.small_bundle import serving_process, write_bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NAME, VERSION = "mlp", "1.2.0"
MODEL = f"/v2/models/{NAME}"
ROWS = {"name": "rows", "min": 1, "max": 8, "opt": 1}
# Per type: ours, the protocol's, ONNX's, and two rows that its edges are among.
KINDS: dict[str, tuple[str, str, list[Any]]] = {
    "float32": ("FP32", "FLOAT", [1.5, -0.1, 3e38, 1e-45]),
    "float64": ("FP64", "DOUBLE", [1.5, 0.1, 1e308, 5e-324]),
    "float16": ("FP16", "FLOAT16", [1.5, -0.1, 65504.0, 6e-8]),
    "bfloat16": ("BF16", "BFLOAT16", [1.5, -2.0, 2.0**127, 0.0]),
    "int8": ("INT8", "INT8", [-128, 127, 0, 1]),
    "int16": ("INT16", "INT16", [-(2**15), 2**15 - 1, 0, 1]),
    "int32": ("INT32", "INT32", [-(2**31), 2**31 - 1, 0, 1]),
    "int64": ("INT64", "INT64", [-(2**63), 2**63 - 1, 2**53 + 1, 1]),
    "uint8": ("UINT8", "UINT8", [0, 255, 7, 1]),
    "uint16": ("UINT16", "UINT16", [0, 2**16 - 1, 7, 1]),
    "uint32": ("UINT32", "UINT32", [0, 2**32 - 1, 7, 1]),
    "uint64": ("UINT64", "UINT64", [0, 2**64 - 1, 2**53 + 1, 1]),
    "bool": ("BOOL", "BOOL", [True, False, False, True]),
    "string": ("BYTES", "STRING", ["grüß dich", "", "日本", "a\nb"]),
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def _model(kinds: Iterable[str]) -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{kind}"], [f"out_{kind}"]) for kind in kinds],
        "kinds",
        *(
            [
                helper.make_tensor_value_info(
                    f"{side}_{kind}", getattr(TensorProto, KINDS[kind][1]), ["rows", 2]
                )
                for kind in kinds
            ]
            for side in ("in", "out")
        ),
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@contextmanager
def _served(folder: Path, library: Path, kinds: Iterable[str]) -> Iterator[int]:
    """Serve a model that gives these types back as they came."""
    signature = {
        f"{side}puts": [tensor(f"{side}_{kind}", kind, ROWS, 2) for kind in kinds]
        for side in ("in", "out")
    }
    fields = {
        "model": {
            "source": "kinds.onnx", "source_sha256": "0" * 64, "exporter": "none",
            "signature": signature, "images": {}, "labels": {},
        }
    }  # fmt: skip
    bundle = write_bundle(folder / "kinds.edgepack", library, model=_model(kinds), fields=fields)
    with serving_process(bundle, folder / "cache") as (_, port):
        yield port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, engine_library: Path) -> Iterator[int]:
    with _served(tmp_path_factory.mktemp("clients"), engine_library, KINDS) as number:
        yield number


def values(kind: str) -> np.ndarray[Any, Any]:
    """Return two rows as clients hold them."""
    import ml_dtypes

    dtype = {"bfloat16": ml_dtypes.bfloat16, "string": "object"}.get(kind, kind)
    return np.array(KINDS[kind][2], dtype).reshape(2, 2)


def packed(kind: str) -> bytes:
    """Return the bytes of two rows on the wire."""
    if kind == "string":
        items = [text.encode() for text in KINDS[kind][2]]
        return b"".join(struct.pack("<I", len(item)) + item for item in items)
    return values(kind).tobytes()


def plain(data: Any) -> Any:
    """Return a client's array as lists, texts decoded."""
    return [[x.decode() if isinstance(x, bytes) else x for x in row] for row in data.tolist()]


def triton_inputs(module: Any, **wanted: Any) -> list[Any]:
    """Return an input of every type, as `tritonclient.http` or `.grpc` has them."""
    found = []
    for kind, (datatype, _, _) in KINDS.items():
        item = module.InferInput(f"in_{kind}", [2, 2], datatype)
        item.set_data_from_numpy(values(kind), **wanted)
        found.append(item)
    return found


def test_tritonclient_http_learns_what_is_served(port: int) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        assert client.is_model_ready(NAME, VERSION)
        assert not client.is_model_ready("nope")
        assert not client.is_model_ready(NAME, "9")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata(NAME, VERSION)
    assert metadata["versions"] == [VERSION]
    found = {item["name"]: (item["datatype"], item["shape"]) for item in metadata["inputs"]}
    assert found == {f"in_{kind}": (KINDS[kind][0], [-1, 2]) for kind in KINDS}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_tritonclient_http_gets_every_type_back(port: int, *, binary: bool) -> None:
    import tritonclient.http as triton

    inputs = triton_inputs(triton)
    asked = [triton.InferRequestedOutput(f"out_{kind}", binary) for kind in KINDS]
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answer = client.infer(NAME, inputs, request_id="every", outputs=asked)
        waited = client.async_infer(NAME, inputs, outputs=asked).get_result()
    assert answer.get_response()["id"] == "every"
    for kind in KINDS:
        assert answer.get_output(f"out_{kind}")["datatype"] == KINDS[kind][0]
        if not binary and kind in ("float16", "bfloat16"):
            continue  # tritonclient reads these two from binary answers alone
        assert plain(answer.as_numpy(f"out_{kind}")) == plain(values(kind)), kind
        assert plain(waited.as_numpy(f"out_{kind}")) == plain(values(kind)), kind


def test_tritonclient_http_takes_json_where_it_can(port: int) -> None:
    import tritonclient.http as triton

    inputs = []
    for item in triton_inputs(triton):
        kind = item.name().removeprefix("in_")
        if kind not in ("float16", "bfloat16"):  # it refuses to write these as JSON
            item.set_data_from_numpy(values(kind), binary_data=False)
        inputs.append(item)
    asked = [triton.InferRequestedOutput("out_string"), triton.InferRequestedOutput("out_int64")]
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answer = client.infer(NAME, inputs, outputs=asked)
    assert [item["name"] for item in answer.get_response()["outputs"]] == [
        "out_string", "out_int64",
    ]  # fmt: skip
    assert plain(answer.as_numpy("out_string")) == plain(values("string"))
    assert plain(answer.as_numpy("out_int64")) == plain(values("int64"))


def test_tritonclients_for_asyncio_get_every_type_back(port: int) -> None:
    import tritonclient.grpc.aio as triton_grpc
    import tritonclient.http.aio as triton_http

    async def ask(module: Any) -> Any:
        async with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert await client.is_model_ready(NAME, VERSION)
            return await client.infer(NAME, triton_inputs(module))

    for module in (triton_http, triton_grpc):
        answer = asyncio.run(ask(module))
        for kind in KINDS:
            assert plain(answer.as_numpy(f"out_{kind}")) == plain(values(kind)), kind


def test_tritonclient_grpc_learns_what_is_served_and_gets_every_type_back(port: int) -> None:
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME, VERSION)
        metadata = client.get_model_metadata(NAME, as_json=True)
        inputs = triton_inputs(triton)
        answer = client.infer(NAME, inputs, request_id="every")
        one = client.infer(NAME, inputs, outputs=[triton.InferRequestedOutput("out_bool")])
    assert [item["datatype"] for item in metadata["outputs"]] == [k[0] for k in KINDS.values()]
    assert answer.get_response().id == "every"
    for kind in KINDS:
        assert plain(answer.as_numpy(f"out_{kind}")) == plain(values(kind)), kind
    assert [item.name for item in one.get_response().outputs] == ["out_bool"]


def test_tritonclient_http_hears_what_is_wrong(port: int) -> None:
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    inputs = triton_inputs(triton)
    short = triton.InferInput("in_float32", [1, 3], "FP32")
    short.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        for arguments, status, words in (
            ({"model_name": "nope"}, "404", "there is no model `nope` here"),
            ({"model_version": "9"}, "404", "no version `9`"),
            ({"inputs": inputs[1:]}, "400", "`in_float32`"),
            ({"inputs": [short, *inputs[1:]]}, "400", "size 3 in dimension 1"),
            ({"outputs": [triton.InferRequestedOutput("nope")]}, "400", "no output `nope`"),
            (
                {"outputs": [triton.InferRequestedOutput("out_float32", class_count=1)]},
                "400", "classification",
            ),
            ({"request_compression_algorithm": "gzip"}, "415", "gzip"),
        ):  # fmt: skip
            given = {"model_name": NAME, "inputs": inputs, **arguments}
            with pytest.raises(InferenceServerException, match=words) as caught:
                client.infer(**given)
            assert caught.value.status() == status
        for ask in (client.get_model_config, client.get_inference_statistics):
            with pytest.raises(InferenceServerException) as caught:
                ask(NAME)
            assert caught.value.status() == "404"
        assert client.is_server_live()


def test_tritonclient_http_may_ask_for_compressed_answers_and_gets_plain_ones(port: int) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        inputs = triton_inputs(triton)
        answer = client.infer(NAME, inputs, response_compression_algorithm="gzip")
    assert plain(answer.as_numpy("out_string")) == plain(values("string"))


def curl(port: int, path: str, *words: str | Path, body: bytes | None = None) -> tuple[int, bytes]:
    """Ask with curl; returns the status and the body."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    data = () if body is None else ("--data-binary", "@-")
    done = subprocess.run(
        ["curl", "-sS", "-w", "\n%{http_code}", *data, *map(str, words),
         f"http://127.0.0.1:{port}{path}"],
        input=body, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    answer, _, status = done.stdout.rpartition(b"\n")
    return int(status), answer


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge", "--http1.0"])
def test_curl_asks_everything_that_needs_no_body(port: int, version: str) -> None:
    for path in (
        "/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/ready",
        f"{MODEL}/versions/{VERSION}", f"{MODEL}/versions/{VERSION}/ready", "/openapi.json",
    ):  # fmt: skip
        status, answer = curl(port, path, version)
        assert status == 200, path
        assert isinstance(json.loads(answer), dict)
        assert curl(port, path, version, "--head")[0] == 200
    assert b"nv_inference_count" in curl(port, "/metrics", version)[1]


@EVERY
def test_curl_gets_every_type_back_as_json(port: int, kind: str) -> None:
    every = [
        {"name": f"in_{name}", "shape": [2, 2], "datatype": KINDS[name][0],
         "data": np.array(KINDS[name][2], object).reshape(2, 2).tolist()}
        for name in KINDS
    ]  # fmt: skip
    document = {"inputs": every, "outputs": [{"name": f"out_{kind}"}], "parameters": {"n": 1}}
    status, answer = curl(port, f"{MODEL}/infer", body=json.dumps(document).encode())
    assert status == 200, answer
    (output,) = json.loads(answer)["outputs"]
    assert (output["datatype"], output["shape"]) == (KINDS[kind][0], [2, 2])
    # the shortest digits that are this value in its type, and no other
    found = np.array(output["data"], values(kind).dtype)
    assert found.tolist() == values(kind).ravel().tolist()


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_gets_every_type_back_in_binary(port: int, version: str) -> None:
    parts = {kind: packed(kind) for kind in KINDS}
    document = {
        "inputs": [
            {"name": f"in_{kind}", "shape": [2, 2], "datatype": KINDS[kind][0],
             "parameters": {"binary_data_size": len(part)}}
            for kind, part in parts.items()
        ],
        "parameters": {"binary_data_output": True},
    }  # fmt: skip
    body, fields = infer_body(document, *parts.values())
    words = [word for key, value in fields.items() for word in ("-H", f"{key}: {value}")]
    status, answer = curl(port, f"{MODEL}/infer", version, *words, body=body)
    assert status == 200, answer
    head, after = json.JSONDecoder().raw_decode(answer[: -len(b"".join(parts.values()))].decode())
    assert answer[len(answer) - sum(map(len, parts.values())) :] == b"".join(parts.values())
    assert [(item["name"], item["parameters"]["binary_data_size"]) for item in head["outputs"]] == [
        (f"out_{kind}", len(part)) for kind, part in parts.items()
    ]
    assert after


def test_curl_sends_as_a_form_what_is_json(port: int) -> None:
    # `curl -d` says `application/x-www-form-urlencoded` of itself
    status, answer = curl(port, f"{MODEL}/infer", "-d", '{"inputs": []}')
    assert status == 400
    assert "list of the model's inputs" in json.loads(answer)["error"]


# Runs in KServe's own environment: prints one JSON object.
KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

port, name, kinds = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

def given(binary, left_out=()):
    found = []
    for kind, (datatype, _, data) in kinds.items():
        item = InferInput("in_" + kind, [2, 2], datatype)
        dtype = {"string": "object"}.get(kind, kind)
        item.set_data_from_numpy(np.array(data, dtype).reshape(2, 2), binary_data=binary)
        found.append(item)
    return InferRequest(name, found, request_id="seven", request_outputs=[
        RequestedOutput("out_" + kind, {"binary_data": binary}) for kind in kinds
    ])

def taken(answer):
    found = {}
    for output in answer.outputs:
        rows = output.as_numpy().reshape(-1).tolist()
        found[output.name] = [x.decode() if isinstance(x, bytes) else x for x in rows]
    return {"id": answer.id, "outputs": found}

async def main():
    url, found = "http://127.0.0.1:" + port, {}
    for http2 in (False, True):
        client = InferenceRESTClient(RESTConfig(protocol="v2", http2=http2))
        word = "REST over HTTP/2" if http2 else "REST"
        asked = [await client.is_server_live(url), await client.is_server_ready(url),
                 await client.is_model_ready(url, name)]
        found[word] = {"asked": asked, "binary": taken(await client.infer(url, given(True), name)),
                       "JSON": taken(await client.infer(url, given(False), name))}
        try:
            await client.infer(url, given(True), "nope")
        except Exception as error:
            found[word]["error"] = str(error)
        await client.close()
    async with InferenceGRPCClient("127.0.0.1:" + port) as client:
        asked = [await client.is_server_live(), await client.is_server_ready(),
                 await client.is_model_ready(name)]
        found["gRPC"] = {"asked": asked, "raw": taken(await client.infer(given(True))),
                         "contents": taken(await client.infer(given(False)))}
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1200)
def test_kserves_own_clients_ask_everything(tmp_path: Path, engine_library: Path) -> None:
    from tests.benchmarks.peers import environment

    try:
        python = environment("requirements-kserve.txt")
    except (OSError, subprocess.SubprocessError) as fault:
        pytest.skip(f"KServe's environment cannot be made: {fault}")
    # KServe's SDK has no form of bfloat16, and none of float16 outside of binary tensors.
    kinds = {kind: KINDS[kind] for kind in KINDS if kind not in ("float16", "bfloat16")}
    with _served(tmp_path, engine_library, kinds) as port:
        done = subprocess.run(
            [python, "-c", KSERVE, str(port), NAME, json.dumps(kinds)],
            cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = {f"out_{kind}": values(kind).ravel().tolist() for kind in kinds}
    for protocol, forms in found.items():
        assert forms.pop("asked") == [True, True, True], protocol
        if protocol != "gRPC":
            assert "there is no model `nope` here" in forms.pop("error")
        for form, answer in forms.items():
            assert answer == {"id": "seven", "outputs": wanted}, (protocol, form)
