"""HTTP/2 without I/O: what the `h2` library sends and understands, and what an attacker sends."""

from __future__ import annotations

import struct
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.grpc import frames, outgoing
from runtime.grpc.frames import Fault
from runtime.grpc.hpack import encode
from runtime.grpc.http2 import Http2
from tests.hostile.corpus_http2 import FAULTS
from tests.unit.runtime.grpc.http2_side import (
    BLOCK,
    FIELDS,
    HELLO,
    Clock,
    Heard,
    Side,
    frame,
    parse,
    request,
)

# --- with a client that knows the protocol


def make_pair() -> tuple[h2.connection.H2Connection, Heard, Http2]:
    config = h2.config.H2Configuration(client_side=True, header_encoding=None)
    client = h2.connection.H2Connection(config)
    heard = Heard()
    server = Http2(heard, Clock())
    client.initiate_connection()
    return client, heard, server


def exchange_bytes(client: h2.connection.H2Connection, server: Http2) -> list[Any]:
    """Let both talk until nobody has anything to say."""
    events = []
    while True:
        sent = client.data_to_send()
        server.receive(sent)
        answered = server.take()
        if not sent and not answered:
            return events
        events += client.receive_data(answered)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_client_of_the_library_gets_every_answer_whatever_the_order_and_windows(data):
    client, heard, server = make_pair()
    if data.draw(st.booleans()):
        small = data.draw(st.sampled_from([0, 1, 700, 1 << 20]))
        client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: small})
    exchange_bytes(client, server)
    bodies: dict[int, bytes] = {}
    wanted: dict[int, bytes] = {}
    got: dict[int, bytes] = {}
    trailers: dict[int, Any] = {}

    def settle() -> None:
        for event in exchange_bytes(client, server):
            if isinstance(event, h2.events.DataReceived):
                got[event.stream_id] = got.get(event.stream_id, b"") + event.data
                client.increment_flow_control_window(max(event.flow_controlled_length, 1))
            elif isinstance(event, h2.events.TrailersReceived):
                trailers[event.stream_id] = event.headers

    for _ in range(data.draw(st.integers(1, 8))):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, [*FIELDS, (b"x-n", b"%d" % (stream % 3))])
        body = b"q" * data.draw(st.sampled_from([0, 5, 16384, 40000]))
        for at in range(0, len(body), 16000):
            client.send_data(
                stream, body[at : at + 16000], pad_length=data.draw(st.sampled_from([None, 3]))
            )
        client.end_stream(stream)
        bodies[stream] = body
        if data.draw(st.booleans()):
            settle()
    settle()
    assert heard.bodies == bodies
    assert sorted(heard.ended) == sorted(bodies)
    for stream in data.draw(st.permutations(list(bodies))):
        wanted[stream] = b"a" * data.draw(st.sampled_from([0, 5, 16384, 16385, 100000]))
        server.respond(
            heard.exchanges[stream],
            encode([(b":status", b"200")]),
            wanted[stream],
            encode([(b"grpc-status", b"0")]),
        )
        settle()
    for _ in range(400):
        settle()
        if len(trailers) == len(bodies):
            break
        client.increment_flow_control_window(50000)
        for stream in set(bodies) - set(trailers):
            client.increment_flow_control_window(30000, stream)
    assert {stream: got.get(stream, b"") for stream in wanted} == wanted
    assert set(trailers) == set(bodies)
    assert not server.streams
    assert server.backlog == 0
    assert not server.dead


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.integers(0, 1 << 30))
def test_whatever_comes_is_answered_or_ends_the_connection(noise, seed):
    side = Side()
    side.http2.receive(request(1, b"x" * 40) + noise)
    for kind, _, _, _ in parse(side.http2.take()):
        assert kind in (
            frames.SETTINGS, frames.PING, frames.GOAWAY, frames.RST_STREAM, frames.WINDOW_UPDATE,
        )  # fmt: skip
    assert len(side.http2._buffer) <= frames.MAX_FRAME_BYTES + 9


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 11), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40)
        ),
        max_size=12,
    )
)
def test_frames_of_any_kind_never_raise(items):
    side = Side()
    side.http2.receive(b"".join(frame(*item) for item in items))
    parse(side.http2.take())


