"""What a request costs: CPU, start and memory beside `session.run` alone and Flask + gunicorn.

Every server gets the same model (MLP 64-512-512-512-10, one intra-op thread), the same requests
(one row of 64 six-digit numbers) and the same load (8 keep-alive connections), in turns.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx

from tests.benchmarks.figures import Row, print_table
from tests.models.mlp import make_mlp

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = 8
ROUNDS = 3
LOAD_S = 3.0
STARTS = 5
CACHE = "cache"
FIRST = "edgepack, of a release never served before"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MODEL = "/v2/models/mlp/infer"

BARE = """
import sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
row = np.random.default_rng(0).random((1, 64), np.float32)
for seconds in (0.5, 2.0):
    runs, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for _ in range(50):
            session.run(None, {"x": row})
        runs += 50
    per_run_s = (time.process_time() - cpu) / runs
print(per_run_s * 1e6)
"""

FLASK = """
import flask, numpy as np, onnxruntime as ort
app = flask.Flask(__name__)
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession("mlp.onnx", options, providers=["CPUExecutionProvider"])

@app.post("/v2/models/mlp/infer")
def infer():
    given = flask.request.get_json()["inputs"][0]
    row = np.array(given["data"], np.float32).reshape(given["shape"])
    logits = session.run(None, {"x": row})[0]
    return {"model_name": "mlp", "outputs": [{"name": "logits", "datatype": "FP32",
            "shape": list(logits.shape), "data": logits.ravel().tolist()}]}
"""

WRK = """
wrk.method = "POST"
local file = io.open("%s", "rb")
wrk.body = file:read("*a")
%s
"""


@dataclass(frozen=True)
class Load:
    """One request, sent again and again, over so many connections at once."""

    body: bytes
    fields: dict[str, str]
    path: str = MODEL
    connections: int = CONNECTIONS


@dataclass(frozen=True)
class Subject:
    """A server under test: how it is started, and where."""

    name: str
    argv: list[str]
    folder: Path


def json_load() -> Load:
    """Return the protocol's JSON form of one row."""
    numbers = random.Random(0)
    row = [round(numbers.random(), 6) for _ in range(64)]
    document = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": row}]}
    return Load(json.dumps(document).encode(), {"Content-Type": "application/json"})


def binary_load() -> Load:
    """Return the same row with the binary tensor extension both ways."""
    item = {
        "name": "x", "shape": [1, 64], "datatype": "FP32", "parameters": {"binary_data_size": 256},
    }  # fmt: skip
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    fields = {"Inference-Header-Content-Length": str(len(head))}
    return Load(head + bytes(256), {"Content-Type": "application/octet-stream", **fields})


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def cpu_s(pid: int) -> float:
    """Return the user and system time of a process tree."""
    ticks = 0
    for process in tree(pid):
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return ticks / TICKS_PER_S


def pss_mb(pid: int) -> float:
    """Return the proportional memory of a process tree in megabytes."""
    total_kb = 0
    for process in tree(pid):
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        total_kb += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    return total_kb * 1024 / 1e6


def drive(port: int, load: Load, seconds: float, folder: Path) -> int:
    """Keep all connections busy; return the number of answers, all of which have to be good."""
    if shutil.which("wrk"):
        return drive_wrk(port, load, seconds, folder)
    return drive_here(port, load, seconds)


def drive_wrk(port: int, load: Load, seconds: float, folder: Path) -> int:
    """Let wrk send the requests."""
    body = folder / "body"
    body.write_bytes(load.body)
    script = folder / "load.lua"
    fields = "\n".join(f'wrk.headers["{key}"] = "{value}"' for key, value in load.fields.items())
    script.write_text(WRK % (body, fields))
    argv = ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds:.0f}s", "-s", str(script)]
    done = subprocess.run(
        [*argv, f"http://127.0.0.1:{port}{load.path}"], check=True, capture_output=True, text=True
    )
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(done.stdout)
    return int(re.search(r"(\d+) requests in", done.stdout)[1])  # type: ignore[index]


def drive_here(port: int, load: Load, seconds: float) -> int:
    """Send the requests from this process, where wrk is missing."""
    fields = {"Host": "127.0.0.1", **load.fields, "Content-Length": str(len(load.body))}
    lines = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    wire = f"POST {load.path} HTTP/1.1\r\n{lines}\r\n".encode() + load.body
    answers = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(load.connections):
            client = socket.create_connection(("127.0.0.1", port))
            selector.register(client, selectors.EVENT_READ)
            client.sendall(wire)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for key, _ in selector.select():
                client = key.fileobj  # type: ignore[assignment]
                if not client.recv(1 << 16).startswith(b"HTTP/1.1 200"):
                    raise RuntimeError("an answer is not 200")
                answers += 1
                client.sendall(wire)
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return answers


