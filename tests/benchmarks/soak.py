"""Half of its full load for ten minutes: errors, memory, and the slowest answers at both ends.

    python tests/benchmarks soak            10 minutes
    python tests/benchmarks soak:60         an hour

Requests are sent at fixed times whether or not earlier ones are answered, and a request's time
counts from when it should have been sent.
"""

from __future__ import annotations

import selectors
import socket
import statistics
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
            before_mb = pss_mb(process.pid)
            lasting = [send(port, load, full / 2, 60.0) for _ in range(minutes)]
            after_mb = pss_mb(process.pid)
        finally:
            stop(process)
    first, last = (statistics.quantiles(minute[0], n=100)[98] * 1e3 for minute in
                   (lasting[0], lasting[-1]))  # fmt: skip
    print_table(
        f"soak, {minutes} minutes at half load",
        [
            Row("requests a second", full / 2, "1/s"),
            Row("answers", float(sum(len(times) for times, _ in lasting)), ""),
            Row("errors", float(sum(errors for _, errors in lasting)), "", "0"),
            Row("memory at the start (PSS)", before_mb, "MB"),
            Row("memory drift", (after_mb / before_mb - 1) * 100, "%", "2"),
            Row("p99 of the first minute", first, "ms"),
            Row("p99 of the last minute", last, "ms"),
            Row("last over first", last / first, "x", "1.2"),
        ],
    )


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
