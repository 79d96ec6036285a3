"""Streams of messages, and the HTTP routes, over a connection without a socket."""

from __future__ import annotations

import json

from tritonclient.grpc import service_pb2 as pb

from runtime.grpc import calls, frames, streaming
from tests.unit.runtime.grpc.wire_client import SERVICE, Refusing, Wire, frame, infer


def test_a_stream_answers_each_message_in_order():
    wire = Wire()
    stream = wire.call("ModelStreamInfer")
    assert wire.heads[stream][0][":status"] == "200"  # before the first message
    for index in range(3):
        wire.message(stream, infer(2, id=str(index)), end=False)
    found = [pb.ModelStreamInferResponse.FromString(item) for item in wire.messages(stream)]
    assert [item.infer_response.id for item in found] == ["0", "1", "2"]
    assert stream not in wire.ended
    wire.send(frame(frames.DATA, 1, stream))
    assert wire.status(stream) == (0, "")
    assert wire.held_bytes == 0


def test_an_error_in_a_stream_belongs_to_its_message():
    wire = Wire()
    stream = wire.call("ModelStreamInfer")
    bad = pb.ModelInferRequest(model_name="q", id="bad").SerializeToString()
    for message in (infer(2, id="a"), bad, b"\xff", infer(2, id="b")):
        wire.message(stream, message, end=False)
    found = [pb.ModelStreamInferResponse.FromString(item) for item in wire.messages(stream)]
    assert [(item.infer_response.id, bool(item.error_message)) for item in found] == [
        ("a", False), ("bad", True), ("", True), ("b", False),
    ]  # fmt: skip
    assert "there is no model `q`" in found[1].error_message


def test_a_stream_whose_time_is_over_ends_without_another_answer():
    wire = Wire()
    stream = wire.call("ModelStreamInfer", ("grpc-timeout", "2S"))
    wire.message(stream, infer(), end=False)
    wire.clock.now += 2
    wire.message(stream, infer(), end=False)
    assert wire.status(stream) == (4, "the time limit of the call is over")
    assert len(wire.messages(stream)) == wire.engine.runs == 1
    assert wire.held_bytes == 0


def test_a_stream_works_on_one_message_at_a_time_and_slows_its_client_down():
    wire = Wire()
    wire.scheduler.holds = True
    stream = wire.call("ModelStreamInfer")
    message = infer(4096)
    for _ in range(70):
        if wire.http2.streams[stream].receivable < len(message) + 5:
            break
        wire.message(stream, message, end=False)
    else:
        raise AssertionError("the window never closed")
    assert len(wire.scheduler.held) == 1
    held = wire.held_bytes
    assert held <= calls.MAX_WAITING_BYTES + len(message)
    opened = [item for item in wire.other if item[:3] == (frames.WINDOW_UPDATE, 0, stream)]
    while wire.scheduler.held:
        wire.scheduler.release()
        wire.clock.turn()
        wire.read()
    assert len(wire.messages(stream)) > 30 or wire.http2.backlog
    wire.open(stream)
    assert wire.held_bytes == 0
    after = [item for item in wire.other if item[:3] == (frames.WINDOW_UPDATE, 0, stream)]
    assert len(after) > len(opened)


def test_thousands_of_waiting_messages_are_answered_one_after_the_other():
    wire = Wire()
    wire.scheduler.holds = True
    stream = wire.call("ModelStreamInfer")
    for index in range(3000):
        wire.message(stream, infer(1, id=str(index)), end=False)
    wire.scheduler.holds = False
    wire.open(stream)
    wire.scheduler.release()
    wire.clock.turn()
    wire.read()
    found = [pb.ModelStreamInferResponse.FromString(item) for item in wire.messages(stream)]
    assert [item.infer_response.id for item in found] == [str(index) for index in range(3000)]


def test_a_stream_whose_client_ends_it_early_still_gets_its_answers():
    wire = Wire()
    wire.scheduler.holds = True
    stream = wire.call("ModelStreamInfer")
    wire.message(stream, infer(2), end=False)
    wire.message(stream, infer(2), end=True)
    wire.scheduler.release()
    wire.clock.turn()
    assert stream not in wire.ended
    wire.scheduler.release()
    wire.read()
    assert wire.status(stream) == (0, "")
    assert len(wire.messages(stream)) == 2


def test_a_stream_that_breaks_the_framing_is_ended_after_its_answers():
    for data, code in ((b"\1\0\0\0\0", 12), (b"\0\xff\xff\xff\xff", 8)):
        wire = Wire()
        stream = wire.call("ModelStreamInfer")
        wire.message(stream, infer(), end=False)
        wire.data(stream, data, end=False)
        assert wire.status(stream)[0] == code
        assert len(wire.messages(stream)) == 1
        assert wire.held_bytes == 0
    wire = Wire()
    stream = wire.call("ModelStreamInfer")
    wire.data(stream, b"\0\0\0")
    assert wire.status(stream) == (3, "the last message is cut off")


