"""Answers that come before their requests are complete: seen by clients, with bounds for floods."""

from __future__ import annotations

import struct

import pytest

from runtime.grpc import frames, outgoing
from runtime.grpc.hpack import encode
from runtime.grpc.lingering import LINGER_S, MAX_LINGER_BYTES, MAX_LINGERING
from tests.unit.runtime.grpc.http2_side import BLOCK, Side, frame, parse, request

STOP = struct.pack(">L", frames.NO_ERROR)


def answered(side: Side, stream: int = 1) -> list[tuple[int, int, int, bytes]]:
    """Answer a request of which a part has come; return what was sent."""
    side.http2.receive(request(stream, b"x" * 40, end=False))
    side.http2.respond(side.heard.exchanges[stream], BLOCK, b"too large", None)
    return parse(side.http2.take())


def resets(found: list[tuple[int, int, int, bytes]]) -> list[int]:
    return [stream for kind, _, stream, payload in found if (kind, payload) == (3, STOP)]


def test_an_early_answer_is_whole_before_its_stream_is_reset() -> None:
    side = Side()
    found = answered(side)
    assert [(kind, flags & 1) for kind, flags, _, _ in found] == [(1, 0), (0, 0), (0, 1)]
    side.clock.now += LINGER_S - 0.1
    side.http2.reset_overdue()
    assert side.http2.take() == b""
    side.clock.now += 0.1
    side.http2.reset_overdue()
    assert parse(side.http2.take()) == [(frames.RST_STREAM, 0, 1, STOP)]
    # and what was on its way then passes
    assert side.get(frame(frames.DATA, 0, 1, bytes(100))) == []
    assert not side.http2.dead


@pytest.mark.parametrize(
    "end",
    [
        frame(frames.DATA, 1, 1, bytes(100)),
        frame(frames.HEADERS, 5, 1, encode([(b"x", b"y")])),
        frame(frames.RST_STREAM, 0, 1, STOP),
    ],
    ids=("its last bytes", "trailers", "a reset"),
)
def test_a_request_that_ends_after_its_answer_is_reset_by_nobody(end: bytes) -> None:
    side = Side()
    answered(side)
    assert side.get(frame(frames.DATA, 0, 1, bytes(100)) + end) == []
    assert side.heard.bodies[1] == b"x" * 40
    side.clock.now += 10
    side.http2.reset_overdue()
    assert side.http2.take() == b""
    assert side.goaway(frame(frames.DATA, 0, 1, b"x"))[0] == frames.STREAM_CLOSED


def test_a_client_that_reads_only_after_it_has_sent_gets_the_window_for_it() -> None:
    side = Side()
    answered(side)
    piece = frame(frames.DATA, 0, 1, bytes(1 << 14))
    sent, window, found = 40, outgoing.STREAM_WINDOW_BYTES - 40, []
    while sent + (1 << 14) < MAX_LINGER_BYTES:
        got = side.get(piece)
        found += got
        sent += 1 << 14
        window -= 1 << 14
        window += sum(
            struct.unpack(">L", payload)[0]
            for kind, _, stream, payload in got
            if (kind, stream) == (frames.WINDOW_UPDATE, 1)
        )
        assert window >= min(1 << 14, MAX_LINGER_BYTES - sent)
    assert resets(found) == []
    # past the bound it is told to stop
    assert resets(side.get(piece * 2)) == [1]
    assert not side.http2.dead


def test_a_client_that_sends_more_than_its_window_is_told_to_stop() -> None:
    side = Side()
    side.http2.receive(request(1, b"x" * 40, end=False))
    side.heard.exchanges[1].receivable = 50
    side.http2.respond(side.heard.exchanges[1], BLOCK, b"", None)
    side.http2.take()
    assert resets(side.get(frame(frames.DATA, 0, 1, bytes(60)))) == [1]


def test_many_early_answers_are_held_within_a_bound() -> None:
    side = Side()
    found = []
    for index in range(200):
        found += answered(side, 1 + 2 * index)
    assert not side.http2.dead
    assert resets(found) == [1 + 2 * index for index in range(200 - MAX_LINGERING)]
    assert side.http2.streams == {}


@pytest.mark.parametrize(
    "cheap",
    [frame(frames.DATA, 0, 1), frame(frames.HEADERS, 4, 1, encode([(b"x", b"y")]))],
    ids=("empty frames", "headers"),
)
def test_cheap_frames_on_an_answered_stream_are_a_flood_as_elsewhere(cheap: bytes) -> None:
    side = Side()
    answered(side)
    side.http2.receive(cheap * outgoing.MAX_CREDIT)
    assert not side.http2.dead
    assert side.goaway(cheap * 10)[0] == frames.ENHANCE_YOUR_CALM
