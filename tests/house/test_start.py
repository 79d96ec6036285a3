"""The command line starts without the heavy packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch", "onnx", "onnxruntime", "onnxscript", "onnxslim", "numpy", "PIL", "jinja2",
    "asyncio", "http",
}  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("build", "--help"), ("targets", "list")],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "packager", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    modules = re.findall(r"^import time:[^|]+\|[^|]+\|\s*(\S+)$", done.stderr, re.MULTILINE)
    assert "packager.cli.main" in modules
    assert {module.split(".")[0] for module in modules} & HEAVY == set()
