"""Half of its full load for ten minutes: errors, memory, and the slowest answers at both ends.

    python tests/benchmarks soak            10 minutes
    python tests/benchmarks soak:60         an hour

Requests are sent at fixed times whether or not earlier ones are answered, and a request's time
counts from when it should have been sent. A machine that is shared stands still now and then: so a
bare loop that only burns the same CPU time for an answer gets the same load before and after.
"""

from __future__ import annotations

import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.serving import (
    Load,
    drive,
    free_port,
    json_load,
    prepare,
    pss_mb,
    start,
    stop,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS: Final = tuple(str(minutes) for minutes in (1, 2, 5, 10, 30, 60))
CONNECTIONS: Final = 8
SETTLE_S: Final = 10.0
BARE_S: Final = 30.0

BARE: Final = """
import selectors, socket, sys, time
BUSY_S = float(sys.argv[2])
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}"
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
with selectors.DefaultSelector() as selector:
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
            elif key.fileobj.recv(1 << 16):
                until = time.thread_time() + BUSY_S
                while time.thread_time() < until:
                    pass
                key.fileobj.sendall(ANSWER)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
"""


def main(rows: Sequence[str] = ()) -> None:
    """Print what became of a server under load for so many minutes."""
    minutes = int(rows[0]) if rows else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, _ = prepare(folder)
        load = json_load()
        process, _ = start(ours, port := free_port(), load)
        try:
            drive(port, load, 2.0, folder)
            full = drive(port, load, 5.0, folder) / 5.0
            send(port, load, full / 2, SETTLE_S)
            bare_before_ms = bare_p99_ms(load, full / 2)
            before_mb = pss_mb(process.pid)
            lasting = [send(port, load, full / 2, 60.0) for _ in range(minutes)]
            after_mb = pss_mb(process.pid)
            bare_after_ms = bare_p99_ms(load, full / 2)
        finally:
            stop(process)
    p99_ms = [p99(times) * 1e3 for times, _ in lasting]
    print_table(
        f"soak, {minutes} minutes at half load",
        [
            Row("requests a second", full / 2, "1/s"),
            Row("answers", float(sum(len(times) for times, _ in lasting)), ""),
            Row("errors", float(sum(errors for _, errors in lasting)), "", "0"),
            Row("memory at the start (PSS)", before_mb, "MB"),
            Row("memory drift", (after_mb / before_mb - 1) * 100, "%", "2"),
            Row("p99 of the first minute", p99_ms[0], "ms"),
            Row("p99 of the last minute", p99_ms[-1], "ms"),
            Row("last over first", p99_ms[-1] / p99_ms[0], "x", "1.2"),
            Row("p99 of a minute, the best", min(p99_ms), "ms"),
            Row("p99 of a minute, the median", statistics.median(p99_ms), "ms"),
            Row("p99 of a minute, the worst", max(p99_ms), "ms"),
            Row("p99 of the bare loop, before", bare_before_ms, "ms"),
            Row("p99 of the bare loop, after", bare_after_ms, "ms"),
        ],
    )


def p99(times: list[float]) -> float:
    """Return what 99 of 100 stay under."""
    return statistics.quantiles(times, n=100)[98]


def bare_p99_ms(load: Load, rate: float) -> float:
    """Return how slow a loop is that is busy for half of the time at this rate."""
    port = free_port()
    argv = [sys.executable, "-I", "-c", BARE, str(port), str(0.5 / rate)]
    process = subprocess.Popen(argv)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        return p99(send(port, load, rate, BARE_S)[0]) * 1e3
    finally:
        process.kill()
        process.wait()


def send(port: int, load: Load, rate: float, seconds: float) -> tuple[list[float], int]:
    """Send requests at fixed times; return the seconds of each good answer, and the others."""
    fields = {"Host": "127.0.0.1", **load.fields, "Content-Length": str(len(load.body))}
    lines = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    wire = f"POST {load.path} HTTP/1.1\r\n{lines}\r\n".encode() + load.body
    times: list[float] = []
    errors = 0
    due: dict[socket.socket, float] = {}
    with selectors.DefaultSelector() as selector:
        idle: deque[socket.socket] = deque()
        for _ in range(CONNECTIONS):
            client = socket.create_connection(("127.0.0.1", port))
            selector.register(client, selectors.EVENT_READ)
            idle.append(client)
        began = time.perf_counter()
        sent = 0
        while (now := time.perf_counter()) - began < seconds or due:
            planned = began + sent / rate
            while idle and planned <= now and planned - began < seconds:
                client = idle.popleft()
                client.sendall(wire)
                due[client] = planned
                sent += 1
                planned = began + sent / rate
            wait_s = max(0.0, planned - time.perf_counter()) if idle else 1.0
            for key, _ in selector.select(min(wait_s, 0.05)):
                client = key.fileobj  # type: ignore[assignment]
                good = client.recv(1 << 16).startswith(b"HTTP/1.1 200")
                elapsed_s = time.perf_counter() - due.pop(client)
                if good:
                    times.append(elapsed_s)
                else:
                    errors += 1
                idle.append(client)
        for client in idle:
            client.close()
    return times, errors
