"""What a request costs in other servers of models: CPU, start and memory beside ours.

    python tests/benchmarks servers
    python tests/benchmarks servers:fastapi,mlserver

The MLP 64-512-512-512-10, one intra-op thread, JSON, 8 keep-alive connections, in turns. FastAPI,
MLServer, BentoML and LitServe each have an environment of their own under `.cache/peers`, made on
first use from `peers/requirements-NAME.txt`; each takes the same body, but for LitServe's path.
MLServer is asked over gRPC as well.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.grpc_serving import drive as drive_grpc
from tests.benchmarks.grpc_serving import infer_message
from tests.benchmarks.grpc_serving import measure as measure_grpc
from tests.benchmarks.peers import environment
from tests.benchmarks.serving import (
    LOAD_S,
    Load,
    Subject,
    cpu_s,
    drive,
    free_port,
    json_load,
    measure,
    prepare,
    pss_mb,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS: Final = ("fastapi", "mlserver", "bentoml", "litserve")
ROUNDS: Final = 2
_HERE: Final = Path(__file__).parent / "peers"
_START_S: Final = 90.0
# CPU per request of ours, as a part of theirs.
_REACH: Final = {"mlserver": "0.1667"}


@dataclass(frozen=True)
class Found:
    """What one server cost."""

    cpu_us: float
    rate: float
    memory_mb: float
    start_s: float
    grpc_us: float = 0.0


def main(rows: Sequence[str] = ()) -> None:
    """Print a row for each server, and ours."""
    names = list(rows or ROWS)
    found: dict[str, list[Found]] = {name: [] for name in names}
    ours: list[tuple[float, float, float]] = []
    calls: list[float] = []
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        subject, _ = prepare(folder)
        pythons = {name: environment(f"requirements-{name}.txt") for name in names}
        for _ in range(ROUNDS):
            ours.append(measure(subject, json_load(), folder))
            if "mlserver" in names:
                calls.append(measure_grpc(subject, "ModelInfer", infer_message())[0])
            for name in names:
                found[name].append(measure_peer(name, pythons[name], folder, subject))
    cpu_us, rate, memory_mb = (statistics.median(column) for column in zip(*ours, strict=True))
    table = [
        Row("edgepack, CPU per request", cpu_us, "us"),
        Row("edgepack, answers per second", rate, "1/s"),
        Row("edgepack, memory (PSS)", memory_mb, "MB"),
    ]
    for name, figures in found.items():
        theirs = statistics.median(one.cpu_us for one in figures)
        table += [
            Row(f"{name}, CPU per request", theirs, "us"),
            Row("  ours as a part of it", cpu_us / theirs, "x", _REACH.get(name, "")),
            Row(f"{name}, answers per second", statistics.median(o.rate for o in figures), "1/s"),
            Row(f"{name}, memory (PSS)", statistics.median(o.memory_mb for o in figures), "MB"),
            Row(f"{name}, start to first answer", min(o.start_s for o in figures), "s"),
        ]
    if calls:
        mine = statistics.median(calls)
        theirs = statistics.median(one.grpc_us for one in found["mlserver"])
        table += [
            Row("edgepack, CPU per gRPC call", mine, "us"),
            Row("mlserver, CPU per gRPC call", theirs, "us"),
            Row("  ours as a part of it", mine / theirs, "x", "0.25"),
        ]
    print_table("servers", table)


def measure_peer(name: str, python: Path, folder: Path, ours: Subject) -> Found:
    """Start another server, drive it, and end it with all its processes."""
    port = free_port()
    load = json_load()
    if name == "litserve":
        load = replace(load, path="/predict")
    environ = {**os.environ, "MODEL": str(ours.folder / "mlp.onnx"), "BENTOML_DO_NOT_TRACK": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command(name, python, ours.folder / "mlp.onnx", port), cwd=_HERE, env=environ,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(process, port, load)
        start_s = time.perf_counter() - began
        drive(port, load, 1.0, folder)
        before, began = cpu_s(process.pid), time.perf_counter()
        answers = drive(port, load, LOAD_S, folder)
        elapsed_s = time.perf_counter() - began
        spent_s = cpu_s(process.pid) - before
        memory_mb, grpc_us = pss_mb(process.pid), 0.0
        if name == "mlserver":
            before = cpu_s(process.pid)
            called = drive_grpc(port + 1, "ModelInfer", infer_message(), LOAD_S)
            grpc_us = (cpu_s(process.pid) - before) / called * 1e6
        per_answer_us = spent_s / answers * 1e6
        return Found(per_answer_us, answers / elapsed_s, memory_mb, start_s, grpc_us)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def command(name: str, python: Path, model: Path, port: int) -> list[str]:
    """Return how a server is started."""
    if name == "bentoml":
        program = python.with_name("bentoml")
        return [
            str(program), "serve", "serve_bentoml:Mlp", "--host", "127.0.0.1", "-p", str(port),
        ]  # fmt: skip
    return [str(python), f"serve_{name}.py", str(model), str(port)]


def wait_for(process: subprocess.Popen[bytes], port: int, load: Load) -> None:
    """Ask until the first good answer."""
    import http.client

    give_up_at = time.perf_counter() + _START_S
    while time.perf_counter() < give_up_at:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", load.path, load.body, load.fields)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise RuntimeError("no good answer in time")