def test_bytes_may_come_one_by_one():
    whole = HELLO + request(1, b"abc") + frame(frames.PING, 0, 0, b"12345678")
    side = Side(b"")
    for index in range(len(whole)):
        side.http2.receive(whole[index : index + 1])
    assert side.heard.bodies == {1: b"abc"}
    assert side.heard.ended == [1]
    assert (frames.PING, 1, 0, b"12345678") in parse(side.http2.take())


def test_a_header_that_repeats_is_understood_once_until_the_table_changes():
    encoder = Encoder()
    side = Side()
    first, second = encoder.encode(FIELDS), encoder.encode(FIELDS)
    assert first != second
    stream = 1
    for block in (first, second, second, second):
        side.http2.receive(request(stream, block=block))
        side.http2.respond(side.heard.exchanges[stream], BLOCK, b"", None)
        stream += 2
    assert side.heard.understood == 2
    side.http2.receive(request(stream, block=encoder.encode([*FIELDS, (b"new", b"field")])))
    other = encoder.encode(FIELDS)
    assert other != second  # the same fields lie elsewhere in the table now
    side.http2.receive(request(stream + 2, block=second))
    assert side.heard.begun[stream + 2] != tuple(FIELDS)
    side.http2.receive(request(stream + 4, block=other))
    assert side.heard.begun[stream + 4] == tuple(FIELDS)


def test_many_different_headers_are_not_all_remembered():
    side = Side()
    for stream in range(1, 400, 2):
        side.http2.receive(request(stream, block=encode([*FIELDS, (b"n", b"%d" % stream)])))
        side.http2.respond(side.heard.exchanges[stream], BLOCK, b"", None)
    assert len(side.http2._meanings) <= 64


# --- flow control


def test_a_large_answer_waits_for_the_windows_and_is_sent_in_frames_the_client_takes():
    side = Side()
    side.get(request(1, b"abcde"))
    body = bytes(range(256)) * 1000
    side.http2.respond(side.heard.exchanges[1], BLOCK, body, BLOCK)
    sent = [item for item in parse(side.http2.take()) if item[0] == frames.DATA]
    assert sum(len(item[3]) for item in sent) == 65535
    assert max(len(item[3]) for item in sent) <= 16384
    assert side.http2.backlog == len(body) - 65535
    assert side.http2.take() == b""
    # the connection's window alone does not help
    assert side.get(frames.window_update(0, 1 << 20)) == []
    found = side.get(frames.window_update(1, 1 << 20))
    assert found[-1][:3] == (frames.HEADERS, 5, 1)
    rest = b"".join(item[3] for item in sent + found if item[0] == frames.DATA)
    assert rest == body
    assert side.http2.backlog == 0


def test_two_large_answers_share_the_way():
    side = Side(HELLO + frames.window_update(0, 1 << 24))
    for stream in (1, 3):
        side.get(request(stream, b"abcde") + frames.window_update(stream, 1 << 24))
    for stream in (1, 3):
        side.http2.respond(side.heard.exchanges[stream], BLOCK, bytes(100000), BLOCK)
    order = [item[2] for item in parse(side.http2.take()) if item[0] == frames.DATA]
    assert order[:4] == [1, 3, 1, 3]


def test_what_is_taken_at_once_is_bounded_however_wide_the_windows():
    side = Side(HELLO + frames.window_update(0, (1 << 31) - 65536))
    side.get(request(1, b"abcde") + frames.window_update(1, (1 << 31) - 65536))
    side.http2.respond(side.heard.exchanges[1], BLOCK, bytes(8 << 20), BLOCK)
    assert len(side.http2.take()) < 2 * outgoing.MAX_OUT_BYTES
    assert side.http2.backlog > 7 << 20


