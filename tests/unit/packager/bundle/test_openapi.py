"""The description of what is served: valid, and the live server keeps to it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from packager.bundle.render import render_server
from runtime.app import App
from runtime.http1 import Head
from runtime.nvidia.switching import SwitchingEngine
from tests.unit.packager.bundle.small_servers import (
    colour_photos,
    colour_words,
    echo,
    several_types,
    table_rows,
)
from tests.unit.runtime.live_server import BATCH, OpenRelease, infer_body, tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

ECHOED = {
    "float16": (10, BATCH, 3), "bfloat16": (16, BATCH, 2), "float64": (11,), "bool": (9, BATCH),
    "string": (8, BATCH, 2), "uint64": (13, 2, 2), "int8": (3, BATCH, 2),
}  # fmt: skip


SMALL = {
    "several": several_types, "photos": colour_photos, "rows": table_rows, "words": colour_words,
}  # fmt: skip


def model(kind: str) -> Callable[[Path, Path], AbstractContextManager[str]]:
    """Return what serves a small model of some kind."""
    if kind in SMALL:
        return SMALL[kind]
    number, *dims = ECHOED[kind]
    return lambda folder, library: echo(folder, library, kind, number, *dims)


def fetch(url: str, body: bytes | None = None, **fields: str) -> tuple[int, str, Any]:
    """Return the status, the media type and the content of an answer."""
    request = urllib.request.Request(
        url, body, {key.replace("_", "-"): value for key, value in fields.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            content, kind = response.read(), response.headers.get_content_type()
            status = response.status
    except urllib.error.HTTPError as fault:
        content, kind, status = fault.read(), fault.headers.get_content_type(), fault.code
    return status, kind, json.loads(content) if kind == "application/json" else content


def resolve(document: Any, part: Any) -> Any:
    """Return what a reference stands for."""
    while "$ref" in part:
        found = document
        for key in part["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        part = found
    return part


def closed(schema: Any) -> Any:
    """Return a schema that takes nothing beside what it names."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(item) for key, item in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        found["additionalProperties"] = False
    return found


def check_answer(document: Any, operation: Any, answer: tuple[int, str, Any]) -> None:
    """Check an answer against what the description says of it."""
    import jsonschema

    status, kind, content = answer
    responses = operation["responses"]
    response = resolve(document, responses.get(str(status)) or responses[f"{status // 100}XX"])
    document = closed(document)
    schema = {**document, **closed(response["content"][kind].get("schema", {}))}
    if kind == "application/json":
        jsonschema.Draft202012Validator(schema).validate(content)
    if kind == "text/event-stream":
        data = {**document, "$ref": "#/components/schemas/StreamedAnswer"}
        lines = [line for line in content.decode().split("\n") if line.startswith("data: ")]
        assert len(lines) > 1
        for line in lines:
            jsonschema.Draft202012Validator(data).validate(json.loads(line[6:]))


@pytest.mark.parametrize("kind", [*SMALL, *ECHOED])
def test_the_file_is_valid_and_every_example_works(
    kind: str, engine_library: Path, tmp_path: Path
) -> None:
    import openapi_spec_validator

    with model(kind)(tmp_path, engine_library) as url:
        _, _, document = fetch(f"{url}/openapi.json")
        openapi_spec_validator.validate(document)
        sent = 0
        for path, methods in document["paths"].items():
            if "get" in methods:
                answer = fetch(url + path)
                assert answer[0] == 200
                check_answer(document, methods["get"], answer)
                continue
            for media, content in methods["post"]["requestBody"]["content"].items():
                if "example" not in content:
                    continue
                example = content["example"]
                body = json.dumps(example) if media == "application/json" else example
                answer = fetch(url + path, body.encode(), Content_Type=media)
                assert answer[0] == 200, (path, example, answer)
                check_answer(document, methods["post"], answer)
                sent += 1
        assert sent == 5 + (kind in ("rows", "words"))


def test_refusals_are_as_they_are_described(engine_library: Path, tmp_path: Path) -> None:
    with model("several")(tmp_path, engine_library) as url:
        _, _, document = fetch(f"{url}/openapi.json")
        infer, live = "/v2/models/several/infer", "/v2/health/live"
        for path, method, status, body, fields in (
            (infer, "post", 400, b"{", {}),
            (infer, "post", 413, b"[" * 70_000, {}),
            (infer, "post", 415, b"{}", {"Content_Encoding": "gzip"}),
            ("/predict", "post", 403, b"{}", {"Origin": "http://elsewhere.example"}),
            (live, "get", 403, None, {"Origin": "http://elsewhere.example"}),
            (live, "get", 421, None, {"Host": "elsewhere.example"}),
            (live, "get", 431, None, {"X_Long": "x" * 20_000}),
        ):
            answer = fetch(url + path, body, **fields)
            assert answer[0] == status
            assert answer[2]["error"]
            check_answer(document, document["paths"][path][method], answer)