def test_a_stream_whose_answers_are_not_taken_ends():
    wire = Wire()
    wire.engine.copies = 400_000  # 3.2 MB an answer, of which one has room
    stream = wire.call("ModelStreamInfer")
    for _ in range(4):
        wire.message(stream, infer(), end=False)
    assert wire.engine.runs == 1
    wire.wait(200)
    assert wire.resets == {stream: frames.CANCEL}
    assert (wire.http2.backlog, wire.held_bytes) == (0, 0)


def test_a_silent_stream_ends_and_a_late_message_too():
    wire = Wire()
    stream = wire.call("ModelStreamInfer")
    wire.wait(streaming.STREAM_IDLE_S - 5)
    wire.message(stream, infer(), end=False)
    wire.wait(streaming.STREAM_IDLE_S - 5)
    assert stream not in wire.ended
    wire.wait(10)
    assert wire.status(stream)[0] == 4
    stream = wire.call("ModelStreamInfer")
    wire.data(stream, b"\0\0\0\0\5a", end=False)
    wire.wait(calls.BODY_TIMEOUT_S + 3)
    assert wire.status(stream)[0] == 4


def test_every_message_of_a_stream_passes_the_guard():
    guard = Refusing()
    wire = Wire(guard=guard)
    stream = wire.call("ModelStreamInfer", ("authorization", "Bearer word"))
    for _ in range(3):
        wire.message(stream, infer(), end=False)
        assert guard.inside == 0
    assert guard.scopes == ["infer"] * 3
    assert wire.status(wire.call("ModelStreamInfer"))[0] == 16


def test_plain_requests_are_answered_as_over_http1():
    wire = Wire()
    stream = wire.begin("/v2/health/ready", method="GET", end=True)
    (head,) = wire.heads[stream]
    assert head[":status"] == "200"
    assert head["content-type"] == "application/json"
    assert head["x-content-type-options"] == "nosniff"
    assert json.loads(wire.bodies[stream]) == {"ready": True}
    stream = wire.begin("/v2/health/ready", method="HEAD", end=True)
    assert (wire.heads[stream][0]["content-length"], wire.bodies.get(stream)) == ("14", None)
    body = json.dumps({"data": [1, 2]}).encode()
    stream = wire.begin("/predict", ("content-length", str(len(body))))
    wire.data(stream, body)
    assert json.loads(wire.bodies[stream]) == {"result": [2, 4]}
    assert wire.held_bytes == 0


def test_plain_requests_are_refused_as_over_http1():
    wire = Wire(limit=10_000)
    for path, method, status in (("/nothing", "GET", "404"), ("/predict", "GET", "405")):
        stream = wire.begin(path, method=method, end=True)
        assert wire.heads[stream][0][":status"] == status
        assert "error" in json.loads(wire.bodies[stream])
    stream = wire.begin("/predict")
    wire.data(stream, bytes(5000), end=False)
    assert wire.heads[stream][0][":status"] == "413"
    stream = wire.begin("/predict", ("content-length", "5000"))
    assert wire.heads[stream][0][":status"] == "413"
    stream = wire.begin("/predict", ("content-length", "5"))
    wire.data(stream, b"abc")
    assert wire.heads[stream][0][":status"] == "400"
    stream = wire.begin("/predict", ("content-length", "5"))
    wire.data(stream, b"abcdef", end=False)
    assert wire.resets[stream] == frames.PROTOCOL_ERROR
    stream = wire.begin("/predict")
    wire.data(stream, b"abc", end=False)
    wire.wait(calls.BODY_TIMEOUT_S + 2)
    assert wire.heads[stream][0][":status"] == "408"
    assert wire.held_bytes == 0


def test_a_malformed_header_gets_a_400_and_costs_nobody_else():
    wire = Wire()
    stream = wire.begin("/v2", ("connection", "close"), method="GET", end=True)
    assert wire.heads[stream][0][":status"] == "400"
    assert "no header field `connection`" in json.loads(wire.bodies[stream])["error"]
    stream = wire.begin(SERVICE + "ModelInfer", ("content-type", "application/json"))
    assert wire.heads[stream][0][":status"] == "415"
    wire.message(stream, infer())
    assert wire.status(wire.ask("ModelInfer", infer())) == (0, "")


def test_keys_hold_for_plain_requests_too():
    guard = Refusing()
    wire = Wire(guard=guard)
    stream = wire.begin("/v2", method="GET", end=True)
    assert wire.heads[stream][0][":status"] == "401"
    assert wire.heads[stream][0]["www-authenticate"] == "Bearer"
    word = ("authorization", "Bearer word")
    stream = wire.begin("/v2", word, method="GET", end=True)
    assert wire.heads[stream][0][":status"] == "200"
    assert guard.inside == 0
