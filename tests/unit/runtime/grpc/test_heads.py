"""Which header fields of HTTP/2 are a request, and what gRPC's fields say."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import BadRequest
from runtime.grpc import hpack, status
from runtime.grpc.heads import read_request
from runtime.grpc.status import Failure

PSEUDO = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b":authority", b"localhost:8000"),
]
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


def read(fields: Any, *, oversized: bool = False) -> Any:
    return read_request(list(fields), oversized=oversized)


def replaced(name: bytes, value: bytes | None) -> list[tuple[bytes, bytes]]:
    fields = [(key, value if key == name else old) for key, old in PSEUDO]
    return [(key, text) for key, text in fields if text is not None]


def test_a_call_is_told_from_a_plain_request():
    call = read([*PSEUDO, *GRPC, (b"grpc-timeout", b"250m")])
    assert call.is_grpc
    assert call.error is None
    assert call.timeout_s == 0.25
    assert call.head.path == "/inference.GRPCInferenceService/ModelInfer"
    assert call.head.authority == "localhost:8000"
    plain = read([*replaced(b":path", b"/v2?x=1"), (b"content-length", b"7"), (b"cookie", b"a"),
                  (b"cookie", b"b"), (b"x", b"1"), (b"x", b"2")])  # fmt: skip
    assert not plain.is_grpc
    assert (plain.head.path, plain.head.length) == ("/v2", 7)
    assert plain.head.fields["cookie"] == "a; b"
    assert plain.head.fields["x"] == "1, 2"
    for kind in (b"application/grpc+proto", b"application/grpc; charset=utf-8"):
        assert read([*PSEUDO, (b"content-type", kind), (b"te", b"trailers")]).error is None


def test_the_host_field_stands_for_a_missing_authority():
    fields = replaced(b":authority", None)
    assert read([*fields, (b"host", b"h:1")]).error.status == 415
    found = read([*replaced(b":path", b"/v2")[:3], (b"host", b"h:1")])
    assert found.head.authority == "h:1"
    found = read([*replaced(b":path", b"/v2"), (b"host", b"LOCALHOST:8000")])
    assert found.head.authority == "localhost:8000"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([*PSEUDO, (b"Upper", b"x")], "not a token in lower case"),
        ([*PSEUDO, (b"", b"x")], "not a token"),
        ([*PSEUDO, (b"a b", b"x")], "not a token"),
        ([*PSEUDO, (b"a", b"x\r\ny: z")], "control character"),
        ([*PSEUDO, (b"a", b"x\0")], "control character"),
        ([*PSEUDO, (b"a", b"x\n")], "control character"),
        ([*PSEUDO, (b"a", b" x")], "blank at its end"),
        ([*PSEUDO, (b"a", b"x\t")], "blank at its end"),
        ([(b"a", b"b"), *PSEUDO], "follows another field"),
        ([*PSEUDO, (b":path", b"/")], "unknown, or came twice"),
        ([*PSEUDO, (b":status", b"200")], "unknown, or came twice"),
        ([*PSEUDO, (b":protocol", b"websocket")], "unknown, or came twice"),
        (replaced(b":method", None), "no `:method`"),
        (replaced(b":method", b"PO ST"), "no `:method`"),
        (replaced(b":path", None), "needs a `:path` and a `:scheme`"),
        (replaced(b":path", b""), "needs a `:path` and a `:scheme`"),
        (replaced(b":path", b"v2"), "needs a `:path` and a `:scheme`"),
        (replaced(b":path", b"/a b"), "needs a `:path` and a `:scheme`"),
        (replaced(b":path", b"http://x/"), "needs a `:path` and a `:scheme`"),
        (replaced(b":scheme", None), "needs a `:path` and a `:scheme`"),
        (replaced(b":scheme", b"gopher"), "needs a `:path` and a `:scheme`"),
        (replaced(b":authority", None), "no `:authority`"),
        (replaced(b":authority", b""), "no `:authority`"),
        ([*PSEUDO, (b"host", b"elsewhere")], "are not the same"),
        ([*PSEUDO, (b"connection", b"close")], "HTTP/2 has no header field `connection`"),
        ([*PSEUDO, (b"transfer-encoding", b"chunked")], "no header field `transfer-encoding`"),
        ([*PSEUDO, (b"upgrade", b"h2c")], "no header field `upgrade`"),
        ([*PSEUDO, (b"keep-alive", b"5")], "no header field `keep-alive`"),
        ([*PSEUDO, (b"te", b"gzip")], "can only be `trailers`"),
        ([*PSEUDO, (b"content-length", b"1"), (b"content-length", b"2")], "came twice"),
        ([*PSEUDO, (b"content-length", b"-1")], "not a number of bytes"),
        ([*PSEUDO, (b"authorization", b"a"), (b"authorization", b"b")], "came twice"),
    ],
)  # fmt: skip
def test_refuses_a_malformed_header(fields, said):
    found = read(fields)
    assert found.head is None
    assert found.error.status == 400
    assert said in found.error.message


def test_refuses_too_much():
    many = [*PSEUDO, *[(b"a%d" % number, b"") for number in range(101)]]
    assert read(many).error.status == 431
    assert read(PSEUDO, oversized=True).error.status == 431


def test_answers_with_a_status_of_http_who_does_not_speak_grpc():
    assert read([*PSEUDO, (b"content-type", b"application/json")]).error.status == 415
    assert read(PSEUDO).error.status == 415
    health = replaced(b":path", b"/grpc.health.v1.Health/Check")
    assert read(health).error.status == 415
    assert read([*PSEUDO, (b"content-type", b"application/grpc+json")]).error.status == 415
    assert read([*PSEUDO, (b"content-type", b"application/grpc-web")]).error.status == 415
    assert read([*replaced(b":method", b"GET"), *GRPC]).error.status == 405
    assert read([(b":method", b"CONNECT"), (b":authority", b"x:1")]).error.status == 405


@pytest.mark.parametrize(
    ("fields", "said", "http_status"),
    [
        (GRPC[:1], "`te: trailers` is missing", 400),
        ([*GRPC, (b"grpc-encoding", b"gzip")], "`grpc-encoding: gzip` is not served", 501),
        ([*GRPC, (b"grpc-timeout", b"soon")], "up to eight digits", 400),
        ([*GRPC, (b"grpc-timeout", b"123456789S")], "up to eight digits", 400),
        ([*GRPC, (b"grpc-timeout", b"1")], "up to eight digits", 400),
        ([*GRPC, (b"grpc-timeout", b"-1S")], "up to eight digits", 400),
    ],
)
def test_answers_with_a_status_of_grpc_who_does(fields, said, http_status):
    found = read([*PSEUDO, *fields])
    assert found.is_grpc
    assert said in found.error.message
    assert found.error.status == http_status


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"2H", 7200), (b"3M", 180), (b"5S", 5), (b"20m", 0.02), (b"7u", 7e-6), (b"9n", 9e-9),
     (b"99999999S", 99999999)],
)  # fmt: skip
def test_reads_every_unit_of_time(text, seconds):
    assert status.timeout_s(text) == pytest.approx(seconds)


@given(st.integers(0, 16), st.text(max_size=2000))
def test_any_message_is_written_as_the_specification_has_it(code, message):
    fields = dict(hpack.Decoder().decode(status.only_trailers(Failure(code, message))))
    assert fields[b":status"] == b"200"
    assert fields[b"grpc-status"] == b"%d" % code
    assert fields[b"grpc-accept-encoding"] == b"identity"
    written = fields[b"grpc-message"]
    assert all(32 <= byte < 127 for byte in written)
    told = unquote(written.decode("ascii"), errors="strict")
    assert message.encode("utf-8", "replace").decode("utf-8").startswith(told)
    if len(message.encode("utf-8", "replace")) <= 1000:
        assert told == message.encode("utf-8", "replace").decode("utf-8")


def test_every_status_of_http_has_a_code():
    def code(http_status: int) -> int:
        return status.failure(BadRequest("m", http_status, "h")).code

    codes = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 413: 8, 415: 3, 421: 7, 429: 8, 500: 13,
             501: 12, 503: 14, 504: 4, 418: 2}  # fmt: skip
    assert {http: code(http) for http in codes} == codes
    assert status.failure(BadRequest("what", 400, "do")).message == "what (do)"
