"""Runs a build in a process that cannot take the server down, and says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from typing import (
    IO,
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from .builder import BuildFailed
from .child import ENGINE, LAYERS, LIMITS, REPORT, TIMING_CACHE
from .progress import Step
from .request import BuildRequest, model_bytes
from .room import available_mib, check_room, left_mib, oom_kills

REQUEST = "request.json"
LOG = "build.log"
REPRODUCE = "reproduce.sh"
_WATCH_S = 0.2
_NICE = 10
_MAX_LINE = 1 << 20
_MAX_REPORT_BYTES = 16 << 20
_TAIL_LINES = 20
_TAIL_BYTES = 64 << 10
_KEPT_VARIABLES = ("PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class Report(NamedTuple):
    """A finished build.

    Attributes:
        engine: The plan's path.
        sha256: Its digest.
        size: In bytes.
        facts: The hard facts of the fingerprint, as the builder saw them.
        seconds: From the start of the library to the finished plan.
        layers: How many layers compute in each precision; None where nobody could look.
        not_inspected: Why not, or what could not be seen.
        lost_precision: What the engine lost of the precision asked for; such builds fail.
        peak_memory_mib: Of the child process.
        log: The last lines of TensorRT's logger.
        timing_cache: The file with what was measured, for the next build; None where it is not.
    """

    engine: str
    sha256: str
    size: int
    facts: Dict[str, Any]
    seconds: float
    layers: Optional[Dict[str, int]]
    not_inspected: Optional[str]
    lost_precision: Optional[str]
    peak_memory_mib: int
    log: Tuple[str, ...]
    timing_cache: Optional[str]


def start_build(
    argv: Sequence[str],
    request: BuildRequest,
    folder: str,
    *,
    timeout_s: float,
    on_progress: Optional[Callable[[Step], Any]] = None,
    stopped: Optional[Callable[[], bool]] = None,
    timing_cache: Optional[str] = None,
    memory_mib: Optional[int] = None,
    env: Optional[Mapping[str, str]] = None,
) -> Report:
    """Build an engine in a child process, and wait for it.

    Afterwards the folder holds `request.json`, `reproduce.sh`, `build.log`, and, only where the
    build is whole, `engine`, `report.json`, `layers.json` and `timing.cache`. The child is nice,
    the kernel's first choice where memory runs out, and ended when it leaves too little.

    Args:
        argv: The command that takes REQUEST.json and OUT_DIR: `python3 BUNDLE build-engine`.
        request: What to build.
        folder: Where the build writes; made where it lacks.
        timeout_s: Wall-clock limit.
        on_progress: Takes each step, in this thread; what it raises ends the build.
        stopped: Asked a few times a second; True ends the build.
        timing_cache: A file that an earlier build left.
        memory_mib: The child's limit; by default what can be had without harm to others.
        env: The child's environment; by default this process's.

    Raises:
        InputOutputFault: memory or disk are too small.
        BuildFailed: it was ended, crashed, or could not be done; with the log's last lines.
        BadRecipe: the artifact is not there.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    folder = os.path.abspath(folder)
    check_room(folder, model_bytes(request), request.module)
    for name in (ENGINE, REPORT, LAYERS):
        _remove(os.path.join(folder, name))
    _put_timing_cache(timing_cache, os.path.join(folder, TIMING_CACHE))
    request_path = os.path.join(folder, REQUEST)
    _write(request_path, request.to_json())
    words = [*argv, request_path, folder]
    variables = dict(os.environ if env is None else env)
    _write(os.path.join(folder, REPRODUCE), reproduce_script(argv, variables), 0o755)
    variables[LIMITS] = _limits(request, memory_mib)
    watch = _Watch(timeout_s, stopped)
    killed_before = oom_kills()
    with open(os.path.join(folder, LOG), "wb") as log:
        log.write(("$ %s\n" % _join(words)).encode("utf-8", "surrogateescape"))
        log.flush()
        try:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                env=variables, start_new_session=True,
            )  # fmt: skip
        except OSError as fault:
            raise BuildFailed(
                "`%s` cannot be started: %s" % (words[0], (fault.strerror or "").lower()),
                "see `%s`" % os.path.join(folder, REPRODUCE),
            ) from fault
        try:
            last = _follow(child, watch, on_progress)
        finally:
            _end_group(child)
    if watch.reason is None and child.returncode == 0 and "report" in last:
        return read_report(folder)
    _remove(os.path.join(folder, ENGINE))
    _remove(os.path.join(folder, ENGINE + ".part"))
    raise _explain(child.returncode, last, watch, folder, starved=oom_kills() > killed_before)


