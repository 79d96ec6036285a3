"""What a gRPC call costs: ours with the model, beside grpcio's own empty handler and h2.

Every server gets the same load from h2load (8 connections, one call at a time on each); CPU is
that of the server's processes alone. grpcio's handler takes the same request and answers an empty
message. `h2` is the library that decision 010 weighed against our own HTTP/2: on the same loop,
with nothing decoded.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.serving import (
    CACHE,
    CONNECTIONS,
    LOAD_S,
    ROOT,
    Subject,
    bare_us,
    cpu_s,
    free_port,
    prepare,
    pss_mb,
    stop,
)

ROUNDS = 5
SERVICE = "/inference.GRPCInferenceService/"

GRPCIO = """
import sys
from concurrent import futures
import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
class Empty(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ModelInfer(self, request, context):
        return service_pb2.ModelInferResponse()
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Empty(), server)
server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
server.wait_for_termination()
"""

H2 = """
import sys
import h2.config, h2.connection, h2.events
from runtime.loop import Listener, Loop, Stream
from runtime.listening import listen
HEAD = [(":status", "200"), ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity")]
GOOD = [("grpc-status", "0")]
EMPTY = bytes(5)
class Calls:
    def __init__(self, connected):
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(
            client_side=False, header_encoding=None))
        self.http2.initiate_connection()
        self.stream = Stream(loop, connected, self)
        self.stream.write(self.http2.data_to_send())
    def data_received(self, data):
        http2 = self.http2
        found = http2.receive_data(data)
        if any(type(event) is h2.events.ConnectionTerminated for event in found):
            return  # its state allows no answer any more, not even to what came with it
        for event in found:
            if type(event) is h2.events.DataReceived:
                http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif type(event) is h2.events.StreamEnded:
                http2.send_headers(event.stream_id, HEAD)
                http2.send_data(event.stream_id, EMPTY)
                http2.send_headers(event.stream_id, GOOD, end_stream=True)
        self.stream.write(http2.data_to_send())
    def eof_received(self):
        return False
    def pause_writing(self):
        pass
    def resume_writing(self):
        pass
    def connection_lost(self):
        pass
loop = Loop()
listener = Listener(loop, listen("127.0.0.1", int(sys.argv[1])), Calls)
loop.run(lambda: False, lambda: None, 0.5)
"""


def infer_message() -> bytes:
    """Return a request with one row of 64 floats, as tritonclient writes it."""

    def field(number: int, value: bytes) -> bytes:
        size = len(value)
        length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        return bytes([number << 3 | 2]) + length + value

    tensor = field(1, b"x") + field(2, b"FP32") + field(3, bytes([1, 64]))
    row = struct.pack("<64f", *(index / 64 for index in range(64)))
    return field(1, b"mlp") + field(5, tensor) + field(7, row)


def drive(port: int, method: str, message: bytes, seconds: float) -> int:
    """Let h2load keep all connections busy; return the number of answers, all of them good.

    It is small: a client in Python on the next core takes the cache that the model needs.

    Raises:
        RuntimeError: h2load is missing, or calls failed.
    """
    program = shutil.which("h2load")
    if program is None:
        raise RuntimeError("h2load is missing: apt-get install nghttp2-client")
    with tempfile.NamedTemporaryFile() as body:
        body.write(struct.pack(">BL", 0, len(message)) + message)
        body.flush()
        address = f"http://127.0.0.1:{port}{SERVICE}{method}"
        argv = [
            program, f"-c{CONNECTIONS}", "-m1", "-t1", "-D", f"{seconds:.0f}", "-d", body.name,
            "-H", "content-type: application/grpc", "-H", "te: trailers", address,
        ]  # fmt: skip
        told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", told)
    data = re.search(r"\((\d+)\) data", told)
    if counts is None or data is None:
        raise RuntimeError(f"h2load says: {told}")
    answers, *bad = map(int, counts.groups())
    # each answer has five bytes at least; a failed call has none
    if not answers or any(bad) or int(data[1]) < 5 * answers:
        raise RuntimeError(f"calls failed: {told}")
    return answers


def measure(subject: Subject, method: str, message: bytes) -> tuple[float, float, float]:
    """Return the CPU microseconds per call, calls per second, and memory in MB."""
    port = free_port()
    argv = [word.replace("PORT", str(port)) for word in subject.argv]
    env = {**os.environ, "XDG_CACHE_HOME": str(subject.folder / CACHE)}
    process = subprocess.Popen(argv, cwd=subject.folder, stderr=subprocess.DEVNULL, env=env)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=30).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None:
                    raise RuntimeError(f"{subject.name} does not start") from None
                time.sleep(0.01)
        drive(port, method, message, 1.0)
        before, began = cpu_s(process.pid), time.perf_counter()
        answers = drive(port, method, message, LOAD_S)
        elapsed_s = time.perf_counter() - began
        spent_s = cpu_s(process.pid) - before
        return spent_s / answers * 1e6, answers / elapsed_s, pss_mb(process.pid)
    finally:
        stop(process)


def main() -> None:
    """Print the figures of gRPC."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, _ = prepare(folder)
        grpcio = Subject("grpcio", [sys.executable, "-c", GRPCIO, "PORT"], folder)
        h2 = Subject("h2", [sys.executable, "-c", H2, "PORT"], ROOT)
        message = infer_message()
        cases = [
            ("edgepack, with the model", ours, "ModelInfer", message),
            ("edgepack, empty", ours, "ServerLive", b""),
            ("h2 on the same loop, empty", h2, "ServerLive", b""),
            ("grpcio, empty handler", grpcio, "ModelInfer", message),
        ]
        found: dict[str, list[tuple[float, float, float]]] = {case[0]: [] for case in cases}
        bare = []
        for _ in range(ROUNDS):
            bare.append(bare_us(folder / "mlp.onnx"))
            for what, subject, method, body in cases:
                found[what].append(measure(subject, method, body))
    medians = {
        what: [statistics.median(column) for column in zip(*figures, strict=True)]
        for what, figures in found.items()
    }
    rows = [Row("session.run alone, CPU", statistics.median(bare), "us")]
    for what, (spent_us, rate, memory_mb) in medians.items():
        rows += [
            Row(f"{what}, CPU per call", spent_us, "us"),
            Row(f"{what}, answers per second", rate, "1/s"),
            Row(f"{what}, memory (PSS)", memory_mb, "MB"),
        ]
    ratio = medians[cases[0][0]][0] / medians[cases[3][0]][0]
    rows.append(Row("CPU with the model, part of grpcio's empty handler", ratio, "x", "0.5"))
    print_table("gRPC", rows)


if __name__ == "__main__":
    main()
