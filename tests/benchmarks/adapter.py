"""What a call through the TensorRT adapter costs over the bare loop of the same calls.

Both go to the stand-in GPU, whose engine does nothing here: what is left is ours and Python's.
It says nothing of a GPU's own figures, nor of what its driver takes for each call.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.dtypes import pack
from runtime.nvidia.cudart import TO_DEVICE, TO_HOST, load_cudart
from runtime.nvidia.loading import load
from runtime.signature import Signature
from runtime.tensor import Tensor
from tests.benchmarks.figures import Row, print_table
from tests.standin.gpu import StandinGpu
from tests.standin.simulated_tensorrt import IExecutionContext, build_cudart, simulated_vendor

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS, CALLS = 60, 100
TOKENS = ("ids", "mask", "types")
# what it is called, the inputs' names, the engine's type, the model's type, the shape of each
CASES = (
    ("a row of 3", ("x",), "float32", "float32", (1, 3)),
    ("three inputs of 128 int32", TOKENS, "int32", "int32", (1, 128)),
    ("the same as int64 from the client", TOKENS, "int32", "int64", (1, 128)),
    ("a picture, 602 kB", ("x",), "float32", "float32", (1, 3, 224, 224)),
)


def main() -> None:
    """Print microseconds for each call, in alternating rounds."""
    table = []
    with tempfile.TemporaryDirectory() as name:
        library = build_cudart(Path(name))
        for index, (label, *case) in enumerate(CASES):
            copy = Path(name) / f"gpu-{index}.so"
            shutil.copy(library, copy)
            bare_us, ours_us = _alternate(StandinGpu(copy), *case)
            table.append(Row(f"{label}: bare loop", bare_us, "us"))
            table.append(Row(f"{label}: over it", ours_us - bare_us, "us", "50 us"))
    print_table("TensorRT adapter, one call", table)


def _alternate(
    gpu: StandinGpu, names: tuple[str, ...], dtype: str, promised: str, shape: tuple[int, ...]
) -> tuple[float, float]:
    """Return the medians of rounds of the bare loop and of ours, which take turns."""
    open_shape, largest = [-1, *shape[1:]], [8, *shape[1:]]
    plan = gpu.plan(
        inputs=dict.fromkeys(names, (dtype, open_shape)),
        outputs={"y": {"dtype": dtype, "sum": names[0]}},
        profiles=[dict.fromkeys(names, (shape, shape, largest))],
    )
    wire = {
        "inputs": [{"name": name, "dtype": promised, "shape": list(shape)} for name in names],
        "outputs": [{"name": "y", "dtype": dtype, "shape": [1]}],
    }
    feeds, sent = (
        {name: Tensor(kind, shape, pack(kind, [1] * math.prod(shape))) for name in names}
        for kind in (dtype, promised)
    )
    # the simulated work would be most of the time
    IExecutionContext.execute_async_v3 = lambda self, stream: True  # type: ignore[method-assign]
    engine = gpu.open(plan, signature=Signature(wire))
    bare = _bare_loop(gpu, plan, feeds)
    calls: tuple[tuple[Callable[..., Any], dict[str, Tensor], list[float]], ...] = (
        (bare, feeds, []),
        (engine.run, sent, []),
    )
    for _ in range(ROUNDS):
        for call, given, times in calls:
            call(given)
            began = time.perf_counter()
            for _ in range(CALLS):
                call(given)
            times.append((time.perf_counter() - began) / CALLS * 1e6)
    engine.close()
    bare_us, ours_us = (statistics.median(times) for _, _, times in calls)
    return bare_us, ours_us


def _bare_loop(gpu: StandinGpu, plan: bytes, feeds: dict[str, Tensor]) -> Callable[[Any], Any]:
    """Return what a script for this one model and shape would do, with nothing checked."""
    cudart = load_cudart([str(gpu.path)])
    engine = load(simulated_vendor(gpu.trt), plan).engine
    context = engine.create_execution_context()
    stream = cudart.stream_create()
    buffers = []
    for key, tensor in feeds.items():
        size = len(tensor.data)
        host = cudart.host_alloc(size, "a benchmark", mapped=False)
        device = cudart.malloc(size, "a benchmark")
        context.set_input_shape(key, tensor.shape)
        context.set_tensor_address(key, device)
        buffers.append((key, host, device, size))
    out_host, out_device = cudart.host_alloc(4, "", mapped=False), cudart.malloc(4, "")
    context.set_tensor_address("y", out_device)
    copy, wait, execute = cudart.memcpy_async, cudart.synchronize, context.execute_async_v3

    def call(given: dict[str, Tensor]) -> bytes:
        for key, host, device, size in buffers:
            ctypes.memmove(host, given[key].data, size)
            copy(device, host, size, TO_DEVICE, stream)
        execute(stream)
        copy(out_host, out_device, 4, TO_HOST, stream)
        wait(stream)
        return ctypes.string_at(out_host, 4)

    return call