def read_report(folder: str) -> Report:
    """Return what a finished build has left in a folder.

    Raises:
        BuildFailed: there is no engine, or not the one that the report tells of.
    """
    try:
        with open(os.path.join(folder, REPORT), "rb") as stream:
            fields = json.loads(stream.read(_MAX_REPORT_BYTES).decode("utf-8"))
        engine, cache = os.path.join(folder, ENGINE), os.path.join(folder, TIMING_CACHE)
        report = Report(
            engine=engine,
            sha256=str(fields["sha256"]),
            size=int(fields["size"]),
            facts=dict(fields["facts"]),
            seconds=float(fields["seconds"]),
            layers=None if fields["layers"] is None else dict(fields["layers"]),
            not_inspected=fields["not_inspected"],
            lost_precision=fields["lost_precision"],
            peak_memory_mib=int(fields["peak_memory_mib"]),
            log=tuple(map(str, fields["log"])),
            timing_cache=cache if os.path.isfile(cache) else None,
        )
        whole = os.path.getsize(engine) == report.size
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise BuildFailed("the build has left no readable report in `%s`" % folder) from fault
    if not whole:
        raise BuildFailed("the engine in `%s` is not of the size that was built" % folder)
    return report


def reproduce_script(argv: Sequence[str], variables: Mapping[str, str]) -> str:
    """Return a shell script that repeats the build from the `request.json` beside it."""
    exports = [
        "export %s=%s" % (name, shlex.quote(variables[name]))
        for name in _KEPT_VARIABLES
        if variables.get(name)
    ]
    return "\n".join([
        "#!/bin/sh",
        "# Repeats the build of this engine: sh %s [OUT_DIR]" % REPRODUCE,
        "# shellcheck disable=SC2016  # words in single quotes are meant as they stand",
        "set -eu",
        'here=$(cd "$(dirname "$0")" && pwd)',
        'mkdir -p "${1:-$here/again}"',
        'out=$(cd "${1:-$here/again}" && pwd)',
        "cd %s" % shlex.quote(os.getcwd()),
        *exports,
        'exec %s "$here/%s" "$out"' % (_join(argv), REQUEST),
        "",
    ])  # fmt: skip


