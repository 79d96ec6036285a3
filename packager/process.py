"""Starts every subprocess: argument list, no shell, a time limit, output to a file."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from packager.errors import EdgepackError, ExternalToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_TAIL_LINES = 20
_STOP_S = 10.0
_WATCH_S = 0.2
_CHUNK_BYTES = 1 << 16
Child = subprocess.Popen[bytes]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child process may use; None leaves a limit off."""

    memory_mib: int | None = None
    cpu_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A finished child: its command, exit status (negative: a signal), and what it printed."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    log: Path | None

    def command(self) -> str:
        """Return the command as it can be pasted into a shell."""
        return shlex.join(self.argv)


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    check: bool = True,
    stdin: bytes = b"",
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    error: type[EdgepackError] = ExternalToolError,
    hint: str | None = None,
    watch: Callable[[], None] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a command to its end.

    The child has its own process group, which is ended as a whole on a time-out and on Ctrl-C.

    Args:
        argv: The command as a list.
        timeout_s: Wall-clock limit.
        check: Raise when the exit status is not 0.
        stdin: What the child reads.
        log: Where the output is kept; a temporary file is used and removed otherwise.
        cwd: The child's folder; None hands on ours.
        env: The child's whole environment; None hands on ours.
        limits: Resource limits of the child.
        error: The class to raise.
        hint: What the error suggests.
        watch: Called a few times a second while the child runs, and once after.
        on_line: Given each line of the child's output soon after it is written.

    Raises:
        EdgepackError: of class `error`: not found, failed (with `check`), or out of time. The
            message holds the command, the last lines and the log's path.
    """
    words = tuple(str(word) for word in argv)
    with contextlib.ExitStack() as files:
        out, err, given = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        try:
            child = subprocess.Popen(
                words,
                stdin=given if stdin else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=None if env is None else dict(env),
                start_new_session=True,
                preexec_fn=_limiter(limits) if limits else None,  # noqa: PLW1509 - no threads run yet
            )
        except FileNotFoundError as fault:
            raise error(f"`{words[0]}` is not installed", hint=hint) from fault
        except OSError as fault:
            raise error(f"`{words[0]}` cannot be started: {fault.strerror}", hint=hint) from fault
        timed_out = False
        if on_line is not None:
            watch = _both(watch, _Lines(out.fileno(), on_line).read)
        try:
            _await_end(child, timeout_s, watch)
        except subprocess.TimeoutExpired:
            timed_out = True
            end_group(child)
        except BaseException:  # Ctrl-C must not leave the child running
            end_group(child)
            raise
        done = Completed(
            argv=words,
            returncode=child.returncode,
            stdout=_read(out),
            stderr=_read(err),
            log=log,
        )
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"$ {done.command()}\n{done.stdout}{done.stderr}", encoding="utf-8")
    if timed_out:
        raise error(f"`{words[0]}` took longer than {timeout_s:g} s\n{describe(done)}", hint=hint)
    if check and done.returncode != 0:
        raise error(
            f"`{words[0]}` failed ({_status(done.returncode)})\n{describe(done)}", hint=hint
        )
    return done


@contextlib.contextmanager
def background(
    argv: Sequence[str | Path], *, log: Path, hold_stdin: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command that runs until the block ends; then ask it to stop, and kill it if it stays.

    Args:
        argv: The command as a list.
        log: Where everything it prints goes.
        hold_stdin: Leave the child's input open until `child.stdin` is closed, or we are gone.
    """
    with log.open("wb") as out:
        child = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.PIPE if hold_stdin else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield child
        child.terminate()
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        end_group(child)
        if child.stdin is not None:
            child.stdin.close()


def _await_end(
    child: subprocess.Popen[bytes], timeout_s: float, watch: Callable[[], None] | None
) -> None:
    """Wait for the child's end; raises TimeoutExpired past the limit."""
    if watch is None:
        child.wait(timeout_s)
        return
    deadline = time.monotonic() + timeout_s
    waiting = True
    while waiting:
        try:
            child.wait(_WATCH_S)
            waiting = False
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise
        watch()


def _both(first: Callable[[], None] | None, second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        if first is not None:
            first()
        second()

    return call


class _Lines:
    """Reads a growing file, line by line, without moving the position that its writer shares."""

    def __init__(self, descriptor: int, on_line: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._on_line = on_line
        self._position = 0
        self._rest = b""

    def read(self) -> None:
        while chunk := os.pread(self._descriptor, _CHUNK_BYTES, self._position):
            self._position += len(chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._on_line(line.decode("utf-8", "replace"))


def describe(done: Completed) -> str:
    """Return the command, the last lines of output and the log's path, for an error message."""
    lines = (done.stderr or done.stdout).rstrip().splitlines()[-_TAIL_LINES:]
    parts = [f"  $ {done.command()}", *(f"  | {line}" for line in lines)]
    if done.log is not None:
        parts.append(f"  log: {done.log}")
    return "\n".join(parts)


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _limiter(limits: Limits) -> Callable[[], None]:
    def apply() -> None:
        if limits.memory_mib is not None:
            size = limits.memory_mib << 20
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        if limits.cpu_s is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return apply


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def _status(returncode: int) -> str:
    if returncode < 0:
        return f"ended by {signal.Signals(-returncode).name}"
    return f"exit {returncode}"


def python_argv(module: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs one of our modules in a fresh interpreter like this one."""
    return [sys.executable, "-m", module, *map(str, arguments)]
