"""What the tests of the house share: the repository's files, and a type checker for 3.8."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
# The last mypy that reads code for CPython 3.8.
MYPY_38 = "mypy==1.14.1"


@pytest.fixture(scope="session")
def repository_files() -> list[Path]:
    """Return every file that is, or could be, committed."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def mypy_38() -> Callable[..., str]:
    """Return a function that type-checks as for CPython 3.8 and gives what mypy says, if anything.

    That mypy lies in a folder of its own beside the newer one, which refuses 3.8.
    """
    folder = ROOT / ".cache" / "tests" / MYPY_38.replace("==", "-")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            target = Path(fresh) / "mypy"
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", "-q", "--target", target, MYPY_38],
                capture_output=True, text=True, check=False, timeout=240,
            )  # fmt: skip
            if done.returncode != 0:
                pytest.skip(f"{MYPY_38} cannot be installed: {done.stderr[-200:]}")
            try:
                target.rename(folder)
            except OSError:  # another worker was quicker
                assert folder.is_dir()

    def check(*arguments: str | Path, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            [
                sys.executable, "-m", "mypy", "--strict", "--python-version", "3.8",
                "--config-file", "", "--no-site-packages", "--no-error-summary",
                "--cache-dir", ROOT / ".cache" / "tests" / "mypy-cache-38", *arguments,
            ],
            cwd=cwd, env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        return done.stdout + done.stderr

    return check