def test_numbers_that_are_not_finite_are_null_in_the_schema_of_answers_alone(
    engine_library: Path, tmp_path: Path
) -> None:
    with model("float16")(tmp_path, engine_library) as url:
        _, _, document = fetch(f"{url}/openapi.json")
        schemas = document["components"]["schemas"]
        asked = schemas["InferRequest"]["properties"]["inputs"]["items"]["properties"]["data"]
        assert asked["anyOf"][0]["items"] == {"type": "number"}
        (answered,) = schemas["InferAnswer"]["properties"]["outputs"]["items"]["oneOf"]
        assert answered["properties"]["data"]["items"] == {"type": ["number", "null"]}
        body = b'{"data": [[1e39, 1, -1e39]]}'
        status, _, content = answer = fetch(f"{url}/predict", body, Content_Type="application/json")
        if status == 200:
            assert None in content["result"][0]
        check_answer(document, document["paths"]["/predict"]["post"], answer)


@pytest.fixture
def rows() -> dict[str, Any]:
    return tensor("x", "float32", BATCH, 2)


def described(inputs: list[Any], **manifest: Any) -> Any:
    """Return the description of a model that is not served."""
    fields = manifest_of(inputs, **manifest)
    return json.loads(render_server(fields)["server/openapi.json"])


def test_bodies_beside_json_are_named_where_the_model_takes_them(rows: dict[str, Any]) -> None:
    bodies = {"text/csv": {}, "image/png": {"library": "lib/libpng.so"}}
    document = described([rows], bodies=bodies)
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "text/csv", "image/png"}
    assert content["text/csv"]["example"] == "x.0,x.1\n0.5,0.5\n"
    assert set(described([rows])["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "application/json"
    }


def test_routes_that_are_off_are_not_described(rows: dict[str, Any]) -> None:
    server = {"max_json_kb": 64, "metrics": False, "openapi": True, "plain": False, "page": False}
    paths = described([rows], server=server)["paths"]
    assert not {"/", "/page.json", "/predict", "/metrics"} & set(paths)
    assert {"/", "/page.json", "/predict", "/metrics"} <= set(described([rows])["paths"])


def manifest_of(inputs: list[Any], **changes: Any) -> dict[str, Any]:
    server = {"max_json_kb": 64, "metrics": True, "openapi": True, "plain": True, "page": True}
    return {
        "name": "m", "version": "1.0.0", "edgepack": "0.1.0",
        "target": {"name": "cpu-x86_64", "python": "3.8", "memory_mib": 1024},
        "engine": {"name": "onnxruntime", "precision": "fp32"},
        "model": {"signature": {"inputs": inputs, "outputs": inputs}}, "server": server, **changes,
    }  # fmt: skip


class Sleeping:
    """An engine that runs nothing."""

    name, version, provider, precision, threads = "asleep", "1", "CPU", "fp32", 1

    def run(self, feeds: Any, outputs: Any = None) -> Any:
        del outputs
        return feeds

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "off", [(), ("page",), ("plain", "page"), ("metrics",), ("page", "plain", "metrics")]
)
@pytest.mark.parametrize("keeps_state", [False, True])
def test_the_routes_that_are_described_are_those_of_the_server(
    rows: dict[str, Any], off: tuple[str, ...], keeps_state: bool
) -> None:
    manifest = manifest_of([rows])
    manifest["server"].update(dict.fromkeys(off, False))
    if keeps_state:
        manifest["sequences"] = {
            "signature": manifest["model"]["signature"], "state": [], "axis": 0, "chunk": 4,
            "cut": ["x"], "max_sequences": 4, "idle_s": 1.0,
        }  # fmt: skip
    app = App(OpenRelease(folder="nowhere", manifest=manifest), Sleeping())
    served = {(path, endpoint.method) for path, endpoint in app._paths.items()}
    document = json.loads(render_server(manifest)["server/openapi.json"])
    described = {
        (path, method.upper()) for path, methods in document["paths"].items() for method in methods
    }
    assert described == served


def test_an_engine_that_may_change_is_described(rows: dict[str, Any]) -> None:
    manifest = manifest_of([rows])
    app = App(OpenRelease(folder="nowhere", manifest=manifest), SwitchingEngine(Sleeping()))
    document = json.loads(render_server(manifest)["server/openapi.json"])
    for path, ready in (
        ("/v2/health/ready", False),
        ("/v2/models/m/ready", True),
        ("/v2/models/m", True),
    ):
        app.ready = ready
        answer = app.admit(Head("GET", path, None, {}, 0, True, 1, False)).act(b"")
        content = json.loads(answer.body)
        assert content["accelerator"]["wanted"] == "tensorrt"
        check_answer(
            document, document["paths"][path]["get"], (answer.status, "application/json", content)
        )


