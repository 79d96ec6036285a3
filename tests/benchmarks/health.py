"""How soon health answers while eight connections keep a server busy: p50, p99 and the longest.

Long work in threads (convolutions on a photo of 600 kB), short work in the loop (the MLP in JSON),
and large bodies both ways (3 MB in binary, of which the engine makes next to nothing). The HTTP
probe connects anew each time, as Kubernetes does; the gRPC one keeps its connection.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.benchmarks.figures import Row, print_table
from tests.benchmarks.serving import (
    CONNECTIONS,
    ROOT,
    Load,
    Subject,
    drive,
    free_port,
    json_load,
    start,
    stop,
)  # fmt: skip
from tests.models.mlp import make_mlp

if TYPE_CHECKING:
    from collections.abc import Callable

LOAD_S: Final = 12.0
MEASURE_S: Final = 10.0
PAUSE_S: Final = 0.02
REACH_MS: Final = "50"
# Side and layers: some ten milliseconds of work, and next to none.
PHOTO: Final = (224, 6)
LARGE: Final = (512, 0)
LIVE: Final = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def main() -> None:
    """Print the figures of health."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = (
            ("convolutions, binary", make_convolutions(*PHOTO), binary_load("busy", PHOTO[0])),
            ("MLP, JSON", make_mlp(), replace(json_load(), path="/v2/models/busy/infer")),
            ("3 MB both ways, binary", make_convolutions(*LARGE), binary_load("busy", LARGE[0])),
        )
        for number, (what, model, load) in enumerate(cases):
            place = folder / str(number)
            place.mkdir()
            found = measure(build(model, place), load)
            for protocol, latencies_s in found.items():
                for part, quantile in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0)):
                    value = 1000 * float(np.quantile(latencies_s, quantile))
                    reach = REACH_MS if part == "p99" else ""
                    rows.append(Row(f"{what}: {protocol}, {part}", value, "ms", reach))
    print_table("health while saturated", rows)


def measure(subject: Subject, load: Load) -> dict[str, list[float]]:
    """Return the seconds that each probe took, by protocol."""
    process, _ = start(subject, port := free_port(), load)
    try:
        # in a process of its own, so that the client's load is not what the probes wait for
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            loading = pool.submit(drive, port, load, LOAD_S, subject.folder)
            time.sleep(1.0)
            probes = {"HTTP": probe_http(port), "gRPC": probe_grpc(port)}
            for ask in probes.values():
                ask()  # connects, which is not what is measured
            found: dict[str, list[float]] = {protocol: [] for protocol in probes}
            until = time.perf_counter() + MEASURE_S - 1.0
            while time.perf_counter() < until:
                for protocol, ask in probes.items():
                    before = time.perf_counter()
                    ask()
                    found[protocol].append(time.perf_counter() - before)
                time.sleep(PAUSE_S)
            if loading.done():
                raise RuntimeError("the load ended before the probes did")
            loading.result()
    finally:
        stop(process)
    return found


def probe_http(port: int) -> Callable[[], None]:
    """Return what asks once over a new connection."""

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(LIVE)
            if not client.recv(4096).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("not alive")

    return ask


def probe_grpc(port: int) -> Callable[[], None]:
    """Return what asks once over one channel that is kept."""
    import grpc

    check = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/grpc.health.v1.Health/Check")

    def ask() -> None:
        if check(b"", timeout=10) != b"\x08\x01":  # field 1, SERVING
            raise RuntimeError("not serving")

    return ask


def build(model: onnx.ModelProto, folder: Path) -> Subject:
    """Return the server of a model, as a release with one intra-op thread."""
    onnx.save(model, folder / "busy.onnx")
    subprocess.run(
        [sys.executable, "-m", "packager", "build", folder / "busy.onnx", "-t", "cpu-x86_64",
         "--precision", "fp32", "-o", folder, "-q"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (bundle,) = folder.glob("busy-*.edgepack")
    subprocess.run([sys.executable, "-I", bundle, "unpack", folder / "release"], check=True)
    argv = [sys.executable, "-I", str(folder / "release"), "serve", "--port", "PORT"]
    return Subject("edgepack", [*argv, "--threads", "1"], folder)


def make_convolutions(side: int, layers: int) -> onnx.ModelProto:
    """Return convolutions at half a photo's side; without any, what gives the photo back."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "photo", 3
    for layer in range(layers):
        kernel = rng.standard_normal((32, channels, 3, 3)).astype(np.float32) / 10
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        step = 1 if layer else 2
        nodes.append(
            helper.make_node(
                "Conv", [last, f"w{layer}"], [f"c{layer}"], strides=[step] * 2, pads=[1] * 4
            )
        )
        last, channels = f"c{layer}", 32
    if layers:
        nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
        last = "pooled"
    nodes.append(helper.make_node("Relu", [last], ["out"]))
    value = helper.make_tensor_value_info
    answered = ["batch", channels, *((1, 1) if layers else (side, side))]
    graph = helper.make_graph(
        nodes,
        "busy",
        [value("photo", TensorProto.FLOAT, ["batch", 3, side, side])],
        [value("out", TensorProto.FLOAT, answered)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def binary_load(name: str, side: int) -> Load:
    """Return one photo with the binary tensor extension both ways."""
    size = 4 * 3 * side * side
    item = {
        "name": "photo", "shape": [1, 3, side, side], "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    }  # fmt: skip
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    fields = {"Inference-Header-Content-Length": str(len(head))}
    fields["Content-Type"] = "application/octet-stream"
    path = f"/v2/models/{name}/infer"
    return Load(head + bytes(size), fields, path=path, connections=CONNECTIONS)


if __name__ == "__main__":
    main()
