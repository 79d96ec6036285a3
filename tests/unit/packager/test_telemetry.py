"""Nothing reports home: the engine's own reporting is off wherever edgepack runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RUN = (
    "import numpy, onnx, onnxruntime\n"
    "from tests.models.mlp import make_mlp\n"
    "session = onnxruntime.InferenceSession(make_mlp().SerializeToString())\n"
    "session.run(None, {'x': numpy.zeros((1, 64), numpy.float32)})\n"
)


@pytest.mark.parametrize(("first", "quiet"), [("import packager\n", True), ("", False)])
def test_the_engine_leaves_nothing_behind_where_edgepack_runs_it(
    tmp_path: Path, first: str, quiet: bool
) -> None:
    folders = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for folder in folders.values():
        folder.mkdir()
    kept = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    kept.update({key: str(folder) for key, folder in folders.items()}, PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-c", first + RUN], env=kept, check=True, timeout=120)
    left = [path for folder in folders.values() for path in folder.rglob("*") if path.is_file()]
    if not quiet and not left:
        pytest.skip("this ONNX Runtime reports nothing, or not from here")
    assert (left == []) == quiet
