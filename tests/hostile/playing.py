"""Plays each hostile request against a live server, and checks what must hold for its answer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tests.hostile import corpus_grpc, corpus_http, corpus_http2, corpus_json
from tests.hostile.corpus_http2 import BLOCK, frame
from tests.hostile.http2_client import Ending, Http2Client
from tests.unit.runtime.live_server import Client

TIMEOUT_S = 15.0
CALM = 11

HTTP1_TABLES: dict[str, dict[str, Any]] = {
    "framing": corpus_http.FRAMING,
    "addressed": corpus_http.ADDRESSED,
    "bodies": corpus_json.BODIES,
}
HTTP2_TABLES: dict[str, dict[str, Any]] = {
    "faults": corpus_http2.FAULTS,
    "openings": corpus_http2.OPENINGS,
    "floods": corpus_http2.FLOODS,
    "resets": corpus_http2.RESETS,
    "heads": corpus_http2.HEADS,
    "bombs": corpus_http2.BOMBS,
    "calls": corpus_grpc.CALLS,
}
HTTP1 = [(table, name) for table, cases in HTTP1_TABLES.items() for name in cases]
HTTP2 = [(table, name) for table, cases in HTTP2_TABLES.items() for name in cases]


def play(port: int, table: str, name: str) -> None:
    """Send one hostile request and check its answer."""
    if table in HTTP1_TABLES:
        _play_http1(port, table, name)
    else:
        _play_http2(port, table, name)


def wire_bytes(table: str, name: str) -> bytes:
    """Return what a request puts on the wire, which no other one does."""
    if table in HTTP1_TABLES:
        sent: bytes = HTTP1_TABLES[table][name][0]
        return sent
    if table == "openings":
        return corpus_http2.OPENINGS[name][0]
    if table == "floods":
        return corpus_http2.FLOODS[name]
    if table == "heads":
        return frame(1, 5, 1, corpus_http2.encode(corpus_http2.HEADS[name][0]))
    if table == "bombs":
        return b"".join(corpus_http2.BOMBS[name][:2])
    data: bytes = HTTP2_TABLES[table][name][0]
    return data


def ask_well(port: int) -> None:
    """Ask what has to be answered, over both protocols."""
    with Client(port, TIMEOUT_S) as client:
        client.send(corpus_http.GOOD)
        reply = client.read()
    assert reply.status == 200, reply.body
    assert len(reply.json()["outputs"][0]["data"]) == 10
    with Http2Client(port, timeout_s=TIMEOUT_S) as client2:
        client2.send(corpus_grpc.GOOD_CALL)
        ending = client2.ending()
    assert ending.grpc == (0, ""), ending
    assert len(ending.body) > 40


def _play_http1(port: int, table: str, name: str) -> None:
    data, expected = HTTP1_TABLES[table][name]
    with Client(port, TIMEOUT_S) as client:
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have read enough
            client.send(data)
        reply = client.read()
        assert reply.status == (400 if table == "bodies" else expected), reply.body
        assert reply.fields["content-type"] == "application/json"
        assert reply.error
        if table == "bodies":
            assert str(expected) in reply.error
        if table == "framing":
            assert client.is_closed()


def _play_http2(port: int, table: str, name: str) -> None:
    if table == "openings":
        early, code = corpus_http2.OPENINGS[name]
        with Http2Client(port, timeout_s=TIMEOUT_S, early=early) as client:
            ending = client.ending(until_away=True)
            assert (ending.away, bool(ending.words)) == (code, True), ending
            assert client.is_closed()
        return
    with Http2Client(port, timeout_s=TIMEOUT_S) as client:
        if table == "faults":
            data, code, said = corpus_http2.FAULTS[name]
            _assert_away(client, data, code, said)
        elif table == "floods":
            _assert_away(client, corpus_http2.FLOODS[name], CALM, "")
        elif table == "resets":
            data, code = corpus_http2.RESETS[name]
            client.send(data)
            ending = client.ending()
            assert (ending.reset, ending.away) == (code, None), ending
            _assert_goes_on(client)
        elif table == "heads":
            fields, status = corpus_http2.HEADS[name]
            client.send(frame(1, 5, 1, corpus_http2.encode(fields)))
            _assert_refused(client.ending(), status)
            _assert_goes_on(client)
        elif table == "bombs":
            fuse, bomb, status = corpus_http2.BOMBS[name]
            client.send(frame(1, 5, 1, BLOCK + fuse))
            assert client.ending().status in (403, 404, 431)
            client.send(frame(1, 5, 3, bomb))
            _assert_refused(client.ending(3), status)
        else:
            data, code, said = corpus_grpc.CALLS[name]
            client.send(data)
            ending = client.ending()
            assert ending.grpc[0] == code, ending
            assert ending.grpc[1]
            assert said in ending.grpc[1], ending
            assert ending.status == 200
            _assert_goes_on(client)


def _assert_away(client: Http2Client, data: bytes, code: int, said: str) -> None:
    client.send(data)
    ending = client.ending(until_away=True)
    assert ending.away == code, ending
    assert said in ending.words
    assert ending.words
    assert client.is_closed()


def _assert_refused(ending: Ending, status: int) -> None:
    assert ending.status == status, ending
    assert ending.fields["content-type"] == "application/json"
    assert ending.error


def _assert_goes_on(client: Http2Client) -> None:
    """The same connection answers a good call."""
    call = corpus_grpc.GOOD_CALL.replace(b"\0\0\0\1", b"\0\0\0\7", 1)
    head_bytes = int.from_bytes(call[:3], "big") + 9
    rest = call[head_bytes:]
    client.send(call[:head_bytes] + rest.replace(b"\0\0\0\1", b"\0\0\0\7", 1))
    assert client.ending(7).grpc == (0, "")
