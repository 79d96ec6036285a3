"""Subprocesses: limits, logs, and failures a person can paste."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from packager.errors import BackendMissing, ExternalToolError
from packager.process import Limits, background, run

if TYPE_CHECKING:
    from pathlib import Path


def test_output_status_and_command_come_back(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "it.log"
    done = run([sys.executable, "-c", "print('a b')"], timeout_s=20, log=log)
    assert done.stdout == "a b\n"
    assert done.returncode == 0
    assert "'print('\"'\"'a b'\"'\"')'" in done.command()
    assert "a b" in log.read_text()


def test_a_failure_shows_the_command_the_last_lines_and_the_log(tmp_path: Path) -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('boom')"
    with pytest.raises(ExternalToolError) as caught:
        run([sys.executable, "-c", code], timeout_s=20, log=tmp_path / "x.log", hint="mend it")
    message = caught.value.message
    assert "exit 1" in message
    assert "| boom" in message
    assert str(tmp_path / "x.log") in message
    assert caught.value.hint == "mend it"


def test_a_program_that_is_not_installed_is_named() -> None:
    with pytest.raises(BackendMissing, match="`no-such-program` is not installed"):
        run(["no-such-program"], timeout_s=1, error=BackendMissing)


def test_a_child_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(ExternalToolError, match="took longer than 2 s"):
        run([sys.executable, "-c", code], timeout_s=2)
    pid = int(pid_file.read_text())
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") or "Z" in _state(pid):  # noqa: PTH110
            return
        time.sleep(0.05)
    pytest.fail("the grandchild lives on")


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stream:  # noqa: PTH123
        return stream.read().rpartition(")")[2].split()[0]


def test_a_memory_limit_holds() -> None:
    with pytest.raises(ExternalToolError, match="MemoryError"):
        run(
            [sys.executable, "-c", "bytearray(1 << 30)"],
            timeout_s=20,
            limits=Limits(memory_mib=300),
        )


def test_a_background_command_is_stopped_at_the_end_of_the_block(tmp_path: Path) -> None:
    code = "import time; print('up', flush=True); time.sleep(60)"
    with background([sys.executable, "-c", code], log=tmp_path / "log") as child:
        assert child.poll() is None
    assert child.poll() is not None


def test_a_watcher_sees_a_child_at_work_and_after(tmp_path: Path) -> None:
    file = tmp_path / "said"
    program = f"import time, pathlib; pathlib.Path({str(file)!r}).touch(); time.sleep(0.7)"
    seen: list[bool] = []
    done = run(
        [sys.executable, "-c", program], timeout_s=30, watch=lambda: seen.append(file.is_file())
    )
    assert done.returncode == 0
    assert len(seen) >= 2
    assert seen[-1]


def test_a_watched_child_is_ended_at_its_limit() -> None:
    calls: list[int] = []
    with pytest.raises(ExternalToolError, match=r"took longer than 0\.5 s"):
        run(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            timeout_s=0.5,
            watch=lambda: calls.append(1),
        )
    assert calls


def test_lines_arrive_while_the_child_runs_and_none_is_lost(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    code = (
        "import pathlib, sys, time\n"
        "print('first', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "sys.stdout.write('sec'); sys.stdout.flush()\n"
        "print('ond')\n"
        "for n in range(9000): print(n)\n"
    )
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        answer.touch()  # the child goes on only when its first line was heard

    done = run([sys.executable, "-c", code, answer], timeout_s=60, on_line=hear)
    assert lines == done.stdout.splitlines()
    assert lines[:3] == ["first", "second", "0"]
    assert len(lines) == 9002


def test_a_watched_child_reads_all_of_its_input_however_late() -> None:
    code = "import sys, time; time.sleep(0.7); print(len(sys.stdin.buffer.read()))"
    done = run([sys.executable, "-c", code], timeout_s=60, stdin=bytes(300_000), watch=lambda: None)
    assert done.stdout == "300000\n"