class _Watch:
    """Says when a build has to be ended, and why."""

    def __init__(self, timeout_s: float, stopped: Optional[Callable[[], bool]]) -> None:
        self.reason: Optional[str] = None
        self.hint: Optional[str] = None
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._stopped = stopped
        # Where little was left already, the build must not be blamed for it.
        self._least_mib = min(left_mib(), available_mib() // 2)

    def over(self) -> bool:
        """Return whether the build has to be ended."""
        if self._stopped is not None and self._stopped():
            self.reason = "the build was stopped"
        elif time.monotonic() > self._deadline:
            self.reason = "the build took longer than %g s" % self._timeout_s
            self.hint = "allow it more time, or build with fewer profiles"
        else:
            left = available_mib()
            if left < self._least_mib:
                self.reason = (
                    "the build was ended: it left %d MiB of memory, and others here need %d MiB"
                    % (left, self._least_mib)
                )
                self.hint = "stop what else runs here, add swap, or build on a reference device"
        return self.reason is not None


def _follow(
    child: "subprocess.Popen[bytes]", watch: _Watch, on_progress: Optional[Callable[[Step], Any]]
) -> Dict[str, Any]:
    """Hand on the child's steps until it ends or has to; return its last line that is no step."""
    last: Dict[str, Any] = {}
    for line in _lines(child.stdout, watch) if child.stdout else ():
        try:
            fields = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        if not isinstance(fields, dict):
            continue
        step = _read_step(fields)
        if step is None:
            last = fields
        elif on_progress is not None:
            on_progress(step)
    while watch.reason is None:
        # Its output has ended; the process is about to.
        try:
            child.wait(_WATCH_S)
            break
        except subprocess.TimeoutExpired:
            watch.over()
    return last


def _lines(stream: IO[bytes], watch: _Watch) -> Iterator[bytes]:
    """Yield whole lines until the stream ends or the watch does."""
    waiting, descriptor = b"", stream.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        checked = time.monotonic()
        while True:
            ready = selector.select(_WATCH_S)
            if not ready or time.monotonic() - checked > _WATCH_S:
                checked = time.monotonic()
                if watch.over():
                    return
            if not ready:
                continue
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return
            *whole, waiting = (waiting + chunk).split(b"\n")
            yield from whole
            if len(waiting) > _MAX_LINE:
                waiting = b""


def _read_step(fields: Mapping[str, Any]) -> Optional[Step]:
    fraction, left = fields.get("progress"), fields.get("seconds_left")
    if not isinstance(fraction, (int, float)):
        return None
    return Step(
        float(fraction),
        float(left) if isinstance(left, (int, float)) else None,
        str(fields.get("phase", "")),
    )


def _explain(
    status: int, last: Mapping[str, Any], watch: _Watch, folder: str, *, starved: bool
) -> BuildFailed:
    """Return how the child ended, as one sentence."""
    repeat = "see `%s`; `sh %s` repeats the build" % (
        os.path.join(folder, LOG),
        os.path.join(folder, REPRODUCE),
    )
    log = _tail(os.path.join(folder, LOG))
    if watch.reason is not None:
        return BuildFailed(watch.reason, watch.hint, log)
    if isinstance(last.get("error"), str):
        hint, said = last.get("hint"), last.get("log")
        failure = BuildFailed(
            last["error"],
            hint if isinstance(hint, str) else None,
            tuple(map(str, said)) if isinstance(said, list) and said else log,
        )
        code = last.get("exit_code")
        failure.exit_code = code if isinstance(code, int) else failure.exit_code
        return failure
    if status == -signal.SIGKILL:
        if starved:
            return BuildFailed(
                "the kernel ended the build: the machine's memory had run out",
                "stop what else runs here, add swap, or build on a reference device",
                log,
            )
        return BuildFailed("the build was killed (SIGKILL)", repeat, log)
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = "signal %d" % -status
        ended = "was ended" if name in ("SIGTERM", "SIGINT", "SIGHUP") else "crashed"
        return BuildFailed("the build %s (%s)" % (ended, name), repeat, log)
    said_last = next((line for line in reversed(log) if line.strip()), "")
    return BuildFailed(
        "the builder ended with status %d%s" % (status, ": " + said_last if said_last else ""),
        repeat,
        log,
    )


def _limits(request: BuildRequest, memory_mib: Optional[int]) -> str:
    words = ["nice=%d" % _NICE, "parent=%d" % os.getpid()]
    if memory_mib is None and request.module == "tensorrt_rtx":
        # It builds on the processor alone. What a driver maps beside TensorRT is not known, so
        # there the watch is the only limit.
        memory_mib = max(1, available_mib() - left_mib())
    if memory_mib is not None:
        words.append("memory_mib=%d" % memory_mib)
    return ",".join(words)


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    """Kill whatever the child's group still holds, and take the child's status."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _tail(path: str) -> Tuple[str, ...]:
    try:
        with open(path, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ()
    lines: List[str] = text.splitlines()
    return tuple(lines[-_TAIL_LINES:])


def _join(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _write(path: str, text: str, mode: int = 0o644) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)
    os.chmod(path, mode)


def _put_timing_cache(source: Optional[str], target: str) -> None:
    """Put an earlier build's timings where the child looks for them, or nothing."""
    if source is not None and os.path.realpath(source) == os.path.realpath(target):
        return
    _remove(target)
    if source is not None:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(source, target)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