def start(subject: Subject, port: int, load: Load) -> tuple[subprocess.Popen[bytes], float]:
    """Start a server; return it and the seconds from process start to its first answer."""
    argv = [word.replace("PORT", str(port)) for word in subject.argv]
    env = {**os.environ, "XDG_CACHE_HOME": str(subject.folder / CACHE)}
    began = time.perf_counter()
    process = subprocess.Popen(argv, cwd=subject.folder, stderr=subprocess.DEVNULL, env=env)
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30):
                break
        except ConnectionRefusedError:
            if process.poll() is not None or time.perf_counter() - began > 60:
                raise RuntimeError(f"{subject.name} does not start") from None
            time.sleep(0.001)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", load.path, load.body, load.fields)
    reply = connection.getresponse()
    elapsed_s = time.perf_counter() - began
    if reply.status != 200:
        raise RuntimeError(f"{subject.name} answers {reply.status}: {reply.read()!r}")
    connection.close()
    return process, elapsed_s


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and wait for it."""
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def prepare(folder: Path) -> tuple[Subject, Subject | None]:
    """Build and unpack the bundle; write the Flask application where Flask is installed."""
    model = folder / "mlp.onnx"
    onnx.save(make_mlp(), model)
    edgepack = [sys.executable, "-m", "packager"]
    subprocess.run(
        [*edgepack, "build", model, "-t", "cpu-x86_64", "--precision", "fp32", "-o", folder, "-q"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (bundle,) = folder.glob("mlp-*.edgepack")
    release = folder / "release"
    subprocess.run([sys.executable, "-I", bundle, "unpack", release], check=True)
    argv = [sys.executable, "-I", str(release), "serve", "--port", "PORT", "--threads", "1"]
    ours = Subject("edgepack", argv, folder)
    (folder / "application.py").write_text(FLASK)
    bind = "-b127.0.0.1:PORT"
    gunicorn = [sys.executable, "-m", "gunicorn", "-w2", bind, "application:app"]
    probe = subprocess.run(
        [sys.executable, "-c", "import flask, gunicorn"], check=False, capture_output=True
    )
    if probe.returncode:
        print("  Flask or gunicorn is not installed: not compared")
        return ours, None
    return ours, Subject("Flask + gunicorn, 2 workers", gunicorn, folder)


def bare_us(model: Path) -> float:
    """Return the CPU time of `session.run` alone, in its own process."""
    argv = [sys.executable, "-c", BARE, str(model)]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def measure(subject: Subject, load: Load, folder: Path) -> tuple[float, float, float]:
    """Return the CPU microseconds per request, requests per second, and memory in MB."""
    process, _ = start(subject, port := free_port(), load)
    try:
        drive(port, load, 1.0, folder)
        before = cpu_s(process.pid)
        began = time.perf_counter()
        answers = drive(port, load, LOAD_S, folder)
        elapsed_s = time.perf_counter() - began
        spent_s = cpu_s(process.pid) - before
        return spent_s / answers * 1e6, answers / elapsed_s, pss_mb(process.pid)
    finally:
        stop(process)


def main() -> None:
    """Print the figures of serving."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, flask = prepare(folder)
        subjects = [("edgepack JSON", ours, json_load()), ("edgepack binary", ours, binary_load())]
        if flask is not None:
            subjects.append((flask.name, flask, json_load()))
        bare: list[float] = []
        found: dict[str, list[tuple[float, float, float]]] = {what: [] for what, *_ in subjects}
        starts: dict[str, list[float]] = {"edgepack": [], FIRST: []}
        if flask is not None:
            starts[flask.name] = []
        for _ in range(ROUNDS):
            bare.append(bare_us(folder / "mlp.onnx"))
            for what, subject, load in subjects:
                found[what].append(measure(subject, load, folder))
        for _ in range(STARTS):
            shutil.rmtree(folder / CACHE, ignore_errors=True)
            starts[FIRST].append(cold_start(ours))
            for subject in filter(None, (ours, flask)):
                starts[subject.name].append(cold_start(subject))
    medians = {
        what: [statistics.median(column) for column in zip(*figures, strict=True)]
        for what, figures in found.items()
    }
    print_table("serving", table(statistics.median(bare), medians, starts))


def table(
    bare: float, medians: dict[str, list[float]], starts: dict[str, list[float]]
) -> list[Row]:
    """Return the figures with their ratios."""
    rows = [Row("session.run alone, CPU", bare, "us")]
    for what, (spent_us, rate, memory_mb) in medians.items():
        reach = {"edgepack JSON": "3", "edgepack binary": "2.5"}.get(what, "")
        rows += [
            Row(f"{what}, CPU per request", spent_us, "us"),
            Row(f"{what}, multiple of session.run", spent_us / bare, "x", reach),
            Row(f"{what}, answers per second", rate, "1/s"),
            Row(f"{what}, memory (PSS)", memory_mb, "MB", "60 MB" if reach else ""),
        ]
    start_s = {what: statistics.median(seconds) for what, seconds in starts.items()}
    for what, seconds in start_s.items():
        reach = "0.25 s" if what == "edgepack" else ""
        rows.append(Row(f"{what}, start to first answer", seconds, "s", reach))
    other = next((what for what in start_s if what not in ("edgepack", FIRST)), None)
    if other is not None:
        cpu = medians["edgepack JSON"][0] / medians[other][0]
        rows.append(Row(f"CPU per JSON request, part of {other}", cpu, "x", "0.25"))
        start = start_s["edgepack"] / start_s[other]
        rows.append(Row(f"start, part of {other}", start, "x", "0.25"))
    return rows


def cold_start(subject: Subject) -> float:
    """Return the seconds from process start to the first answer."""
    process, elapsed_s = start(subject, free_port(), json_load())
    stop(process)
    return elapsed_s


if __name__ == "__main__":
    main()
