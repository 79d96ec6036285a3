"""Clients by the hundred that send slowly, half, or nothing: others are answered meanwhile."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from runtime.grpc import frames
from tests.hostile import corpus_grpc, corpus_http
from tests.hostile.corpus_http import GOOD, INFER
from tests.hostile.corpus_http2 import OPEN_CALL
from tests.hostile.playing import ask_well
from tests.unit.runtime.live_server import Client, request

if TYPE_CHECKING:
    from collections.abc import Iterator

HELLO = frames.PREFACE + frames.settings()
MANY = 200
# Longer than any limit of the server's, so that only a hang takes it.
PATIENCE_S = 60.0
PROMPT_S = 5.0

# What each of the many has sent before it slows down, and what it goes on with, a byte at a time.
SLOW = {
    "heads": (
        (b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nA: ", b"a" * 1000),
        (HELLO + OPEN_CALL[:20], OPEN_CALL[20:]),
    ),
    "bodies": (
        (request("POST", INFER, fields={"Content-Length": "9000"}), b" " * 1000),
        (HELLO + OPEN_CALL + corpus_grpc.frame(0, 0, 1, b"\0\0\0\2\0"), bytes(1000)),
    ),
}


@pytest.fixture
def many() -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        opened: list[socket.socket] = []
        stack.callback(lambda: [one.close() for one in opened])
        yield opened


def _trickle(
    clients: dict[socket.socket, Iterator[int]], heard: dict[socket.socket, bytes]
) -> None:
    """Send one byte of each in turn until the server has closed them all."""
    until = time.monotonic() + PATIENCE_S
    while clients:
        assert time.monotonic() < until, f"{len(clients)} of the slow clients are still connected"
        for client in [item for item in clients if _has_ended(item, heard)]:
            del clients[client]
        for client, rest in clients.items():
            with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
                client.send(bytes((next(rest, 32),)))
        time.sleep(0.2)


def _has_ended(client: socket.socket, heard: dict[socket.socket, bytes]) -> bool:
    if not select.select([client], [], [], 0)[0]:
        return False
    try:
        data = client.recv(1 << 16)
    except ConnectionResetError:
        return True
    heard[client] = heard.get(client, b"") + data
    return not data


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("part", SLOW)
def test_by_the_hundred_they_are_ended_and_health_answers_meanwhile(
    port: int, many: list[socket.socket], part: str
) -> None:
    clients: dict[socket.socket, Any] = {}
    for number in range(MANY):
        first, rest = SLOW[part][number % 2]
        client = socket.create_connection(("127.0.0.1", port), timeout=PROMPT_S)
        many.append(client)
        client.sendall(first)
        clients[client] = iter(rest)
    heard: dict[socket.socket, bytes] = {}
    asked = 0
    sending = threading.Thread(target=_trickle, args=(clients, heard))
    sending.start()
    try:
        while sending.is_alive():
            # the clients' own time limit is what fails here, not a figure
            with Client(port, PROMPT_S) as good:
                assert good.ask("GET", "/v2/health/ready").status == 200
                good.send(GOOD)
                assert good.read().status == 200
            asked += 1
            sending.join(0.1)
    finally:
        sending.join(PATIENCE_S)
    assert not clients, "none of them may stay"
    assert asked >= 3
    told = [heard.get(client, b"") for client in many]
    assert all(b"408" in said for said in told[::2])
    if part == "heads":
        assert all(b"did not arrive in time" in said for said in told[1::2])
    ask_well(port)


HALVES = {
    "nothing": b"",
    "half a first line": b"GET /v2 HT",
    "half a head": b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    "half a body": request("POST", INFER, fields={"Content-Length": "500"}) + b'{"inputs":',
    "half a chunk": corpus_http.chunked(b"9\r\nabc"),
    "half a preface": frames.PREFACE[:10],
    "a preface alone": frames.PREFACE,
    "half a frame": HELLO + OPEN_CALL[:30],
    "a header without an end": HELLO + corpus_grpc.frame(1, 0, 1, b"\x82"),
    "half a call": HELLO + OPEN_CALL,
    "half a message": HELLO + corpus_grpc.GOOD_CALL[:-60],
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HALVES)
def test_half_closed_in_the_middle_it_is_closed_at_once(port: int, name: str) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=PROMPT_S) as client:
            client.sendall(HALVES[name])
            client.shutdown(socket.SHUT_WR)
            said = b""
            with suppress(ConnectionResetError):
                while data := client.recv(1 << 16):
                    said += data
        assert b"HTTP/1.1 2" not in said
        assert b"logits" not in said
    ask_well(port)


@pytest.mark.timeout(60)
def test_half_closed_after_a_request_it_is_answered(port: int) -> None:
    with Client(port, PROMPT_S) as client:
        client.send(GOOD)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read().status == 200
        assert client.is_closed()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HALVES)
def test_cut_in_the_middle_by_the_hundred_nothing_is_kept(port: int, name: str) -> None:
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", port), timeout=PROMPT_S) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            client.sendall(HALVES[name])
    ask_well(port)


@pytest.mark.timeout(60)
def test_more_connections_than_allowed_are_turned_away_until_others_go(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(400):
            opened = socket.create_connection(("127.0.0.1", port), timeout=PROMPT_S)
            stack.callback(opened.close)
            opened.settimeout(PROMPT_S)
        # the last is told so, or cut
        said = b""
        with suppress(ConnectionResetError):
            while data := opened.recv(4096):
                said += data
        assert said == b"" or b" 503 " in said.partition(b"\r\n")[0]
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with suppress(AssertionError, EOFError, ConnectionResetError, BrokenPipeError):
            ask_well(port)
            return
    raise AssertionError("the server never answers again")
