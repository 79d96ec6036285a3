"""Sessions that went wrong somewhere: whatever comes, nothing is raised, kept or counted twice."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.grpc import frames
from tests.unit.runtime.grpc.wire_client import SERVICE, Refusing, Wire, frame, infer

PATHS = [SERVICE + "ModelInfer", SERVICE + "ModelStreamInfer", SERVICE + "ServerLive", "/predict",
         "/v2/health/ready", "/nothing"]  # fmt: skip
KINDS = ["application/grpc", "application/json", ""]
MESSAGE = struct.pack(">BL", 0, len(infer())) + infer()
BODIES = [
    b"",
    MESSAGE,
    MESSAGE * 2,
    MESSAGE[:9],
    b"\1\0\0\0\0",
    b"\0\xff\xff\xff\xff",
    b'{"data":[1]}',
]

KINDS_OF_STEPS = ["request", "data", "reset", "window", "settings", "raw", "time", "drain", "stick"]


@st.composite
def steps(draw: Any) -> tuple[str, Any]:
    stream = draw(st.sampled_from([1, 3, 5, 7, 9, 21, 31]))
    kind = draw(st.sampled_from([*["call"] * 6, *["work"] * 2, *KINDS_OF_STEPS]))
    if kind == "call":
        body = draw(st.sampled_from(BODIES))
        cut = draw(st.integers(0, len(body)) | st.just(len(body)))
        return kind, (draw(st.sampled_from(PATHS[:4])), body[:cut], draw(st.booleans()))
    if kind == "request":
        fields = [
            (":method", draw(st.sampled_from(["POST", "GET"]))), (":scheme", "http"),
            (":path", draw(st.sampled_from(PATHS))), (":authority", "127.0.0.1"),
            ("content-type", draw(st.sampled_from(KINDS))), ("te", "trailers"),
        ]  # fmt: skip
        if draw(st.booleans()):
            fields.append(("authorization", "Bearer word"))
        return kind, (stream, fields, draw(st.booleans()))
    if kind == "data":
        body = draw(st.sampled_from(BODIES))
        cut = draw(st.integers(0, len(body)))
        return kind, (stream, body[:cut] if draw(st.booleans()) else body, draw(st.booleans()))
    if kind == "raw":
        return kind, draw(st.binary(max_size=30))
    return kind, (stream, draw(st.sampled_from([0, 1, 100, 70000, 1 << 30])))


def take(wire: Wire, kind: str, value: Any) -> None:
    if kind == "call":
        path, body, ends = value
        kinds = [] if path == "/predict" else [("content-type", KINDS[0]), ("te", "trailers")]
        stream = wire.begin(path, *kinds, ("authorization", "Bearer word"))
        wire.connection.data_received(frame(frames.DATA, 1 if ends else 0, stream, body))
    elif kind == "request":
        stream, fields, ends = value
        block = wire.encoder.encode(fields)
        wire.connection.data_received(frame(frames.HEADERS, 5 if ends else 4, stream, block))
    elif kind == "data":
        stream, body, ends = value
        wire.connection.data_received(frame(frames.DATA, 1 if ends else 0, stream, body))
    elif kind == "reset":
        wire.connection.data_received(frame(frames.RST_STREAM, 0, value[0], bytes(4)))
    elif kind == "window":
        wire.connection.data_received(frames.window_update(*value))
    elif kind == "settings":
        wire.connection.data_received(frames.settings((frames.INITIAL_WINDOW_SIZE, value[1])))
    elif kind == "raw":
        wire.connection.data_received(value)
    elif kind == "time":
        wire.clock.now += value[0]
        wire.connection.expire()
    elif kind == "work":
        wire.scheduler.holds = value[1] > 1
        wire.scheduler.release()
        wire.clock.turn()
    elif kind == "drain":
        wire.connection.drain()
    elif wire.stream.stuck:
        wire.stream.unstick()
    else:
        wire.stream.stuck = True


@settings(max_examples=200, deadline=None)
@given(st.lists(steps(), max_size=25))
def test_nothing_is_raised_and_all_is_given_back(taken):
    guard = Refusing()
    wire = Wire(guard=guard)
    for kind, value in taken:
        if wire.stream.state != "open":
            break
        take(wire, kind, value)
    open_calls = len(wire.http2.streams)
    assert 0 <= guard.inside <= open_calls
    if not open_calls:
        assert (wire.held_bytes, wire.http2.backlog) == (0, 0)
    if wire.stream.state != "aborted":
        wire.stream.abort()
    wire.scheduler.release()
    assert (guard.inside, wire.held_bytes, wire.http2.backlog) == (0, 0, 0)
    assert wire.shared.metrics.connections == 0
    assert not wire.shared.connections