def test_a_smaller_first_window_takes_back_what_was_given():
    side = Side()
    side.get(request(1, b"abcde"))
    side.http2.receive(frames.settings((frames.INITIAL_WINDOW_SIZE, 10)))
    side.http2.take()
    side.http2.respond(side.heard.exchanges[1], BLOCK, bytes(100), BLOCK)
    assert [len(p) for k, _, _, p in parse(side.http2.take()) if k == frames.DATA] == [10]
    side.http2.receive(frames.settings((frames.INITIAL_WINDOW_SIZE, 0)))
    side.http2.take()
    assert side.heard.exchanges[1].window == -10
    assert side.get(frames.window_update(1, 10)) == []
    assert [len(p) for k, _, _, p in side.get(frames.window_update(1, 5)) if k == 0] == [5]


def test_larger_frames_are_sent_to_who_wants_them():
    hello = frames.PREFACE + frames.settings((frames.MAX_FRAME_SIZE, 1 << 20))
    side = Side(hello)
    side.get(request(1, b"abcde"))
    side.http2.respond(side.heard.exchanges[1], BLOCK, bytes(60000), BLOCK)
    assert [len(p) for k, _, _, p in parse(side.http2.take()) if k == frames.DATA] == [60000]


def test_the_windows_of_a_client_are_opened_again_as_it_sends():
    side = Side()
    side.http2.receive(frame(frames.HEADERS, 4, 1, BLOCK))
    opened = {0: 0, 1: 0}
    for _ in range(200):
        for kind, _, stream, payload in side.get(frame(frames.DATA, 0, 1, bytes(16384))):
            if kind == frames.WINDOW_UPDATE:
                opened[stream] += int.from_bytes(payload, "big")
        side.http2.widen(side.heard.exchanges[1])
    assert opened[0] >= 200 * 16384 - outgoing.CONNECTION_WINDOW_BYTES
    assert opened[1] >= 190 * 16384 - outgoing.STREAM_WINDOW_BYTES
    assert not side.http2.dead


def test_more_than_the_window_of_a_stream_gives_it_up():
    side = Side()
    side.http2.receive(frame(frames.HEADERS, 4, 1, BLOCK))
    found = side.get(frame(frames.DATA, 0, 1, bytes(16384)) * 65)
    assert (frames.RST_STREAM, 0, 1, struct.pack(">L", frames.FLOW_CONTROL_ERROR)) in found
    assert side.heard.dropped == [1]
    assert not side.http2.dead


# --- what a peer must not do


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_peer_ends_the_connection_and_says_why(name):
    data, code, said = FAULTS[name]
    got, words = Side().goaway(data)
    assert (got, said in words) == (code, True), words


def test_a_connection_begins_with_the_preface_and_settings():
    for early in (b"GET / HTTP/1.1\r\n", frames.PREFACE[:-1] + b"x"):
        side = Side(b"")
        assert side.goaway(early)[0] == frames.PROTOCOL_ERROR
    for kind in (frames.PING, frames.HEADERS, 77):
        side = Side(b"")
        code, words = side.goaway(frames.PREFACE + frame(kind, 0, 0, bytes(8)))
        assert (code, words) == (1, "the first frame has to be `SETTINGS`")


def test_nothing_is_heard_after_the_end():
    side = Side()
    side.get(request(1, b"abcde"))
    side.goaway(frames.window_update(0, 0))
    assert side.heard.dropped == [1]
    assert side.get(request(3)) == []
    assert 3 not in side.heard.begun


def test_data_after_the_end_of_a_request_gives_the_stream_up():
    side = Side()
    found = side.get(request(1) + frame(frames.DATA, 0, 1, b"x" * 20))
    assert found == [(frames.RST_STREAM, 0, 1, struct.pack(">L", frames.STREAM_CLOSED))]
    assert side.heard.dropped == [1]