def test_whatever_may_stand_in_requests_and_answers_is_described(
    engine_library: Path, tmp_path: Path
) -> None:
    import jsonschema

    with model("float16")(tmp_path, engine_library) as url:
        _, _, document = fetch(f"{url}/openapi.json")
        base = "/v2/models/small"
        x = {"name": "x", "shape": [2, 3], "datatype": "FP16", "data": [0, 1, 2, 3, 4, 5]}
        asked: dict[str, Any] = {
            "model_name": "small", "model_version": "1.2.0", "id": "i",
            "parameters": {"timeout": 10_000_000, "binary_data_output": False},
            "inputs": [x], "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
        }  # fmt: skip
        for path, schema in (
            (f"{base}/infer", "InferRequest"),
            (f"{base}/infer_stream", "StreamRequest"),
        ):
            described = {**closed(document), "$ref": f"#/components/schemas/{schema}"}
            jsonschema.Draft202012Validator(described).validate(asked)
            for name in ("model_name", "model_version"):
                other = {**asked, name: "another"}
                assert not jsonschema.Draft202012Validator(described).is_valid(other)
                assert fetch(url + path, json.dumps(other).encode())[0] == 400
            answer = fetch(url + path, json.dumps(asked).encode())
            assert answer[0] == 200, answer
            check_answer(document, document["paths"][path]["post"], answer)
        assert b'"id":"i"' in answer[2]
        del x["data"]
        body, fields = infer_body(
            {"inputs": [{**x, "parameters": {"binary_data_size": 12}}]}, b"\0\x7c" * 6
        )
        answer = fetch(f"{url}{base}/infer_stream", body, **fields)
        assert answer[2].count(b'"non_finite":true') == 2, answer
        check_answer(document, document["paths"][f"{base}/infer_stream"]["post"], answer)
        x["data"] = [0] * 6
        binary = {**asked, "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
        status, kind, content = fetch(f"{url}{base}/infer", json.dumps(binary).encode())
        assert (status, kind) == (200, "application/octet-stream")
        told = json.JSONDecoder().raw_decode(content.decode("latin-1"))[0]
        operation = document["paths"][f"{base}/infer"]["post"]
        check_answer(document, operation, (200, "application/json", told))
        assert told["outputs"][0]["parameters"] == {"binary_data_size": 12}
        refused = fetch(f"{url}{base}/infer_stream", json.dumps(binary).encode())
        assert refused[0] == 400
        check_answer(document, document["paths"][f"{base}/infer_stream"]["post"], refused)


def test_the_parameters_of_a_sequence_are_described_for_models_with_state_alone(
    rows: dict[str, Any],
) -> None:
    def parameters(**manifest: Any) -> set[str]:
        schema = described([rows], **manifest)["components"]["schemas"]["InferRequest"]
        return set(schema["properties"]["parameters"]["properties"])

    signature = {"inputs": [rows], "outputs": [rows]}
    sequences = {"signature": signature, "axis": 0, "chunk": 4, "cut": ["x"]}
    added = parameters(sequences=sequences) - parameters()
    assert added == {"sequence_id", "sequence_start", "sequence_end"}
    schemas = described([rows], sequences=sequences)["components"]["schemas"]
    one, all_together = (
        schemas[name]["properties"]["inputs"]["items"]["properties"]["shape"]["prefixItems"][0]
        for name in ("InferRequest", "StreamRequest")
    )
    assert one["maximum"] == 32
    assert "maximum" not in all_together


CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method"
)


def fuzz(url: str, folder: Path, *, examples: int, seconds: int) -> None:
    """Run schemathesis over a live server's description, always the same way."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
        "--checks", CHECKS, "--phases", "examples,coverage,fuzzing",
        "--max-examples", str(examples), "--generation-deterministic", "--no-color",
        "--suppress-health-check", "all", "--continue-on-failure",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_requests_made_from_the_description_get_answers_that_it_describes(
    engine_library: Path, tmp_path: Path
) -> None:
    with model("several")(tmp_path, engine_library) as url:
        fuzz(url, tmp_path, examples=8, seconds=200)
        assert fetch(f"{url}/v2/health/ready")[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SMALL, *ECHOED])
def test_many_requests_made_from_the_description_get_answers_that_it_describes(
    kind: str, engine_library: Path, tmp_path: Path
) -> None:
    with model(kind)(tmp_path, engine_library) as url:
        fuzz(url, tmp_path, examples=40, seconds=280)
        assert fetch(f"{url}/v2/health/ready")[0] == 200
