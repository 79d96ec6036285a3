"""How long the command line takes to say something, and a bundle file to serve."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.figures import Row, print_table

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


def _model(folder: Path) -> Path:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    sizes = (64, 512, 512, 512, 10)
    nodes, tensors, last = [], [], "x"
    random = np.random.default_rng(0)
    for index, (rows, columns) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weights = (random.normal(size=(rows, columns)) / rows**0.5).astype(np.float32)
        tensors.append(numpy_helper.from_array(weights, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"h{index}"]))
        last = f"a{index}" if index < len(sizes) - 2 else "y"
        nodes.append(helper.make_node("Relu" if last != "y" else "Identity", [f"h{index}"], [last]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        tensors,
    )
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "mlp.onnx",
    )
    return folder / "mlp.onnx"


def main() -> None:
    """Print the figures of the command line's start and of a bundle file's."""
    helps = [_wall_s(_edgepack("--help")) for _ in range(RUNS)]
    rows = [Row("edgepack --help", statistics.median(helps), "s", "0.25 s")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _model(folder)
        for target in ("cpu-x86_64", "cpu-arm64"):
            subprocess.run(
                _edgepack("build", model, "-t", target, "-o", folder / "dist", "-q"),
                cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        bundle = folder / "dist" / "mlp-1.0.0-cpu-x86_64.edgepack"
        for target, limit in (("cpu-x86_64", "14 MB"), ("cpu-arm64", "11 MB")):
            size = (folder / "dist" / f"mlp-1.0.0-{target}.edgepack").stat().st_size
            over = (size - model.stat().st_size) / 1e6
            rows.append(Row(f"bundle beyond its model, {target}", over, "MB", limit))
        first, again = [], []
        for index in range(3):
            env = {**os.environ, "XDG_CACHE_HOME": str(folder / f"cache-{index}")}
            serve = _edgepack("run", bundle, "--port", "0")
            first.append(_until_ready_s(serve, env))
            again += [_until_ready_s(serve, env) for _ in range(2)]
        rows.append(Row("edgepack run, first time", statistics.median(first), "s", "2 s"))
        rows.append(Row("edgepack run, again", statistics.median(again), "s", "0.9 s"))
    print_table("starting", rows)
