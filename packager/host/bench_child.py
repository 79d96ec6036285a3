"""Times one ONNX file in a process of its own, so that its memory can be told apart."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main(model: str, feeds_file: str, seconds: float, threads: int) -> None:
    """Print latency percentiles (ms), throughput (1/s), memory (MB) and start (s) as JSON."""
    import numpy as np
    import onnxruntime as ort

    from packager.checks.bfloat16 import with_bfloat16
    from packager.checks.latency import leave_out_optimizers
    from packager.model import as_saved

    options = ort.SessionOptions()
    leave_out_optimizers(options)
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    began = time.perf_counter()
    session = with_bfloat16(
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    )
    with np.load(feeds_file) as arrays:
        names = [spec.name for spec in session.get_inputs()]
        feeds = {name: as_saved(arrays[f"arr_{i}"]) for i, name in enumerate(names)}
    session.run(None, feeds)
    start_s = time.perf_counter() - began
    times_ms: list[float] = []
    until = time.perf_counter() + seconds
    while (start := time.perf_counter()) < until or len(times_ms) < 5:
        session.run(None, feeds)
        times_ms.append((time.perf_counter() - start) * 1e3)
    p50, p90, p99 = np.percentile(times_ms, (50, 90, 99))
    result = {
        "engine": f"onnxruntime {ort.__version__}",
        "threads": options.intra_op_num_threads,
        "runs": len(times_ms),
        "p50_latency_ms": round(float(p50), 4),
        "p90_latency_ms": round(float(p90), 4),
        "p99_latency_ms": round(float(p99), 4),
        "throughput_per_s": round(len(times_ms) / (sum(times_ms) / 1e3), 1),
        "start_s": round(start_s, 3),
        "peak_memory_mb": _peak_memory_mb(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


def _peak_memory_mb() -> float:
    # getrusage would tell the parent's peak, where that was larger before this program began.
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n"):
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1.024e-3, 1)
    return 0.0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
