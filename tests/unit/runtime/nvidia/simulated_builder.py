"""The child that builds, without TensorRT: REQUEST.json OUT_DIR.

The environment's `SIMULATED_BUILD` says what goes wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from runtime.nvidia.fingerprint import hard_facts
from runtime.nvidia.request import read_request
from tests.standin.simulated_tensorrt import make_plan

VERSION = "10.3.0.30"
DEVICE = {
    "driver": "550.54.15", "driver_cuda": "12.4", "cuda": "12.6.68", "gpu_fault": None,
    "gpus": [
        {"name": "H100", "compute_capability": "9.0", "memory_mib": 81559, "memory": "own"}
    ],
    "cudart": [{"version": "12.6.68", "path": "libcudart.so.12"}],
    "tensorrt": [{"module": "tensorrt", "version": VERSION, "origin": "wheel", "path": ""}],
    "tensorrt_elsewhere": [], "packages": {}, "python": "3.11", "isolated": False,
    "soc": None, "module": None, "module_part": None, "dla_cores": None, "l4t": None,
    "jetpack": None, "power_mode": None,
}  # fmt: skip


def say(**fields: object) -> None:
    """Write a line of JSON, as the real child does."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    request_path, out = sys.argv[1], Path(sys.argv[2])
    fault = os.environ.get("SIMULATED_BUILD", "")
    say(progress=0.5, seconds_left=9.0, phase="Timing")
    (out / "started").write_text(str(os.getpid()))
    if fault == "hang":
        time.sleep(600)
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "refused":
        say(error="TensorRT cannot parse `Mystery`", exit_code=5)
        sys.exit(5)
    request = read_request(request_path)
    device = dict(DEVICE)
    if fault == "elsewhere":
        device["gpus"] = [{"name": "A10", "compute_capability": "8.6"}]
    # x → y as a whole model, a → b as the core of one in parts
    ((taken, given),) = {name: {"x": "y", "a": "b"}[name] for name in request.profiles[0]}.items()
    plan = make_plan(
        inputs={taken: ("float32", [-1, 2])},
        outputs={given: {"dtype": "float32", "of": taken, "scale": 3.0 if fault == "wrong" else 2.0,
                       "offset": 1.0 if fault == "wrong" else 0.0}},
        profiles=[
            {name: (one["min"], one["opt"], one["max"]) for name, one in profile.items()}
            for profile in request.profiles
        ],
        version=VERSION,
    )  # fmt: skip
    (out / "engine").write_bytes(plan)
    (out / "timing.cache").write_bytes(b"timings")
    report = {
        "sha256": hashlib.sha256(plan).hexdigest(), "size": len(plan), "seconds": 1.0,
        "facts": hard_facts(request, VERSION, device), "layers": None, "not_inspected": None,
        "lost_precision": None, "peak_memory_mib": 1, "log": [],
    }  # fmt: skip
    (out / "report.json").write_text(json.dumps(report))
    say(report=str(out / "report.json"))


if __name__ == "__main__":
    main()
