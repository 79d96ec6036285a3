"""Floods of cheap frames: each ends the connection, after a burst that honest clients may need."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from runtime.grpc import frames, http2, outgoing
from tests.hostile.corpus_http2 import CHEAP
from tests.unit.runtime.grpc.http2_side import BLOCK, HELLO, Side, frame, parse, request


def flood(side: Side, make: Any, most: int) -> int:
    """Send frames until the connection ends; return how many it took."""
    for count in range(most):
        side.http2.receive(make(count))
        found = parse(side.http2.take())
        if side.http2.dead:
            ends = [payload for kind, _, _, payload in found if kind == frames.GOAWAY]
            assert struct.unpack(">L", ends[0][4:8])[0] == frames.ENHANCE_YOUR_CALM
            return count
    raise AssertionError("the flood went on for ever")


@pytest.mark.parametrize("name", CHEAP)
def test_a_flood_of_cheap_frames_is_ended(name):
    side = Side()
    side.http2.receive(frame(frames.HEADERS, 4, 1, BLOCK))
    assert flood(side, lambda _: CHEAP[name], 3000) <= outgoing.MAX_CREDIT


def test_a_flood_of_resets_is_ended():
    side = Side()
    cancel = struct.pack(">L", frames.CANCEL)
    took = flood(
        side,
        lambda n: request(1 + 2 * n) + frame(frames.RST_STREAM, 0, 1 + 2 * n, cancel),
        3000,
    )
    assert 50 <= took <= 150
    # each was dropped as it came
    assert set(side.heard.begun) - set(side.heard.dropped) <= {1 + 2 * took}


def test_a_flood_of_streams_past_the_limit_is_ended():
    side = Side()
    assert flood(side, lambda n: request(1 + 2 * n), 3000) <= 64 + 150
    assert len(side.heard.begun) == outgoing.MAX_STREAMS


def test_a_flood_of_headers_that_never_end_is_ended():
    side = Side()
    side.http2.receive(frame(frames.HEADERS, 0, 1, BLOCK))
    assert flood(side, lambda _: frame(frames.CONTINUATION, 0, 1), 100) <= http2.MAX_CONTINUATIONS
    side = Side()
    side.http2.receive(frame(frames.HEADERS, 0, 1, BLOCK))
    assert flood(side, lambda _: frame(frames.CONTINUATION, 0, 1, bytes(9000)), 100) <= 2


def test_a_flood_of_settings_in_one_frame_costs_more_than_one():
    side = Side()
    many = frames.settings(*[(frames.INITIAL_WINDOW_SIZE, 65535)] * 2700)
    assert flood(side, lambda _: many, 100) <= 6


def test_headers_that_mean_too_much_are_told_apart_not_kept():
    side = Side()
    side.http2.receive(request(1, block=b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000))
    side.http2.receive(request(3, block=b"\xbe" * 16000))
    assert side.heard.begun[3] == "oversized"
    assert not side.http2.dead


def test_patience_comes_back_with_time_and_with_honest_work():
    ping = frame(frames.PING, 0, 0, bytes(8))
    side = Side()
    side.http2.receive(ping * 990)
    side.clock.now += 5.0
    side.http2.receive(ping * 400)
    assert not side.http2.dead
    # a client that asks for the way's delay with every answer, as gRPC's do
    side = Side(HELLO + frames.window_update(0, 1 << 24))
    for index in range(3000):
        stream = 1 + 2 * index
        side.http2.receive(request(stream, b"x" * 40) + ping * 3 + frames.window_update(0, 40))
        side.http2.respond(side.heard.exchanges[stream], BLOCK, b"answer", BLOCK)
        side.http2.take()
    assert not side.http2.dead
