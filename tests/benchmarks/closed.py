"""What TLS and keys cost a server: its start, its memory and its CPU, beside the same without.

    python tests/benchmarks closed

The release of `serving`, started in turns with and without a certificate (P-256) and a file of
keys. A start ends with the first answer, over TLS with its handshake; memory is the proportional
set size after some seconds of load over 8 connections. wrk does not look at certificates.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.serving import (
    CACHE,
    CONNECTIONS,
    LOAD_S,
    WRK,
    Load,
    cpu_s,
    free_port,
    json_load,
    prepare,
    pss_mb,
    stop,
)
from tests.unit.runtime.closed.authority import Authority

if TYPE_CHECKING:
    import ssl

STARTS = 9
ROUNDS = 3
REACH = ("0.35 s", "66 MB")


@dataclass(frozen=True)
class Case:
    """One way to run the release, and how a client reaches it."""

    name: str
    argv: list[str]
    load: Load
    context: ssl.SSLContext | None = None

    @property
    def scheme(self) -> str:
        """The URL's first word."""
        return "http" if self.context is None else "https"


@dataclass(frozen=True)
class Run:
    """What one run took."""

    start_s: float
    memory_mb: float
    request_us: float


def main() -> None:
    """Print the figures of a closed server beside an open one's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = make_cases(folder)
        starts: dict[str, list[float]] = {case.name: [] for case in cases}
        runs: dict[str, list[Run]] = {case.name: [] for case in cases}
        for turn in range(STARTS):
            for case in cases:
                run = measure(case, folder, loaded=turn < ROUNDS)
                starts[case.name].append(run.start_s)
                if turn < ROUNDS:
                    runs[case.name].append(run)
    rows = []
    for case in cases:
        start_reach, memory_reach = ("0.25 s", "60 MB") if case.context is None else REACH
        found = runs[case.name]
        rows += [
            Row(
                f"{case.name}, start to first answer",
                statistics.median(starts[case.name]), "s", start_reach,
            ),
            Row(f"{case.name}, its fastest start", min(starts[case.name]), "s"),
            Row(
                f"{case.name}, memory (PSS)",
                statistics.median(run.memory_mb for run in found), "MB", memory_reach,
            ),
            Row(
                f"{case.name}, CPU per JSON request",
                statistics.median(run.request_us for run in found), "us",
            ),
        ]  # fmt: skip
    print_table("closed", rows)


def make_cases(folder: Path) -> list[Case]:
    """Return the release as it stands, and with TLS and keys."""
    ours, _ = prepare(folder)
    (bundle,) = folder.glob("mlp-*.edgepack")
    authority = Authority(folder)
    pair = authority.issue("server")
    keys = folder / "keys.json"
    key = subprocess.run(
        [sys.executable, "-I", bundle, "new-key", "bench", "--file", keys],
        check=True, capture_output=True, text=True,
    ).stdout.split()[0]  # fmt: skip
    files = ["--tls-cert", pair.cert, "--tls-key", pair.key, "--keys", keys]
    load = json_load()
    closed = replace(load, fields={**load.fields, "Authorization": f"Bearer {key}"})
    return [
        Case("open", ours.argv, load),
        Case("TLS and keys", [*ours.argv, *map(str, files)], closed, authority.context()),
    ]


def measure(case: Case, folder: Path, *, loaded: bool) -> Run:
    """Start a server, and with `loaded` keep it busy for a while."""
    port = free_port()
    argv = [word.replace("PORT", str(port)) for word in case.argv]
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / CACHE)}
    began = time.perf_counter()
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, env=env)
    try:
        wait_for(process, port)
        ask_once(case, port)
        start_s = time.perf_counter() - began
        if not loaded:
            return Run(start_s, 0.0, 0.0)
        drive(case, port, 1.0, folder)
        before = cpu_s(process.pid)
        answers = drive(case, port, LOAD_S, folder)
        request_us = (cpu_s(process.pid) - before) / answers * 1e6
        return Run(start_s, pss_mb(process.pid), request_us)
    finally:
        stop(process)


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Return when the server listens."""
    give_up_at = time.perf_counter() + 60
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30):
                return
        except ConnectionRefusedError:
            if process.poll() is not None or time.perf_counter() > give_up_at:
                raise RuntimeError("the server does not start") from None
            time.sleep(0.001)


def ask_once(case: Case, port: int) -> None:
    """Ask over a connection of its own; anything but 200 ends the benchmark."""
    connection = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        if case.context is None
        else http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=case.context)
    )
    connection.request("POST", case.load.path, case.load.body, case.load.fields)
    reply = connection.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"{case.name} answers {reply.status}: {reply.read()!r}")
    connection.close()


def drive(case: Case, port: int, seconds: float, folder: Path) -> int:
    """Have wrk keep all connections busy; return the number of answers, all of them good."""
    body, script = folder / "body", folder / "load.lua"
    body.write_bytes(case.load.body)
    fields = "\n".join(f'wrk.headers["{k}"] = "{v}"' for k, v in case.load.fields.items())
    script.write_text(WRK % (body, fields))
    done = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "-s", script,
         f"{case.scheme}://127.0.0.1:{port}{case.load.path}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(done.stdout)
    return int(re.search(r"(\d+) requests in", done.stdout)[1])  # type: ignore[index]


if __name__ == "__main__":
    main()
