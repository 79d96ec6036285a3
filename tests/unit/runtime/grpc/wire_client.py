"""A connection of the server's without a socket: exact bytes in, frames out, a clock by hand."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from hpack import Decoder, Encoder
from tritonclient.grpc import service_pb2 as pb

from runtime.app import App, Limits
from runtime.connection import Shared
from runtime.framing import Admissions, BodyBudget
from runtime.grpc import frames
from runtime.grpc.connection import GrpcConnection
from runtime.tensor import Tensor
from tests.unit.runtime.live_server import OpenRelease, tensor

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "/inference.GRPCInferenceService/"
N = {"name": "n", "min": 1, "max": 4096, "opt": 1}


class Clock:
    """The time of a loop that does not turn by itself."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.later: deque[Callable[[], None]] = deque()

    def time(self) -> float:
        return self.now

    def soon(self, callback: Callable[[], None]) -> None:
        self.later.append(callback)

    def turn(self) -> None:
        while self.later:
            self.later.popleft()()


class Job:
    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeScheduler:
    """Works at once, or keeps everything until told."""

    def __init__(self) -> None:
        self.holds = False
        self.held: list[Job] = []
        self.asked: list[dict[str, Any]] = []

    def submit(self, task: Any, body: Any, *, done: Callable[[Any], None], **about: Any) -> Any:
        self.asked.append(about)

        def work() -> None:
            try:
                request = task.decode(body)
                answer = task.encode(request, task.run(request, about["caller"]))
            except Exception as error:  # noqa: BLE001 - as the real one
                answer = task.fail(error)
            done(answer)

        if not self.holds:
            work()
            return None
        self.held.append(Job(work))
        return self.held[-1]

    def release(self) -> None:
        held, self.held = self.held, []
        for job in held:
            if not job.cancelled:
                job.work()


