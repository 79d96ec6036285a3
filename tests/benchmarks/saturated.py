"""How much of the bare engine's throughput a saturated server keeps: EfficientNet-Lite0, binary.

One intra-op thread and one worker against `session.run` in a loop on as many threads, in turns;
both engines are ONNX Runtime with the same file, the same input and spinning off.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.benchmarks.cases import make_case
from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.serving import (
    ROOT,
    ROUNDS,
    Load,
    Subject,
    drive,
    free_port,
    start,
    stop,
)  # fmt: skip

SIDE: Final = 224
MEASURE_S: Final = 5.0

BARE: Final = """
import sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(info,) = session.get_inputs()
photo = np.zeros((1, 3, 224, 224), np.float32)
for seconds in (1.0, 5.0):
    runs, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        session.run(None, {info.name: photo})
        runs += 1
    rate = runs / (time.perf_counter() - began)
print(rate)
"""


def main() -> None:
    """Print both throughputs and their ratio."""
    case = make_case("efficientnet")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "edgepack.toml"
        recipe.write_text("[server]\nthreads = 1\nworkers = 1\n")
        subprocess.run(
            [sys.executable, "-m", "packager", "build", case.original, "-t", "cpu-x86_64",
             "--precision", "fp32", "--name", "efficientnet", "-r", recipe, "-o", folder, "-q"],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        (bundle,) = folder.glob("efficientnet-*.edgepack")
        release = folder / "release"
        subprocess.run([sys.executable, "-I", bundle, "unpack", release], check=True)
        manifest = json.loads((release / "manifest.json").read_text())
        argv = [sys.executable, "-I", str(release), "serve", "--port", "PORT"]
        subject = Subject("edgepack", argv, folder)
        load = photo_load(manifest["model"]["signature"]["inputs"][0]["name"])
        bare, ours = [], []
        for _ in range(ROUNDS):
            bare.append(bare_rate(release / manifest["engine"]["artifact"]))
            process, _ = start(subject, port := free_port(), load)
            try:
                drive(port, load, 1.0, folder)
                ours.append(drive(port, load, MEASURE_S, folder) / MEASURE_S)
            finally:
                stop(process)
    ratios = [mine / its for mine, its in zip(ours, bare, strict=True)]
    print_table(
        "saturated",
        [
            Row("session.run alone", statistics.median(bare), "runs/s"),
            Row("edgepack, binary, 4 connections", statistics.median(ours), "answers/s"),
            Row("part of the bare engine's", statistics.median(ratios), "x", "0.97", at_least=True),
        ],
    )


def photo_load(name: str) -> Load:
    """Return a photo of 600 kB with the binary tensor extension both ways."""
    size = 4 * 3 * SIDE * SIDE
    item = {
        "name": name, "shape": [1, 3, SIDE, SIDE], "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    }  # fmt: skip
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    fields = {"Inference-Header-Content-Length": str(len(head))}
    fields["Content-Type"] = "application/octet-stream"
    path = "/v2/models/efficientnet/infer"
    return Load(head + bytes(size), fields, path=path, connections=4)


def bare_rate(model: Path) -> float:
    """Return the runs per second of `session.run` alone, in its own process."""
    argv = [sys.executable, "-c", BARE, str(model)]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
