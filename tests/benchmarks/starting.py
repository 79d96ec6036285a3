"""How long the command line takes to say something, and a bundle file to serve."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

from tests.benchmarks.figures import Row, print_table
from tests.models.mlp import make_mlp

ROOT = Path(__file__).resolve().parents[2]
RUNS = 7


def _edgepack(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "packager", *map(str, arguments)]


def _wall_s(argv: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def _until_ready_s(argv: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"http://\S+:\d+", line):
                return time.perf_counter() - began
        raise RuntimeError("the server ended before it was ready")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def main() -> None:
    """Print the figures of the command line's start and of a bundle file's."""
    helps = [_wall_s(_edgepack("--help")) for _ in range(RUNS)]
    rows = [Row("edgepack --help", statistics.median(helps), "s", "0.25 s")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "mlp.onnx"
        onnx.save(make_mlp(), model)
        for target, limit in (("cpu-x86_64", "14 MB"), ("cpu-arm64", "11 MB")):
            done = subprocess.run(
                _edgepack("build", model, "-t", target, "-o", folder / "dist", "-q", "--json"),
                cwd=ROOT, check=True, capture_output=True,
            )  # fmt: skip
            (built,) = json.loads(done.stdout)
            carried = built["size_bytes"] - built["parts"]["model"] - built["parts"]["golden"]
            rows.append(Row(f"bundle beyond its model, {target}", carried / 1e6, "MB", limit))
        bundle = folder / "dist" / "mlp-1.0.0-cpu-x86_64.edgepack"
        first, again = [], []
        for index in range(3):
            env = {**os.environ, "XDG_CACHE_HOME": str(folder / f"cache-{index}")}
            serve = _edgepack("run", bundle, "--port", "0")
            first.append(_until_ready_s(serve, env))
            again += [_until_ready_s(serve, env) for _ in range(2)]
        rows.append(Row("edgepack run, first time", statistics.median(first), "s", "2 s"))
        rows.append(Row("edgepack run, again", statistics.median(again), "s", "0.9 s"))
    print_table("starting", rows)