class FakeStream:
    """Keeps what is written; the client takes it when it wants."""

    peer = "127.0.0.1"

    def __init__(self) -> None:
        self.written = b""
        self.unsent = 0
        self.is_closing = False
        self.state = "open"
        self.reads = True
        self.protocol: Any = None
        self.stuck = False  # the client takes nothing

    def hand_over(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        assert data
        if self.state != "open":
            return
        self.written += data
        if self.stuck:
            self.unsent += len(data)
            self.protocol.pause_writing()

    def unstick(self) -> None:
        self.stuck = False
        self.unsent = 0
        self.protocol.resume_writing()

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def write_eof(self) -> None:
        self.state = "half closed"

    def close(self) -> None:
        self.state = "closed"
        self.is_closing = True

    def abort(self) -> None:
        self.state = "aborted"
        self.is_closing = True
        self.protocol.connection_lost()


class Doubling:
    """An engine that gives each input back twice as large, or as often as it is told."""

    name, version, provider, precision = "doubling", "1", "cpu", "fp32"

    def __init__(self) -> None:
        self.copies = 1
        self.runs = 0

    def run(self, feeds: Any, outputs: Any = None) -> dict[str, Tensor]:
        self.runs += 1
        x = np.frombuffer(feeds["x"].data, "<f4") * 2
        data = np.tile(x, self.copies).astype("<f4").tobytes()
        return {"y": Tensor("float32", (len(data) // 4,), data)}


class Refusing:
    """A guard that lets in who says the word, and counts."""

    class _Caller:
        def __init__(self, guard: Refusing) -> None:
            self.name = "known"
            self._guard = guard

        def release(self) -> None:
            self._guard.inside -= 1

    def __init__(self) -> None:
        self.inside = 0
        self.scopes: list[str] = []

    def admit(self, fields: Any, scope: str, peer: str) -> Any:
        from runtime.errors import Denied

        self.scopes.append(scope)
        if fields.get("authorization") != "Bearer word":
            raise Denied("this server needs a valid key")
        self.inside += 1
        return Refusing._Caller(self)


class Wire:
    """One client of one server."""

    def __init__(
        self,
        *,
        budget: int = 1 << 24,
        guard: Any = None,
        connect: bool = True,
        limit: int = 1 << 20,
    ) -> None:
        manifest = {
            "name": "m",
            "version": "1",
            "edgepack": "0.1.0",
            "model": {
                "signature": {
                    "inputs": [tensor("x", "float32", N)],
                    "outputs": [tensor("y", "float32", N)],
                }
            },
            "server": {"grpc": True},
        }
        self.engine = Doubling()
        release = OpenRelease(folder="nowhere", manifest=manifest)
        self.app = App(release, self.engine, limits=Limits(4096, limit))
        self.app.ready = True
        self.clock = Clock()
        self.scheduler = FakeScheduler()
        self.budget = BodyBudget(budget)
        self.budget_bytes = budget
        self.shared = Shared(
            app=self.app,
            loop=self.clock,  # type: ignore[arg-type]
            admissions=Admissions(self.app.admit),
            budget=self.budget,
            scheduler=self.scheduler,  # type: ignore[arg-type]
            max_connections=10,
            guard=guard,
        )
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.stream = FakeStream()
        early = frames.PREFACE + frames.settings() if connect else b""
        self.connection = GrpcConnection(self.shared, self.stream, early)  # type: ignore[arg-type]
        self.http2 = self.connection.http2
        self.ids = iter(range(1, 1 << 30, 2))
        self.heads: dict[int, list[dict[str, str]]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.aways: list[tuple[int, int, str]] = []
        self.other: list[tuple[int, int, int, bytes]] = []

    @property
    def held_bytes(self) -> int:
        """What the server holds of bodies."""
        return self.budget_bytes - self.budget._left

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)
        self.read()

    def begin(self, path: str, *fields: tuple[str, str], end: bool = False, **pseudo: str) -> int:
        stream = next(self.ids)
        head = {"method": "POST", "scheme": "http", "path": path, "authority": "127.0.0.1"}
        head.update(pseudo)
        block = self.encoder.encode([(":" + key, value) for key, value in head.items()] + [*fields])
        self.send(frame(frames.HEADERS, 5 if end else 4, stream, block))
        return stream

    def call(self, method: str, *fields: tuple[str, str], **pseudo: str) -> int:
        path = method if method.startswith("/") else SERVICE + method
        grpc = (("content-type", "application/grpc"), ("te", "trailers"))
        return self.begin(path, *grpc, *fields, **pseudo)

    def message(self, stream: int, message: bytes, *, end: bool = True) -> None:
        data = struct.pack(">BL", 0, len(message)) + message
        self.data(stream, data, end=end)

    def data(self, stream: int, data: bytes, *, end: bool = True) -> None:
        pieces = [data[at : at + 16384] for at in range(0, len(data), 16384)] or [b""]
        for index, piece in enumerate(pieces):
            last = end and index == len(pieces) - 1
            self.send(frame(frames.DATA, 1 if last else 0, stream, piece))

    def ask(self, method: str, message: bytes = b"", *fields: tuple[str, str]) -> int:
        stream = self.call(method, *fields)
        self.message(stream, message)
        return stream

    def open(self, stream: int, size: int = 1 << 24) -> None:
        self.send(frames.window_update(0, size) + frames.window_update(stream, size))

    def read(self) -> None:
        """Take what was written."""
        data, self.stream.written = self.stream.written, b""
        while data:
            size = int.from_bytes(data[:3], "big")
            kind, flags, stream = data[3], data[4], int.from_bytes(data[5:9], "big")
            payload, data = data[9 : 9 + size], data[9 + size :]
            if kind == frames.HEADERS:
                fields = dict(self.decoder.decode(payload))
                self.heads.setdefault(stream, []).append(fields)
            elif kind == frames.DATA:
                self.bodies[stream] = self.bodies.get(stream, b"") + payload
            elif kind == frames.RST_STREAM:
                self.resets[stream] = int.from_bytes(payload, "big")
            elif kind == frames.GOAWAY:
                last, code = struct.unpack(">LL", payload[:8])
                self.aways.append((last, code, payload[8:].decode()))
            else:
                self.other.append((kind, flags, stream, payload))
            if kind in (frames.HEADERS, frames.DATA) and flags & 1:
                self.ended.add(stream)

    def status(self, stream: int) -> tuple[int, str]:
        """Return the code and message of a call that has ended."""
        from urllib.parse import unquote

        assert stream in self.ended, "the call has not ended"
        last = self.heads[stream][-1]
        return int(last["grpc-status"]), unquote(last.get("grpc-message", ""))

    def messages(self, stream: int) -> list[bytes]:
        """Return what was answered."""
        data, found = self.bodies.get(stream, b""), []
        while data:
            (size,) = struct.unpack(">xL", data[:5])
            found.append(data[5 : 5 + size])
            data = data[5 + size :]
        return found

    def wait(self, seconds: float) -> None:
        """Let time pass as the server's tick sees it."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now = min(until, self.clock.now + 0.5)
            if self.connection.deadline <= self.clock.now and self.stream.state != "aborted":
                self.connection.expire()
        self.read()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frames.frame_header(len(payload), kind, flags, stream) + payload


def infer(count: int = 2, **about: str) -> bytes:
    message = pb.ModelInferRequest(model_name="m", **about)
    message.inputs.add(name="x", datatype="FP32", shape=[count])
    message.raw_input_contents.append(np.arange(count, dtype="<f4").tobytes())
    return message.SerializeToString()
