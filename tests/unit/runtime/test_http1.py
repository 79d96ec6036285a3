"""Heads, chunks and framing without sockets: the pieces in which bytes come do not matter."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import BadRequest
from runtime.framing import IN_BODY, IN_HEAD, Admission, Admissions, BodyBudget, RequestReader
from runtime.http1 import JSON_TYPE, Answer, ChunkedBody, Head, parse_head, wire


def head(*lines: str) -> Head:
    return parse_head("\r\n".join(lines).encode("latin-1"))


def test_a_head_is_read_into_its_parts() -> None:
    found = head("POST /v2/x?y=1 HTTP/1.1", "Host: localhost:8000", "Content-Length: 12", "A:b\t")
    assert (found.method, found.path, found.authority) == ("POST", "/v2/x", "localhost:8000")
    assert (found.length, found.keep_alive, found.minor) == (12, True, 1)
    assert found.fields["a"] == "b"


def test_an_absolute_target_names_the_host() -> None:
    found = head("GET http://localhost:1/a/b#c HTTP/1.1", "Host: other")
    assert (found.path, found.authority) == ("/a/b", "localhost:1")
    assert head("GET http://localhost HTTP/1.1", "Host: other").path == "/"


def test_fields_that_may_repeat_are_joined() -> None:
    assert head("GET / HTTP/1.1", "Host: a", "Accept: b", "Accept: c").fields["accept"] == "b, c"


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (("GET / HTTP/1.1", "Host: a"), True),
        (("GET / HTTP/1.1", "Host: a", "Connection: Close"), False),
        (("GET / HTTP/1.1", "Host: a", "Connection: x, close"), False),
        (("GET / HTTP/1.0",), False),
        (("GET / HTTP/1.0", "Connection: Keep-Alive"), True),
    ],
)
def test_keeping_the_connection_depends_on_version_and_wish(
    lines: tuple[str, ...], kept: bool
) -> None:
    assert head(*lines).keep_alive is kept


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("GET /",), "first line"),
        (("GET / HTTP/1.1",), "`Host`"),
        (("GET / HTTP/2.0", "Host: a"), "HTTP/1.0 and HTTP/1.1"),
        (("GET ftp://a/ HTTP/1.1", "Host: a"), "neither a path nor a URL"),
        (("GET / HTTP/1.1", "Host: a", "A : b"), "not a token"),
        (("GET / HTTP/1.1", "Host: a", "A: \x7f"), "control character"),
        (("GET / HTTP/1.1", "Host: a", "Content-Length: 1_0"), "number of bytes"),
        (("GET / HTTP/1.1", "Host: a", "Content-Length: \xb2"), "number of bytes"),
    ],
)
def test_a_head_in_doubt_is_refused(lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        head(*lines)
    assert caught.value.status == 400


BODY = b"".join(bytes([value]) for value in range(256)) * 3
CHUNKED = b"100\r\n" + BODY[:256] + b"\r\n01fF\r\n" + BODY[256:767] + b"\r\n1\r\n\xff\r\n0\r\n\r\n"


@given(st.lists(st.integers(0, len(CHUNKED) - 1), max_size=12))
def test_a_chunked_body_does_not_depend_on_how_it_arrives(cuts: list[int]) -> None:
    decoder = ChunkedBody(limit=1000)
    stream = CHUNKED + b"next"
    rest = None
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(CHUNKED)], strict=True):
        rest = decoder.feed(stream[start:stop])
    assert bytes(decoder.data) == BODY
    assert rest == b""


def test_what_follows_a_chunked_body_is_given_back() -> None:
    assert ChunkedBody(limit=1000).feed(CHUNKED + b"next") == b"next"


def test_a_chunked_body_past_its_limit_is_refused_before_it_is_kept() -> None:
    with pytest.raises(BadRequest, match="larger than 700 bytes") as caught:
        ChunkedBody(700, "send less").feed(CHUNKED)
    assert (caught.value.status, caught.value.hint) == (413, "send less")


def admit(found: Head) -> Admission:
    refusal = Answer(404, b"{}") if found.path == "/refused" else None
    return Admission(found, "test", lambda body: Answer(200, bytes(body)), 1000, refusal)


def read_all(stream: bytes, cuts: list[int]) -> list[tuple[str, bytes]]:
    reader = RequestReader(Admissions(admit), BodyBudget(10_000))
    found = []
    bounds = [0, *sorted(cuts), len(stream)]
    for start, stop in pairwise(bounds):
        if start == stop:
            continue
        reader.feed(stream[start:stop])
        while (request := reader.next()) is not None:
            found.append((request[0].head.path, bytes(request[1])))
            reader.release()
    return found


PIPELINE = (
    b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
    b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nGET /"
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    b"POST /refused HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n\r\n\r"
    b"GET /d HTTP/1.1\r\nHost: h\r\n\r\n"
)


@given(st.lists(st.integers(0, len(PIPELINE)), max_size=8))
def test_requests_do_not_depend_on_how_they_arrive(cuts: list[int]) -> None:
    assert read_all(PIPELINE, cuts) == [
        ("/a", b""), ("/b", b"GET /"), ("/c", b"abc"), ("/refused", b"\r\n\r"), ("/d", b""),
    ]  # fmt: skip


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_no_stream_raises_anything_but_a_refusal(stream: bytes, cuts: list[int]) -> None:
    for lead in (b"", b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"):
        try:
            read_all(lead + stream, [cut for cut in cuts if cut <= len(lead + stream)])
        except BadRequest:
            continue  # anything else fails the test


def test_the_stage_tells_what_is_waited_for() -> None:
    reader = RequestReader(Admissions(admit), BodyBudget(100))
    reader.feed(b"POST /b HT")
    assert reader.next() is None
    assert reader.stage == IN_HEAD
    reader.feed(b"TP/1.1\r\nHost: h\r\nContent-Length: 50\r\nExpect: 100-continue\r\n\r\n")
    assert reader.next() is None
    assert (reader.stage, reader.wants_continue, reader.expected_bytes) == (IN_BODY, True, 50)


def test_bodies_of_all_connections_share_one_budget() -> None:
    budget = BodyBudget(60)
    start = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\n"
    readers = [RequestReader(Admissions(admit), budget) for _ in range(2)]
    for reader in readers:
        reader.feed(start)
        reader.next()
    readers[0].feed(b"a" * 40)
    with pytest.raises(BadRequest) as caught:
        readers[1].feed(b"a" * 40)
    assert caught.value.status == 503
    readers[0].release()
    readers[1].feed(b"a" * 40)


def test_repeated_heads_are_remembered_and_bounded() -> None:
    asked = []

    def count(found: Head) -> Admission:
        asked.append(found.path)
        return admit(found)

    reader = RequestReader(Admissions(count), BodyBudget(100))
    for turn in range(600):
        reader.feed(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        reader.next()
        if turn < 300:
            reader.feed(f"GET /{turn} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            reader.next()
    assert asked.count("/a") < 5


def test_an_answer_says_whether_the_connection_lives_on() -> None:
    answer = Answer(200, b"{}")
    kept = wire(answer, keep_alive=True, minor=1, with_body=True)
    assert kept.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 2\r\n\r\n{}" in kept
    assert b"Connection" not in kept
    assert b"Connection: close" in wire(answer, keep_alive=False, minor=1, with_body=True)
    assert b"Connection: keep-alive" in wire(answer, keep_alive=True, minor=0, with_body=True)
    assert wire(answer, keep_alive=True, minor=1, with_body=False).endswith(b": 2\r\n\r\n")
    other = Answer(405, b"", JSON_TYPE + b"Allow: GET\r\n")
    assert b"Allow: GET\r\n" in wire(other, keep_alive=True, minor=1, with_body=True)
