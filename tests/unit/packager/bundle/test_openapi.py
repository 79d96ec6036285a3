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
from tests.unit.packager.bundle.small_servers import (
    colour_photos,
    colour_words,
    echo,
    several_types,
    table_rows,
)
from tests.unit.runtime.live_server import BATCH, tensor

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


def check_answer(document: Any, operation: Any, answer: tuple[int, str, Any]) -> None:
    """Check an answer against what the description says of it."""
    import jsonschema

    status, kind, content = answer
    responses = operation["responses"]
    response = resolve(document, responses.get(str(status)) or responses[f"{status // 100}XX"])
    schema = {**document, **response["content"][kind].get("schema", {})}
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
    server = {"max_json_kb": 64, "metrics": True, "openapi": True, "plain": True, "page": True}
    fields = {
        "name": "m", "version": "1.0.0", "edgepack": "0.1.0",
        "target": {"name": "cpu-x86_64", "python": "3.8", "memory_mib": 1024},
        "engine": {"name": "onnxruntime", "precision": "fp32"},
        "model": {"signature": {"inputs": inputs, "outputs": inputs}}, "server": server, **manifest,
    }  # fmt: skip
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
