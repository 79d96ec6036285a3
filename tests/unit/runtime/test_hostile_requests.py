"""Hostile requests: each gets a 4xx that says why, and the next good request is answered."""

# ruff: noqa: E501 - a table of requests reads best a line each

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.runtime.live_server import (
    BATCH,
    Client,
    LiveServer,
    infer_body,
    make_release,
    request,
    serving_model,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = "/v2/models/mlp.small-1"
INFER = f"{MODEL}/infer"
ROW = [0.25] * 64
X = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ROW}


@pytest.fixture(scope="module")
def live(
    small_models: dict[str, Any], engine_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    release = make_release(
        tmp_path_factory.mktemp("release"),
        small_models["mlp"].path,
        engine_library,
        [tensor("x", "float32", BATCH, 64)],
        [tensor("logits", "float32", BATCH, 10)],
    )
    with serving_model(release) as server:
        yield server


def post(document: object, path: str = INFER, **fields: str) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return request("POST", path, text, {key.replace("_", "-"): v for key, v in fields.items()})


def one_input(**changes: Any) -> bytes:
    given = {**X, **changes}
    return post({"inputs": [{key: v for key, v in given.items() if v is not ...}]})


def raw(head: str, body: bytes = b"") -> bytes:
    return head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body


def post_head(fields: str, body: bytes = b"") -> bytes:
    return raw(f"POST {INFER} HTTP/1.1\nHost: localhost\n{fields}", body)


def chunked(body: bytes) -> bytes:
    return post_head("Transfer-Encoding: chunked", body)


def get_head(fields: str) -> bytes:
    return raw(f"GET /v2 HTTP/1.1\nHost: localhost\n{fields}")


def binary(
    size: Any = 256, data: bytes = b"\0" * 256, length: int | None = None, **more: Any
) -> bytes:
    item = {
        "name": "x", "shape": [1, 64], "datatype": "FP32",
        "parameters": {"binary_data_size": size}, **more,
    }  # fmt: skip
    body, fields = infer_body({"inputs": [item]}, data)
    if length is not None:
        fields = {"Inference-Header-Content-Length": str(length)}
    return request("POST", INFER, body, fields)


GOOD = one_input()
BODY = json.dumps({"data": [ROW]}).encode()
DEEP = b'{"inputs":' + b"[" * 30000 + b"]" * 30000 + b"}"

FRAMING = {
    "not HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "a version of the future": (raw("GET /v2 HTTP/3.0\nHost: localhost"), 400),
    "no Host": (raw("GET /v2 HTTP/1.1"), 400),
    "two Hosts": (get_head("Host: localhost"), 400),
    "bare LF after the first line": (b"GET /v2 HTTP/1.1\nHost: localhost\r\n\r\n", 400),
    "bare LF only": (b"GET /v2 HTTP/1.1\nHost: localhost\n\n", 400),
    "bare CR in a field": (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: b\rc\r\n\r\n", 400),
    "a folded field": (get_head("A: b\n c"), 400),
    "a blank before the colon": (get_head("Content-Length : 0"), 400),
    "a NUL in a field": (get_head("A: b\0c"), 400),
    "a NUL in the path": (raw("GET /v2\0 HTTP/1.1\nHost: localhost"), 400),
    "a field without a name": (get_head(": b"), 400),
    "a field without a colon": (get_head("A"), 400),
    "two blanks in the first line": (raw("GET  /v2 HTTP/1.1\nHost: localhost"), 400),
    "an empty first line": (raw("\nGET /v2 HTTP/1.1\nHost: localhost"), 400),
    "a target that is no path": (raw("GET v2 HTTP/1.1\nHost: localhost"), 400),
    "a CONNECT": (raw("CONNECT example.org:443 HTTP/1.1\nHost: localhost"), 400),
    "a method of 40 letters": (raw("G" * 40 + " /v2 HTTP/1.1\nHost: localhost"), 400),
    "a head past 16 KiB": (get_head("A: " + "b" * 17000), 431),
    "a head past 16 KiB, blanks": (get_head("A: " + " " * 17000), 431),
    "101 fields": (raw("GET /v2 HTTP/1.1\nHost: localhost" + "\nA: b" * 101), 431),
    "length and chunks": (
        post_head("Content-Length: 5\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
        400,
    ),
    "two lengths": (post_head("Content-Length: 5\nContent-Length: 5"), 400),
    "a list of lengths": (post_head("Content-Length: 5, 5"), 400),
    "a negative length": (post_head("Content-Length: -5"), 400),
    "a length with a sign": (post_head("Content-Length: +5"), 400),
    "a hexadecimal length": (post_head("Content-Length: 0x5"), 400),
    "a length of 40 digits": (post_head("Content-Length: " + "9" * 40), 400),
    "an empty length": (post_head("Content-Length: "), 400),
    "a coding list": (post_head("Transfer-Encoding: gzip, chunked"), 400),
    "a hidden coding": (post_head("Transfer-Encoding: xchunked"), 400),
    "chunks in HTTP/1.0": (raw(f"POST {INFER} HTTP/1.0\nHost: localhost\nTransfer-Encoding: chunked"), 400),
    "an odd expectation": (post_head("Expect: tea\nContent-Length: 5"), 417),
    "a chunk size that is none": (
        chunked(b"xyz\r\n"), 400),
    "a chunk with an extension": (
        chunked(b"5;a=b\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk longer than it says": (
        chunked(b"2\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk of a negative size": (
        chunked(b"-5\r\nhello\r\n"), 400),
    "a chunk size of 20 digits": (
        chunked(b"0" * 20 + b"\r\n"), 400),
    "a trailer": (
        chunked(b"0\r\nA: b\r\n\r\n"), 400),
    "chunks past the limit": (
        chunked(b"fffffff\r\n"), 413),
    "many chunks past the limit": (
        post_head("Transfer-Encoding: chunked", (b"8000\r\n" + b"a" * 32768 + b"\r\n") * 3),
        413,
    ),
}  # fmt: skip

ADDRESSED = {
    "a foreign Host": (request("GET", "/v2", fields={"Host": "evil.example"}), 421),
    "a foreign Host with our port": (request("GET", "/v2", fields={"Host": "evil.example:8000"}), 421),
    "a Host that contains ours": (request("GET", "/v2", fields={"Host": "localhost.evil.example"}), 421),
    "a Host with a user": (request("GET", "/v2", fields={"Host": "localhost@evil.example"}), 421),
    "an empty Host": (request("GET", "/v2", fields={"Host": ""}), 421),
    "another number as Host": (request("GET", "/v2", fields={"Host": "10.1.2.3"}), 421),
    "an absolute target elsewhere": (raw("GET http://evil.example/v2 HTTP/1.1\nHost: localhost"), 421),
    "a foreign page": (post({"data": [ROW]}, "/predict", Origin="http://evil.example"), 403),
    "a page on another port": (post({"data": [ROW]}, "/predict", Origin="http://localhost:3000"), 403),
    "a page without an origin": (post({"data": [ROW]}, "/predict", Origin="null"), 403),
    "an unknown path": (request("GET", "/admin"), 404),
    "a path that climbs": (request("GET", "/v2/../../etc/passwd"), 404),
    "a path that climbs, encoded": (request("GET", "/v2/%2e%2e/%2e%2e/etc/passwd"), 404),
    "another model": (post({"inputs": []}, "/v2/models/other/infer"), 404),
    "another version": (post({"inputs": []}, f"{MODEL}/versions/9/infer"), 404),
    "the repository of another server": (post({}, "/v2/repository/index"), 404),
    "a wrong method": (request("DELETE", MODEL), 405),
    "a GET of infer": (request("GET", INFER), 405),
    "a preflight": (request("OPTIONS", INFER, fields={"Access-Control-Request-Method": "POST"}), 405),
    "a TRACE": (request("TRACE", "/v2"), 405),
    "a compressed body": (post(b"\x1f\x8b\x08\0\0", Content_Encoding="gzip"), 415),
    "a twice compressed body": (post(b"\x1f\x8b", Content_Encoding="identity, gzip"), 415),
    "a GET with a large body": (request("GET", "/v2", b"a" * 5000), 413),
    "JSON past the limit": (post(b" " * 70000), 413),
    "JSON of petabytes": (request("POST", INFER, fields={"Content-Length": "999999999999999"}), 413),
    "binary past what the model takes": (
        request("POST", INFER, b" " * 9000, {"Inference-Header-Content-Length": "100"}), 413,
    ),
    "a header length past the limit": (
        request("POST", INFER, fields={"Content-Length": "99999", "Inference-Header-Content-Length": "99999"}), 413,
    ),
}  # fmt: skip

BODIES = {
    "an empty body": (post(b""), "empty"),
    "no JSON": (post(b"hello"), "not JSON"),
    "half of JSON": (post(b'{"inputs":['), "not JSON"),
    "two JSON texts": (post(b"{}{}"), "after its JSON"),
    "a NUL after JSON": (post(b"{}\0"), "after its JSON"),
    "UTF-16": (post('{"inputs":[]}'.encode("utf-16")), "UTF-8"),
    "a byte order mark": (post(b"\xef\xbb\xbf{}"), "not JSON"),
    "broken UTF-8": (post(b'{"id":"\xff","inputs":[]}'), "UTF-8"),
    "a list": (post([]), "object"),
    "a number": (post(1), "object"),
    "null": (post(None), "object"),
    "30000 lists": (post(DEEP), "deep"),
    "30000 objects": (post(b'{"a":' * 10000 + b"1" + b"}" * 10000), "deep"),
    "an integer of 5000 digits": (post(b'{"inputs":' + b"9" * 5000 + b"}"), ""),
    "NaN": (post(b'{"inputs":[NaN]}'), "finite"),
    "Infinity": (post(b'{"inputs":[-Infinity]}'), "finite"),
    "a key twice": (post(b'{"inputs":[],"inputs":[]}'), "twice"),
    "an unknown key": (post({"inputs": [], "output": []}), "`output`"),
    "no inputs": (post({}), "`inputs`"),
    "empty inputs": (post({"inputs": []}), "`inputs`"),
    "inputs as an object": (post({"inputs": {"x": ROW}}), "`inputs`"),
    "an input that is a number": (post({"inputs": [1]}), "object"),
    "an input twice": (post({"inputs": [X, X]}), "twice"),
    "1000 inputs": (post({"inputs": [{"name": str(i)} for i in range(1000)]}), "1000 inputs"),
    "an unknown input": (one_input(name="y"), "`y`"),
    "an input with a list as name": (one_input(name=["x"]), "`name`"),
    "an input without a name": (one_input(name=...), "`name`"),
    "an endless name": (one_input(name="n" * 50000), "..."),
    "no shape": (one_input(shape=...), "`shape`"),
    "a shape that is a number": (one_input(shape=64), "`shape`"),
    "a negative shape": (one_input(shape=[-1, 64]), "-1"),
    "two negative sizes": (one_input(shape=[-1, -64]), "-1"),
    "a shape of zero": (one_input(shape=[0, 64], data=[]), "size 0"),
    "a shape past the maximum": (one_input(shape=[33, 64]), "33"),
    "a shape whose product overflows": (one_input(shape=[2**62, 64]), str(2**62)),
    "a shape of 2^64": (one_input(shape=[2**64, 64]), str(2**64)),
    "a shape with a fraction": (one_input(shape=[1.0, 64]), "integers"),
    "a shape with true": (one_input(shape=[True, 64]), "integers"),
    "a shape with a text": (one_input(shape=["1", 64]), "integers"),
    "a shape with null": (one_input(shape=[None, 64]), "integers"),
    "too many dimensions": (one_input(shape=[1] * 1000), "dimensions"),
    "no dimension": (one_input(shape=[]), "dimensions"),
    "no datatype": (one_input(datatype=...), "`datatype`"),
    "a wrong datatype": (one_input(datatype="INT64"), "float32"),
    "an unknown datatype": (one_input(datatype="FP99"), "`datatype`"),
    "a datatype that is a list": (one_input(datatype=["FP32"]), "`datatype`"),
    "no data": (one_input(data=...), "`data`"),
    "null data": (one_input(data=None), "list"),
    "data that is a text": (one_input(data="a" * 64), "list"),
    "data that is an object": (one_input(data={str(i): 1 for i in range(64)}), "list"),
    "too little data": (one_input(data=ROW[1:]), "63"),
    "too much data": (one_input(data=[*ROW, 1]), "65"),
    "a text among numbers": (one_input(data=[*ROW[1:], "1"]), "a string"),
    "null among numbers": (one_input(data=[*ROW[1:], None]), "null"),
    "true among numbers": (one_input(data=[*ROW[1:], True]), "boolean"),
    "a list among numbers": (one_input(data=[*ROW[1:], [1]]), "list"),
    "numbers among lists": (one_input(data=[ROW, 1]), "list"),
    "ragged lists": (one_input(shape=[2, 64], data=[ROW, ROW[1:]]), "63"),
    "data nested too deep": (one_input(data=[[[ROW]]]), "nested"),
    "a number past float32": (one_input(data=[*ROW[1:], 1e39]), "too large"),
    "a number past float64": (
        post(b'{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","data":[' + b"1e400," * 63 + b"0]}]}"), "finite",
    ),
    "an integer past float64": (one_input(data=[*ROW[1:], 10**400]), "too large"),
    "parameters that are a list": (one_input(parameters=[]), "`parameters`"),
    "shared memory": (one_input(parameters={"shared_memory_region": "r"}), "shared_memory_region"),
    "a binary size without a header": (one_input(data=..., parameters={"binary_data_size": 256}), "Inference-Header"),
    "an unknown key of an input": (one_input(dtype="FP32"), "`dtype`"),
    "an id that is a number": (post({"id": 5, "inputs": [X]}), "`id`"),
    "an id of 2000 letters": (post({"id": "a" * 2000, "inputs": [X]}), "`id`"),
    "binary of a false size": (binary(size=252), "252"),
    "binary of a negative size": (binary(size=-1), "number of bytes"),
    "binary of a true size": (binary(size=True), "number of bytes"),
    "binary of a huge size": (binary(size=2**63), "are left"),
    "binary of a textual size": (binary(size="256"), "number of bytes"),
    "binary with bytes left over": (binary(data=b"\0" * 260), "4 bytes"),
    "binary cut short": (binary(data=b"\0" * 255), "255"),
    "binary with an unknown key": (binary(dtype=1), "`dtype`"),
    "a header length of zero": (binary(length=0), "empty"),
    "a header length past the body": (binary(length=9999), "9999"),
    "a header length inside the JSON": (binary(length=20), "not JSON"),
    "predict without data": (post({}, "/predict"), "data"),
    "predict of a text": (post({"data": "hello"}, "/predict"), "x"),
    "predict of null": (post({"data": None}, "/predict"), "x"),
    "predict of no rows": (post({"data": []}, "/predict"), "x"),
    "predict without a batch": (post({"data": ROW}, "/predict"), "dimensions"),
    "predict of ragged rows": (post({"data": [ROW, []]}, "/predict"), "0"),
    "predict of empty rows": (post({"data": [[], []]}, "/predict"), "size 0"),
    "predict of an unknown name": (post({"data": {"y": [ROW]}}, "/predict"), "`y`"),
    "predict of no name": (post({"data": {}}, "/predict"), "missing input"),
    "predict of a name twice": (post(b'{"data":{"x":[],"x":[]}}', "/predict"), "twice"),
    "predict with a key too many": (post({"data": [ROW], "model": "x"}, "/predict"), "`model`"),
    "predict of too many rows": (post({"data": [[0] * 64] * 33}, "/predict"), "33"),
    "predict of 30000 lists": (post(b'{"data":' + b"[" * 30000 + b"]" * 30000 + b"}", "/predict"), "deep"),
    "predict of 40 lists": (post(b'{"data":' + b"[" * 40 + b"]" * 40 + b"}", "/predict"), "deep"),
}  # fmt: skip


def assert_still_answers(live: LiveServer) -> None:
    with live.client() as client:
        client.send(GOOD)
        reply = client.read()
    assert reply.status == 200
    assert len(reply.json()["outputs"][0]["data"]) == 10


def assert_told(client: Client, status: int) -> str:
    reply = client.read()
    assert reply.status == status, reply.body
    assert reply.fields["content-type"] == "application/json"
    assert reply.error
    assert "access-control-allow-origin" not in reply.fields
    return reply.error


@pytest.mark.parametrize("name", FRAMING)
def test_a_stream_that_can_be_read_in_two_ways_is_refused_and_closed(
    live: LiveServer, name: str
) -> None:
    data, status = FRAMING[name]
    with live.client() as client:
        client.send(data)
        assert_told(client, status)
        assert client.is_closed()
    assert_still_answers(live)


@pytest.mark.parametrize("name", ADDRESSED)
def test_a_request_that_is_not_admitted_is_told_why(live: LiveServer, name: str) -> None:
    data, status = ADDRESSED[name]
    with live.client() as client:
        client.send(data)
        assert_told(client, status)
    assert_still_answers(live)


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_the_model_does_not_take_is_told_why(live: LiveServer, name: str) -> None:
    data, said = BODIES[name]
    with live.client() as client:
        client.send(data)
        assert said in assert_told(client, 400)
        client.send(GOOD)
        assert client.read().status == 200, "the same connection goes on"
    assert_still_answers(live)


def test_nothing_of_all_this_was_a_fault_of_ours(live: LiveServer) -> None:
    with live.client() as client:
        for data, _ in BODIES.values():
            client.send(data)
            assert client.read().status == 400
        text = client.ask("GET", "/metrics").body.decode()
    assert 'code="400"' in text
    assert 'code="5' not in text, "every one of them is the client's mistake"
