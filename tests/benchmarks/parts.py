"""What it costs to run a photo model cut into head, core and tail instead of whole.

All of it in ONNX Runtime on the CPU, in alternating calls: what a TensorRT core brings is another
benchmark's. 600 kB cross the first cut in every call, 4 kB the second.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.engine import open_engine
from runtime.tensor import Tensor
from tests.benchmarks.figures import Row, print_table

ROOT = Path(__file__).resolve().parents[2]
PHOTO = (1, 240, 320, 3)
CUTS = {"head": (["photo"], ["x"]), "core": (["x"], ["logits"]),
        "tail": (["logits"], ["top", "classes"])}  # fmt: skip
CALLS = 300
STARTS = 3

CHILD = """
import sys
from tests.benchmarks.parts import memory_mib
print(memory_mib(sys.argv[1], sys.argv[2] == "parts"))
"""


class Release:
    """What an engine reads of a release."""

    def __init__(self, folder: str, *, cut: bool) -> None:
        spec = find_spec("onnxruntime")
        assert spec is not None
        assert spec.origin is not None
        (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*.*.*")
        self.folder = folder
        engine: dict[str, Any] = {
            "name": "onnxruntime", "library": str(library), "artifact": "whole.onnx", "threads": 1,
        }  # fmt: skip
        if cut:
            engine["parts"] = {part: f"{part}.onnx" for part in CUTS}
            engine["artifact"] = "core.onnx"
        outputs = [{"name": name} for name in CUTS["tail"][1]]
        signature = {"inputs": [{"name": "photo"}], "outputs": outputs}
        self.manifest = {"engine": engine, "model": {"signature": signature}}


def write_models(folder: Path) -> None:
    """Write seven convolutions behind a resize and in front of a top 5, whole and cut."""
    rng = np.random.default_rng(0)
    weights: list[Any] = []

    def constant(array: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array), f"w_{len(weights)}"))
        return f"w_{len(weights) - 1}"

    def drawn(*shape: int) -> str:
        scale = np.sqrt(np.prod(shape[1:]))
        return constant((rng.standard_normal(shape) / scale).astype(np.float32))

    sizes = constant(np.array([1, 3, 224, 224]))
    nodes = [
        helper.make_node("Cast", ["photo"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["chw", "", "", sizes], ["large"], mode="linear", antialias=1),
        helper.make_node("Div", ["large", constant(np.float32(255))], ["x"]),
    ]
    value, width = "x", 3
    for layer, (channels, stride) in enumerate(
        [(32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)]
    ):
        nodes += [
            helper.make_node("Conv", [value, drawn(channels, width, 3, 3)], [f"c{layer}"],
                             strides=[stride] * 2, pads=[1] * 4),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]  # fmt: skip
        value, width = f"r{layer}", channels
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", drawn(256, 1000)], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
        helper.make_node("TopK", ["scores", constant(np.array([5]))], ["top", "classes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "photo",
        [helper.make_tensor_value_info("photo", TensorProto.UINT8, PHOTO)],
        [
            helper.make_tensor_value_info("top", TensorProto.FLOAT, [1, 5]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, [1, 5]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "whole.onnx")
    for part, (inputs, outputs) in CUTS.items():
        onnx.utils.extract_model(
            str(folder / "whole.onnx"), str(folder / f"{part}.onnx"), inputs, outputs
        )


def _feeds() -> dict[str, Tensor]:
    return {"photo": Tensor("uint8", PHOTO, bytes(range(256)) * (240 * 320 * 3 // 256))}


def memory_mib(folder: str, cut: bool) -> float:
    """Return what this process holds alone after some calls, shared pages by their part."""
    engine = open_engine(Release(folder, cut=cut))
    for _ in range(20):
        engine.run(_feeds())
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel tells no proportional set size")


def _child_mib(folder: str, form: str) -> float:
    runs = [
        subprocess.run(
            [sys.executable, "-c", CHILD, folder, form],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, check=True,
            capture_output=True, text=True,
        ).stdout
        for _ in range(STARTS)
    ]  # fmt: skip
    return statistics.median(map(float, runs))


def main() -> None:
    """Print latency and memory of the whole and of the parts."""
    with tempfile.TemporaryDirectory() as name:
        write_models(Path(name))
        engines = [open_engine(Release(name, cut=cut)) for cut in (False, True)]
        feeds = _feeds()
        spent: list[list[float]] = [[], []]
        for call in range(CALLS + 10):
            for engine, times in zip(engines, spent, strict=True):
                began = time.perf_counter()
                engine.run(feeds)
                if call >= 10:
                    times.append((time.perf_counter() - began) * 1e3)
        for engine in engines:
            engine.close()
        whole_ms, parts_ms = map(statistics.median, spent)
        whole_mib, parts_mib = _child_mib(name, "whole"), _child_mib(name, "parts")
    print_table(
        "parts",
        [
            Row("whole, p50", whole_ms, "ms"),
            Row("head, core and tail, p50", parts_ms, "ms"),
            Row("of it, for the cuts", (parts_ms - whole_ms) * 1e3, "us"),
            Row("whole, memory", whole_mib, "MiB"),
            Row("head, core and tail, memory", parts_mib, "MiB"),
        ],
    )
