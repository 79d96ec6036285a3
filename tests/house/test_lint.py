"""Linters, type checkers and import contracts, so that `pytest` is the one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
