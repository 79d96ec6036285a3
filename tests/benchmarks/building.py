"""How long the digits bundle with int8 takes, engine library cached and stage cache empty."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.figures import Row, print_table

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "import torch, onnx, onnxruntime, onnxscript, numpy"


def main() -> None:
    """Train the digits network, build it for this machine's target, and print the wall time."""
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / "tests" / "models" / "digits_cnn.py", folder)
        spec = importlib.util.spec_from_file_location("digits_cnn", folder / "digits_cnn.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.train(folder)
        calibration = folder / "calibration"
        calibration.mkdir()
        for index, row in enumerate(module.load_data()[0][:64]):
            np.savez(calibration / f"{index:03}.npz", x=row[None])
        build = [
            sys.executable, "-m", "packager", "build", f"{folder / 'digits_cnn.py'}:make_model",
            "-t", "cpu-x86_64", "-c", str(calibration), "-q", "-o", str(folder / "dist"),
        ]  # fmt: skip
        cache = folder / "cache"
        subprocess.run([*build, "--cache-dir", str(cache)], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        walls, imports = [], []
        for _ in range(3):
            shutil.rmtree(cache / "stages", ignore_errors=True)
            began = time.perf_counter()
            subprocess.run([*build, "--cache-dir", str(cache)], cwd=ROOT, check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            walls.append(time.perf_counter() - began)
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", IMPORTS], check=True)
            imports.append(time.perf_counter() - began)
    wall, start = sorted(walls)[1], sorted(imports)[1]
    rows = [
        Row("building the digits bundle", wall, "s"),
        Row("of it, one interpreter's imports", start, "s"),
        Row("after the interpreter's imports", wall - start, "s", "15 s"),
    ]
    print_table("building", rows)