def test_data_and_headers_on_an_answered_stream_end_the_connection():
    for data in (frame(frames.DATA, 0, 1, b"x"), request(1)):
        side = Side()
        side.get(request(1))
        side.http2.respond(side.heard.exchanges[1], BLOCK, b"", None)
        side.http2.take()
        assert side.goaway(data)[0] == frames.STREAM_CLOSED


def test_what_was_on_its_way_to_a_stream_that_we_gave_up_passes():
    side = Side()
    side.get(request(1, b"x" * 40, end=False))
    side.http2.reset(side.heard.exchanges[1], frames.CANCEL)
    found = parse(side.http2.take())
    assert found == [(frames.RST_STREAM, 0, 1, struct.pack(">L", frames.CANCEL))]
    assert side.get(frame(frames.DATA, 0, 1, bytes(100)) + frame(frames.DATA, 1, 1)) == []
    assert not side.http2.dead


def test_trailers_end_a_request_and_nothing_else():
    side = Side()
    trailers = encode([(b"x", b"y")])
    side.get(request(1, b"x" * 40, end=False) + frame(frames.HEADERS, 5, 1, trailers))
    assert side.heard.ended == [1]
    for flags, block in ((4, trailers), (5, BLOCK)):
        side = Side()
        found = side.get(request(1, b"x" * 40, end=False) + frame(1, flags, 1, block))
        assert (frames.RST_STREAM, 0, 1, struct.pack(">L", 1)) in found
    side = Side()
    assert side.goaway(request(1) + frame(frames.HEADERS, 5, 1, trailers))[0] == 5


def test_a_window_of_a_stream_that_is_opened_wrongly_costs_the_stream_alone():
    for increment, code in ((0, frames.PROTOCOL_ERROR), ((1 << 31) - 1, 3)):
        side = Side()
        found = side.get(request(1) + frames.window_update(1, increment))
        assert found == [(frames.RST_STREAM, 0, 1, struct.pack(">L", code))]
        assert not side.http2.dead
    side = Side()
    side.get(request(1) + frames.window_update(1, 1 << 30))
    raise_all = frames.settings((frames.INITIAL_WINDOW_SIZE, (1 << 31) - 1))
    assert side.goaway(raise_all)[0] == frames.FLOW_CONTROL_ERROR


def test_more_streams_than_allowed_are_refused_and_can_be_sent_again():
    side = Side()
    opened = b"".join(request(1 + 2 * index) for index in range(outgoing.MAX_STREAMS))
    assert side.get(opened) == []
    found = side.get(request(201))
    assert found == [(frames.RST_STREAM, 0, 201, struct.pack(">L", frames.REFUSED_STREAM))]
    assert 201 not in side.heard.begun
    side.http2.respond(side.heard.exchanges[1], BLOCK, b"", None)
    side.http2.take()
    assert side.get(request(203)) == []
    assert 203 in side.heard.begun


# --- the end


def test_an_announced_end_loses_no_request_that_was_on_its_way():
    side = Side()
    side.http2.announce_end()
    (away, ping) = parse(side.http2.take())
    assert away[3][:8] == struct.pack(">LL", (1 << 31) - 1, frames.NO_ERROR)
    assert ping[0] == frames.PING
    side.http2.receive(request(1))
    assert side.heard.ended == [1]
    assert not side.http2.is_settled
    side.http2.receive(frame(frames.PING, 1, 0, ping[3]))
    assert side.http2.is_settled
    side.http2.refuse_new()
    ((_, _, _, payload),) = parse(side.http2.take())
    assert payload[:8] == struct.pack(">LL", 1, frames.NO_ERROR)
    assert side.get(request(3)) == [
        (frames.RST_STREAM, 0, 3, struct.pack(">L", frames.REFUSED_STREAM))
    ]
    side.http2.respond(side.heard.exchanges[1], BLOCK, b"", None)
    assert parse(side.http2.take())[0][2] == 1


def test_a_fault_says_its_code_and_words():
    fault = Fault(frames.PROTOCOL_ERROR, "why")
    assert (fault.code, fault.message, str(fault)) == (1, "why", "why")
