"""Calls over a connection without a socket: answers, refusals, time limits and memory."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from runtime.errors import BadRequest
from runtime.grpc import calls, connection, frames, lingering
from tests.unit.runtime.grpc.wire_client import SERVICE, Refusing, Wire, frame, infer


def values(answer: bytes) -> list[float]:
    response = pb.ModelInferResponse.FromString(answer)
    return np.frombuffer(response.raw_output_contents[0], "<f4").tolist()


def test_every_method_answers():
    wire = Wire()
    wanted = {
        "ServerLive": pb.ServerLiveResponse(live=True),
        "ServerReady": pb.ServerReadyResponse(ready=True),
        "ServerMetadata": pb.ServerMetadataResponse(
            name="edgepack", version="0.1.0", extensions=["binary_tensor_data"]
        ),
    }
    for method, response in wanted.items():
        stream = wire.ask(method)
        assert wire.status(stream) == (0, "")
        assert type(response).FromString(wire.messages(stream)[0]) == response
        head = wire.heads[stream][0]
        assert head[":status"] == "200"
        assert head["content-type"] == "application/grpc"
    model = pb.ModelReadyRequest(name="m").SerializeToString()
    assert wire.messages(wire.ask("ModelReady", model)) == [b"\x08\x01"]
    (metadata,) = wire.messages(wire.ask("ModelMetadata", model))
    found = pb.ModelMetadataResponse.FromString(metadata)
    assert (found.name, list(found.versions), found.platform) == ("m", ["1"], "doubling")
    assert [(t.name, t.datatype, list(t.shape)) for t in found.inputs] == [("x", "FP32", [-1])]
    stream = wire.ask("ModelInfer", infer(3, id="i"))
    (answer,) = wire.messages(stream)
    assert values(answer) == [0, 2, 4]
    assert pb.ModelInferResponse.FromString(answer).id == "i"
    assert wire.held_bytes == 0
    assert not wire.http2.streams


def test_readiness_is_that_of_the_app():
    wire = Wire()
    check = "/grpc.health.v1.Health/Check"
    assert wire.messages(wire.ask(check)) == [b"\x08\x01"]
    service = b"\x0a\x1einference.GRPCInferenceService"
    assert wire.messages(wire.ask(check, service)) == [b"\x08\x01"]
    wire.app.ready = False
    assert wire.messages(wire.ask(check)) == [b"\x08\x02"]
    assert wire.messages(wire.ask("ServerReady")) == [b""]
    assert wire.messages(wire.ask("ServerLive")) == [b"\x08\x01"]
    code, message = wire.status(wire.ask(check, b"\x0a\x01q"))
    assert (code, "no service `q`" in message) == (5, True)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("ModelConfig", "`ModelMetadata` tells"),
        ("ModelStatistics", "GET /metrics"),
        ("RepositoryIndex", "one model"),
        ("RepositoryModelLoad", "one model"),
        ("RepositoryModelUnload", "one model"),
        ("SystemSharedMemoryStatus", "in the request itself"),
        ("CudaSharedMemoryRegister", "in the request itself"),
        ("TraceSetting", "command line"),
        ("LogSettings", "command line"),
        ("Nothing", "`Nothing` is not served"),
        ("/grpc.health.v1.Health/Watch", "`Check`"),
        ("/other.Service/Method", "there is no service `other.Service` here"),
        ("/v2", "there is no service `v2` here"),
    ],
)
def test_what_is_not_served_is_said_with_what_is(method, said):
    wire = Wire()
    code, message = wire.status(wire.ask(method))
    assert (code, said in message) == (12, True), message
    assert len(wire.heads[wire.ended.pop()]) == 1  # trailers only


def test_a_refused_request_is_told_and_the_next_one_is_answered():
    wire = Wire()
    code, message = wire.status(wire.ask("ModelInfer", infer().replace(b"\x0a\x01m", b"\x0a\x01q")))
    assert (code, "there is no model `q`" in message) == (5, True)
    code, message = wire.status(wire.ask("ModelInfer", b"\xff"))
    assert (code, message) == (3, "the message is cut off")
    assert wire.status(wire.ask("ModelInfer", infer())) == (0, "")
    assert wire.held_bytes == 0


def test_a_fault_of_the_engine_tells_the_client_nothing_of_it(capsys):
    wire = Wire()
    wire.engine.copies = "canary"  # type: ignore[assignment]
    assert wire.status(wire.ask("ModelInfer", infer())) == (13, "internal error")
    assert "canary" not in capsys.readouterr().err


def test_messages_may_come_in_any_pieces():
    wire = Wire()
    whole = struct.pack(">BL", 0, len(infer())) + infer()
    for size in (1, 3, 5, 7, len(whole) - 1):
        stream = wire.call("ModelInfer")
        for at in range(0, len(whole), size):
            wire.send(frame(frames.DATA, 0, stream, whole[at : at + size]))
        assert stream not in wire.ended
        wire.send(frame(frames.DATA, 1, stream))
        assert wire.status(stream) == (0, "")
    assert wire.held_bytes == 0


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", 3, "message is missing"),
        (b"\0\0\0", 3, "message is cut off"),
        (b"\0\0\0\0\5abc", 3, "message is cut off"),
        (b"\0\0\0\0\0" * 2, 3, "takes one message"),
        (b"\0\0\0\0\1a\0\0", 3, "cut off"),
        (b"\1\0\0\0\0", 12, "compressed"),
        (b"\2\0\0\0\0", 3, "compressed"),
        (b"\0\xff\xff\xff\xff", 8, "4294967295 bytes where"),
    ],
)
def test_a_body_that_is_not_one_message_is_refused(data, code, said):
    wire = Wire()
    stream = wire.call("ModelInfer")
    wire.data(stream, data)
    found, message = wire.status(stream)
    if said == "cut off" and code == 3:
        assert found in (0, 3)
    assert (found, said in message) == (code, True), message
    assert wire.held_bytes == 0
    assert wire.engine.runs == 0


def test_the_size_of_a_message_is_looked_at_before_its_bytes_come():
    wire = Wire(limit=1 << 16)
    limit = (1 << 16) + 4096 + (1 << 16)
    stream = wire.call("ModelInfer")
    wire.data(stream, struct.pack(">BL", 0, limit + 1), end=False)
    code, message = wire.status(stream)
    assert (code, message) == (8, f"the message has {limit + 1} bytes where {limit} are the limit")
    assert stream not in wire.resets  # or clients such as curl would forget the answer
    assert wire.held_bytes == 0
    wire.wait(lingering.LINGER_S + 1)
    assert wire.resets[stream] == frames.NO_ERROR
    # a question has a smaller limit
    stream = wire.call("ServerLive")
    wire.data(stream, struct.pack(">BL", 0, 4097), end=False)
    assert wire.status(stream)[0] == 8


def test_the_bodies_of_all_connections_have_one_budget():
    wire = Wire(budget=50_000)
    stream = wire.call("ModelInfer")
    wire.data(stream, struct.pack(">BL", 0, 60_000) + bytes(40_000), end=False)
    assert wire.held_bytes == 40_005
    wire.data(stream, bytes(16_000), end=False)
    code, message = wire.status(stream)
    assert (code, message) == (14, "too many requests are arriving at once")
    assert wire.held_bytes == 0


def test_a_cancelled_call_is_not_worked_on_and_gives_everything_back():
    guard = Refusing()
    wire = Wire(guard=guard)
    wire.scheduler.holds = True
    word = ("authorization", "Bearer word")
    first, second = wire.ask("ModelInfer", infer(), word), wire.ask("ModelInfer", infer(), word)
    assert guard.inside == 2
    wire.send(frame(frames.RST_STREAM, 0, first, struct.pack(">L", frames.CANCEL)))
    assert guard.inside == 1
    wire.scheduler.release()
    wire.read()
    assert first not in wire.ended
    assert wire.status(second) == (0, "")
    assert (guard.inside, wire.held_bytes, wire.engine.runs) == (0, 0, 1)


def test_work_that_had_begun_when_its_client_left_changes_nothing():
    wire = Wire()
    wire.scheduler.holds = True
    stream = wire.ask("ModelInfer", infer())
    (job,) = wire.scheduler.held
    wire.send(frame(frames.RST_STREAM, 0, stream, struct.pack(">L", frames.CANCEL)))
    job.work()
    wire.read()
    assert stream not in wire.heads
    assert wire.held_bytes == 0


def test_a_lost_connection_drops_all_of_its_work():
    guard = Refusing()
    wire = Wire(guard=guard)
    wire.scheduler.holds = True
    for _ in range(3):
        wire.ask("ModelInfer", infer(), ("authorization", "Bearer word"))
    wire.stream.abort()
    assert (guard.inside, wire.held_bytes) == (0, 0)
    assert all(job.cancelled for job in wire.scheduler.held)
    assert not wire.shared.connections
    assert wire.shared.metrics.connections == 0


def test_keys_are_asked_for_by_the_method():
    guard = Refusing()
    wire = Wire(guard=guard)
    assert wire.status(wire.ask("ServerLive")) == (0, "")
    assert wire.status(wire.ask("/grpc.health.v1.Health/Check")) == (0, "")
    assert guard.scopes == []
    for method, scope in (("ServerMetadata", "any"), ("ModelInfer", "infer")):
        code, message = wire.status(wire.ask(method, infer()))
        assert (code, "needs a valid key" in message) == (16, True)
        assert guard.scopes[-1] == scope
    wire.ask("ModelInfer", infer(), ("authorization", "Bearer word"))
    assert wire.scheduler.asked[-1]["caller"] == "known"
    assert guard.inside == 0


def test_other_hosts_and_foreign_pages_are_refused():
    def check(head):
        if head.authority != "127.0.0.1":
            raise BadRequest("this server does not answer for `evil`", 421)

    wire = Wire()
    wire.shared.check = check
    stream = wire.call("ModelInfer", authority="evil")
    assert wire.status(stream) == (7, "this server does not answer for `evil`")
    assert wire.status(wire.ask("ModelInfer", infer())) == (0, "")


def test_answers_are_counted():
    wire = Wire()
    wire.ask("ModelInfer", infer())
    wire.ask("ModelInfer", b"\xff")
    wire.ask("Nothing")
    counted = {key: histogram.count for key, histogram in wire.shared.metrics.grpc.items()}
    assert counted == {("ModelInfer", 0): 1, ("ModelInfer", 3): 1, ("unknown", 12): 1}


# --- time


def test_the_time_limit_of_a_call_is_the_deadline_of_its_work():
    wire = Wire()
    stream = wire.call("ModelInfer", ("grpc-timeout", "250m"))
    wire.message(stream, infer())
    assert wire.scheduler.asked[-1]["deadline"] == wire.clock.now + 0.25
    wire.ask("ModelInfer", infer())
    assert wire.scheduler.asked[-1]["deadline"] is None


@pytest.mark.parametrize("limit", ["0n", "0H", "00000000m"])
def test_a_call_whose_time_is_over_when_it_comes_is_not_begun(limit):
    wire = Wire()
    over = (4, "the time limit of the call is over")
    assert wire.status(wire.ask("ModelInfer", infer(), ("grpc-timeout", limit))) == over
    assert wire.status(wire.ask("ServerLive", b"", ("grpc-timeout", limit))) == over
    assert wire.scheduler.asked == []
    assert wire.engine.runs == 0
    assert wire.held_bytes == 0
    assert wire.status(wire.ask("ModelInfer", infer(), ("grpc-timeout", "1S"))) == (0, "")


def test_a_call_whose_message_comes_too_slowly_is_ended():
    wire = Wire()
    stream = wire.call("ModelInfer")
    wire.data(stream, b"\0\0\0\0\5ab", end=False)
    wire.wait(calls.BODY_TIMEOUT_S - 2)
    assert stream not in wire.ended
    wire.data(stream, b"c", end=False)  # a byte now and then does not stretch it
    wire.wait(4)
    assert wire.status(stream) == (4, "the request did not arrive in time")
    limited = wire.call("ModelInfer", ("grpc-timeout", "2S"))
    wire.wait(3)
    assert wire.status(limited) == (4, "the time limit of the call is over")
    assert wire.held_bytes == 0
    assert wire.status(wire.ask("ModelInfer", infer())) == (0, "")


def test_a_client_that_never_opens_its_window_holds_memory_for_a_while_only():
    wire = Wire()
    wire.engine.copies = 100_000
    wire.send(frames.settings((frames.INITIAL_WINDOW_SIZE, 0)))
    stream = wire.ask("ModelInfer", infer())
    refused = wire.begin("/nothing", end=True)
    assert stream not in wire.ended
    assert wire.http2.backlog > 800_000
    wire.wait(connection.WRITE_TIMEOUT_S + 800_000 / calls.SLOWEST_BYTES_PER_S + 2)
    assert wire.resets == {stream: frames.CANCEL, refused: frames.CANCEL}
    assert wire.http2.backlog == 0
    assert not wire.http2.streams


def test_a_client_that_leaves_answers_lying_is_given_no_more():
    wire = Wire()
    wire.engine.copies = 200_000  # 1.6 MB an answer
    streams = [wire.ask("ModelInfer", infer()) for _ in range(10)]
    assert wire.engine.runs < 5
    assert wire.http2.backlog <= connection.MAX_BACKLOG_BYTES + 1_600_100
    held = wire.held_bytes
    assert held > 0
    for stream in streams:
        wire.open(stream)
        wire.clock.turn()
        wire.read()
    assert [wire.status(stream) for stream in streams] == [(0, "")] * 10
    assert wire.held_bytes == 0


def test_a_call_that_waits_for_others_to_be_taken_is_ended_too():
    wire = Wire()
    wire.engine.copies = 400_000
    streams = [wire.ask("ModelInfer", infer()) for _ in range(5)]
    for stream in streams:
        wire.send(frames.window_update(stream, 100))
    wire.wait(200)
    ended = [stream for stream in streams if stream in wire.ended]
    assert {wire.status(stream) for stream in ended} == {
        (4, "earlier answers were not taken in time")
    }
    assert set(ended) | set(wire.resets) == set(streams)
    assert (wire.http2.backlog, wire.held_bytes) == (0, 0)


def test_answers_that_are_on_their_way_count_too():
    wire = Wire()
    wire.engine.copies = 200_000
    first = wire.ask("ModelInfer", infer())
    wire.open(first)
    assert wire.status(first) == (0, "")
    wire.scheduler.holds = True
    for _ in range(10):
        wire.ask("ModelInfer", infer())
    assert len(wire.scheduler.held) == 2  # more would not have room
    while wire.scheduler.held:
        wire.scheduler.release()
        for stream in list(wire.http2.streams):
            wire.open(stream)
        wire.clock.turn()
        wire.read()
    assert len(wire.ended) == 11


def test_many_requests_at_once_leave_turns_to_other_connections():
    wire = Wire()
    batch = b""
    for stream in range(1, 61, 2):
        block = wire.encoder.encode([
            (":method", "POST"), (":scheme", "http"), (":path", SERVICE + "ModelInfer"),
            (":authority", "127.0.0.1"), ("content-type", "application/grpc"), ("te", "trailers"),
        ])  # fmt: skip
        message = struct.pack(">BL", 0, len(infer())) + infer()
        batch += frame(frames.HEADERS, 4, stream, block) + frame(frames.DATA, 1, stream, message)
    wire.send(batch)
    assert wire.engine.runs == connection.MAX_TURN
    wire.clock.turn()
    wire.read()
    assert len(wire.ended) == 30


def test_who_does_not_greet_or_breaks_off_in_a_frame_is_cut():
    for data in (b"", frames.PREFACE[:10], frames.PREFACE):
        wire = Wire(connect=False)
        if data:
            wire.send(data)
        wire.wait(connection.HEAD_TIMEOUT_S + 2)
        assert wire.aways[-1][1:] == (
            frames.ENHANCE_YOUR_CALM,
            "the request did not arrive in time",
        )
        wire.wait(connection.LINGER_S + 1)
        assert wire.stream.state == "aborted"
    for data in (frame(frames.HEADERS, 0, 1, b"\x82"), frames.frame_header(5, 0, 0, 1) + b"a"):
        wire = Wire()
        wire.wait(3)
        wire.send(data)
        wire.wait(connection.HEAD_TIMEOUT_S + 2)
        assert wire.aways[-1][1] == frames.ENHANCE_YOUR_CALM


def test_an_idle_connection_is_ended_with_a_word_and_pings_do_not_stretch_it():
    wire = Wire()
    wire.ask("ModelInfer", infer())
    for _ in range(int(connection.IDLE_TIMEOUT_S) - 1):
        wire.wait(1)
        wire.send(frame(frames.PING, 0, 0, bytes(8)))
    assert wire.aways == []
    wire.wait(2)
    assert wire.aways == [(1, frames.NO_ERROR, "nothing was asked for a while")]
    assert wire.stream.state == "half closed"
    wire.connection.eof_received()
    wire.wait(connection.LINGER_S + 1)
    assert wire.stream.state == "aborted"


def test_a_client_that_does_not_read_is_neither_heard_nor_kept():
    wire = Wire()
    wire.stream.stuck = True
    wire.ask("ModelInfer", infer())
    assert not wire.stream.reads
    wire.wait(connection.WRITE_TIMEOUT_S - 2)
    wire.stream.unstick()
    assert wire.stream.reads
    assert wire.status(wire.ask("ModelInfer", infer())) == (0, "")
    wire.stream.stuck = True
    wire.ask("ModelInfer", infer())
    wire.wait(connection.WRITE_TIMEOUT_S + 2)
    assert wire.stream.state == "aborted"


# --- the end


def test_a_drained_connection_answers_all_that_was_sent_and_then_closes():
    wire = Wire()
    wire.scheduler.holds = True
    first = wire.ask("ModelInfer", infer())
    wire.connection.drain()
    wire.read()
    assert wire.aways == [((1 << 31) - 1, frames.NO_ERROR, "the server stops")]
    second = wire.ask("ModelInfer", infer())  # was on its way
    ping = next(item for item in wire.other if item[0] == frames.PING)
    wire.send(frame(frames.PING, 1, 0, ping[3]))
    assert wire.aways[-1] == (second, frames.NO_ERROR, "the server stops")
    late = wire.ask("ModelInfer", infer())
    assert wire.resets[late] == frames.REFUSED_STREAM
    assert wire.stream.state == "open"
    wire.scheduler.release()
    wire.read()
    assert [wire.status(stream)[0] for stream in (first, second)] == [0, 0]
    assert wire.stream.state == "half closed"


def test_a_drained_connection_does_not_wait_for_an_answer_to_its_ping():
    wire = Wire()
    wire.connection.drain()
    wire.wait(2)
    assert len(wire.aways) == 2
    assert wire.stream.state == "half closed"


def test_a_client_that_closes_its_side_gets_its_answers_first():
    wire = Wire()
    wire.scheduler.holds = True
    stream = wire.ask("ModelInfer", infer())
    assert wire.connection.eof_received()
    wire.scheduler.release()
    wire.read()
    assert wire.status(stream) == (0, "")
    assert wire.stream.state == "closed"
    assert not Wire().connection.eof_received()
