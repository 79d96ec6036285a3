"""What the interpreter and the kernel would write of a process: nothing that it worked on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.secrecy import bare_traceback

ROOT = Path(__file__).resolve().parents[3]
CANARY = "kanarienvogel"


def run(
    code: str, cwd: Path, python: str | Path = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", code],
        cwd=cwd, env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def raised(function: object) -> BaseException:
    try:
        function()  # type: ignore[operator]
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at
        return error
    raise AssertionError


def test_a_traceback_tells_where_and_never_what() -> None:
    def inner() -> None:
        raise ValueError(CANARY)

    def middle() -> None:
        try:
            inner()
        except ValueError as error:
            raise OSError(13, CANARY, CANARY) from error

    def outer() -> None:
        try:
            middle()
        except OSError:
            raise KeyError({CANARY: CANARY})  # noqa: B904 - the context is what is tested

    text = bare_traceback(raised(outer))
    assert CANARY not in text
    lines = text.splitlines()
    assert lines[0] == "KeyError"
    assert "after PermissionError: Permission denied" in lines
    assert "after ValueError" in lines
    for function in ("outer", "middle", "inner"):
        assert any(line.endswith(f" in {function}") for line in lines)
    assert all(line.startswith(("  ", "after ", "KeyError")) for line in lines)


def test_a_traceback_in_a_circle_and_a_deep_one_end() -> None:
    error = ValueError(CANARY)
    other = TypeError(CANARY)
    error.__cause__, other.__cause__ = other, error
    assert bare_traceback(error).splitlines() == ["ValueError", "after TypeError"]

    def deep(level: int) -> None:
        if level == 0:
            raise ValueError(CANARY)
        deep(level - 1)

    assert len(bare_traceback(raised(lambda: deep(500))).splitlines()) == 51


def test_what_nobody_caught_is_told_without_its_message(tmp_path: Path, old_python: Path) -> None:
    code = (
        "import ctypes, gc, threading\n"
        "from runtime.secrecy import hush_interpreter\n"
        "hush_interpreter()\n"
        f"said = '{CANARY[:6]}' + '{CANARY[6:]}'\n"
        "def fail(*_): raise RuntimeError(said)\n"
        "class Careless:\n"
        "    __del__ = fail\n"
        "    def __repr__(self): return said\n"
        "thread = threading.Thread(target=fail, name=said)\n"
        "thread.start(); thread.join()\n"
        "Careless(); gc.collect()\n"
        "ctypes.CFUNCTYPE(None)(fail)()\n"
        "leaving = threading.Thread(target=exit)\n"
        "leaving.start(); leaving.join()\n"
        "fail()\n"
    )
    done = run(code, tmp_path, old_python)
    assert done.returncode == 1
    assert CANARY not in done.stderr
    assert done.stderr.count("RuntimeError") == 4, done.stderr
    assert done.stderr.count("error: an exception in a thread: ") == 1
    assert "SystemExit" not in done.stderr


def allow(code: str) -> str:
    return (
        "import resource\n"
        "_, most = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (most, most))\n" + code
    )


def left_cores(tmp_path: Path, code: str) -> list[str]:
    folder = tmp_path / "cwd"
    folder.mkdir(exist_ok=True)
    done = run(allow(code + "import os\nos.abort()\n"), folder)
    assert done.returncode == -6, done.stderr
    found = [path.name for path in folder.iterdir()]
    for name in found:
        (folder / name).unlink()
    return found


@pytest.fixture
def _dumping(tmp_path: Path) -> None:
    if not left_cores(tmp_path, ""):
        pytest.skip("no process leaves a core file in its folder here")


FORBID = "from runtime.secrecy import forbid_core_files\nforbid_core_files()\n"


@pytest.mark.usefixtures("_dumping")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        # each of both is enough alone: without the limit, and with the right to be dumped again
        ("resource.setrlimit = lambda *_: None\n", ""),
        ("", "import ctypes\nctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"),
    ],
)
def test_no_core_file_is_left(tmp_path: Path, before: str, after: str) -> None:
    assert left_cores(tmp_path, before + FORBID + after) == []


@pytest.mark.usefixtures("_dumping")
def test_nor_by_what_it_starts(tmp_path: Path) -> None:
    child = FORBID + (
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import os; os.abort()'])\n"
    )
    assert left_cores(tmp_path, child) == []
