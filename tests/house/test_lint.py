"""Linters, type checkers and import contracts, so that `pytest` is the one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from packager.bundle.assemble import target_fields
from packager.bundle.render import render_server
from packager.target import find_target

ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str | Path) -> str:
    """Return what a tool says when it finds fault, else nothing."""
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120"},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr or "failed in silence"


def test_ruff_finds_no_fault():
    assert run(sys.executable, "-m", "ruff", "check", "--quiet", ".") == ""


def test_ruff_would_format_nothing():
    assert run(sys.executable, "-m", "ruff", "format", "--check", ".") == ""


def test_the_types_of_the_build_host_hold():
    assert run(sys.executable, "-m", "mypy") == ""


def test_the_import_contracts_are_kept():
    program = Path(sys.executable).with_name("lint-imports")
    assert run(program, "--no-cache") == ""


@pytest.mark.network
def test_the_types_of_the_runtime_hold_for_python_3_8(mypy_38):
    assert mypy_38("-p", "runtime") == ""


@pytest.mark.network
def test_the_types_of_rendered_python_hold_for_python_3_8(mypy_38, tmp_path):
    # Beside the runtime, as in an unpacked bundle.
    (tmp_path / "runtime").symlink_to(ROOT / "runtime")
    for path, content in render_server(manifest_of("cpu-x86_64")).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert mypy_38("__main__.py", "server/app.py", cwd=tmp_path) == ""


def manifest_of(target_name: str) -> dict[str, Any]:
    """Return what a template may look at, with every option of the server on."""
    batch = {"name": "batch", "min": 1, "max": 32, "opt": 1}
    target = find_target(target_name)
    return {
        "name": "digits",
        "version": "1.0.0",
        "edgepack": "0.1.0",
        "target": target_fields(target),
        "engine": {
            "name": target.engine.name,
            "version": target.engine.version,
            "precision": "fp32",
        },
        "model": {
            "signature": {
                "inputs": [{"name": "x", "dtype": "float32", "shape": [batch, 1, 8, 8]}],
                "outputs": [{"name": "scores", "dtype": "float32", "shape": [batch, 10]}],
            },
            "images": {},
            "labels": {},
        },
        "server": {"max_json_kb": 256, "metrics": True, "openapi": True, "plain": True},
    }


def test_shell_scripts_are_sound(repository_files):
    if shutil.which("shellcheck") is None:
        pytest.skip("`shellcheck` is not installed")
    scripts = [path for path in repository_files if _is_shell(path)]
    assert ROOT / ".ci" / "run" in scripts
    assert run("shellcheck", *scripts) == ""


def _is_shell(path: Path) -> bool:
    if path.suffix == ".sh":
        return True
    with path.open("rb") as stream:
        first = stream.readline(80)
    return first.startswith(b"#!") and b"sh" in first.split(b"/")[-1]
