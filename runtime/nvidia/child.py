"""The process that builds one engine: REQUEST.json OUT_DIR; what it does, as JSON lines."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import hashlib
import json
import os
import resource
import signal
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ..errors import DeviceError, IntegrityFault, UsageFault
from .builder import BuildFailed, BuildResult, build_engine
from .carried import use_carried
from .messages import Journal
from .progress import Step
from .request import BuildRequest, model_bytes, read_request
from .room import check_limit
from .standstill import GPU_S, RTX_S, Watch
from .vendor import load_vendor

ENGINE = "engine"
TIMING_CACHE = "timing.cache"
REPORT = "report.json"
LAYERS = "layers.json"
# Set by the parent: `memory_mib=512,nice=10,parent=4711`.
LIMITS = "EDGEPACK_BUILD_LIMITS"
_CHUNK_BYTES = 4 << 20
_MAX_CACHE_BYTES = 1 << 30
_PR_SET_PDEATHSIG = 1

Say = Callable[[Mapping[str, Any]], None]


def main(argv: Sequence[str]) -> int:
    """Build an engine and return the exit status; the error is a line of output as well."""
    try:
        if len(argv) != 2:
            raise UsageFault("build-engine needs REQUEST.json and OUT_DIR")
        run_build(argv[0], argv[1])
    except DeviceError as fault:
        hint = "\nhint: %s\n" % fault.hint if fault.hint else ""
        sys.stderr.write("error: %s\n%s" % (fault.message, hint))
        return fault.exit_code
    return 0


def run_build(request_path: str, out_dir: str) -> None:
    """Build the engine of a request into a folder: `engine`, `timing.cache`, `report.json`.

    Standard output carries only lines of JSON: steps, and a last one that tells the error, if any.
    What the vendor's libraries print goes to standard error.

    Raises:
        DeviceError: TensorRT is missing, the request cannot be, or the build failed.
    """
    write = _take_standard_output()
    faulthandler.enable()
    limits = _limit(os.environ.get(LIMITS, ""))
    memory_mib = int(limits["memory_mib"]) if "memory_mib" in limits else None
    watches: List[Watch] = []

    def say(fields: Mapping[str, Any]) -> None:
        with contextlib.ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch.waiting())
            write(fields)

    try:
        report = _build(request_path, out_dir, say, memory_mib, watches)
    except OSError as fault:
        full = fault.errno == errno.ENOSPC
        problem = BuildFailed(
            "the build ended at `%s`: %s"
            % (fault.filename or out_dir, (fault.strerror or str(fault)).lower()),
            "free some of the disk, or set XDG_CACHE_HOME to another one" if full else None,
        )
        _say_error(say, problem)
        raise problem from fault
    except MemoryError as fault:
        problem = BuildFailed(
            "memory ran out while the engine was built", "stop what else uses the memory"
        )
        _say_error(say, problem)
        raise problem from fault
    except DeviceError as fault:
        _say_error(say, fault)
        raise
    finally:
        for watch in watches:
            watch.stop()
    say({"report": report})


def _build(
    request_path: str,
    out_dir: str,
    say: Say,
    memory_mib: Optional[int],
    watches: List[Watch],
) -> str:
    from .fingerprint import digest as fingerprint_of
    from .fingerprint import hard_facts

    request = read_request(request_path)
    size = model_bytes(request)
    if memory_mib is not None:
        check_limit(memory_mib, size, request.module)
    _check_digest(request)
    use_carried(request.folder)
    vendor = load_vendor(request.module, wanted=request.version)
    os.makedirs(out_dir, exist_ok=True)
    journal = Journal(write=_log)
    after_s = RTX_S if vendor.is_rtx else GPU_S
    watches.append(Watch(after_s, lambda: _end(say, after_s, memory_mib, journal)))
    watches[0].start()
    started = time.monotonic()
    result = build_engine(
        vendor,
        request,
        progress=lambda step: say(_step(step)),
        timing_cache=_read_cache(os.path.join(out_dir, TIMING_CACHE)),
        journal=journal,
    )
    looked = _look(request, result)
    if result.layers is not None:
        _write_json(os.path.join(out_dir, LAYERS), result.layers)
    if result.timing_cache is not None:
        _write(os.path.join(out_dir, TIMING_CACHE), result.timing_cache)
    facts = hard_facts(request, vendor.version, _device(request))
    report: Dict[str, Any] = {
        "module": vendor.module,
        "version": vendor.version,
        "facts": facts,
        "fingerprint": fingerprint_of(facts),
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_mib": _peak_memory_mib(),
        "log": result.log[-20:],
        **looked,
    }
    if looked["lost_precision"] is not None:
        raise BuildFailed(
            looked["lost_precision"],
            "build with `--precision fp32` if that is what you want, or see `%s`" % LAYERS,
            tuple(result.log),
        )
    digest, size = _write(os.path.join(out_dir, ENGINE), result.plan)
    report.update(engine=ENGINE, sha256=digest, size=size)
    path = os.path.join(out_dir, REPORT)
    _write_json(path, report)
    return path


def _end(say: Say, after_s: float, memory_mib: Optional[int], journal: Journal) -> None:
    """End a build that stands still: nothing else would before its time is over."""
    allowed = "" if memory_mib is None else ", and it may take %d MiB" % memory_mib
    fault = BuildFailed(
        "the build stood still for %d s, as it does where memory runs out%s" % (after_s, allowed),
        "stop what else uses the memory, or build with fewer profiles",
        tuple(journal.lines),
    )
    _say_error(say, fault)
    _log("error: %s\n\nhint: %s" % (fault.message, fault.hint))
    os._exit(fault.exit_code)


def _look(request: BuildRequest, result: BuildResult) -> Dict[str, Any]:
    """Return what the inspector's layers say of the precision, and what they cannot."""
    if result.layers is None:
        return {"layers": None, "lost_precision": None, "not_inspected": result.not_inspected}
    from .inspection import layers_by_precision, lost_precision, not_looked

    return {
        "layers": layers_by_precision(result.layers),
        "lost_precision": lost_precision(request.precision, result.layers, request.products),
        "not_inspected": not_looked(result.layers),
    }


def _peak_memory_mib() -> int:
    """Return the most memory this program had; getrusage would count its parent's as well."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        for line in stream:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    return 0


def _device(request: BuildRequest) -> Optional[Dict[str, Any]]:
    """Return the facts of the GPU that was built for; None where it is another machine's."""
    if request.module == "tensorrt_rtx":
        return None
    from .device import gpu_facts

    return gpu_facts()


def _take_standard_output() -> Say:
    """Return what writes JSON lines to standard output, which libraries no longer reach."""
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)

    def say(fields: Mapping[str, Any]) -> None:
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"
        try:
            os.write(descriptor, line.encode("utf-8", "replace"))
        except OSError:  # nobody listens any more: the build itself goes on
            pass

    return say


def _say_error(say: Say, fault: DeviceError) -> None:
    log: List[str] = list(getattr(fault, "log", ()))
    say({
        "error": fault.message, "hint": fault.hint, "exit_code": fault.exit_code, "log": log[-20:]
    })  # fmt: skip


def _step(step: Step) -> Dict[str, Any]:
    return {
        "progress": step.fraction, "seconds_left": step.seconds_left, "phase": step.phase
    }  # fmt: skip


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _limit(words: str) -> Dict[str, str]:
    """Apply the parent's limits to this process, and return them.

    The memory limit counts writable memory of this process's own (RLIMIT_DATA): what CUDA reserves
    of the address space, hundreds of GB, would be over any limit of that (RLIMIT_AS).
    """
    limits = dict(word.partition("=")[::2] for word in words.split(",") if word)
    if "parent" in limits:
        # Whoever started this build may be killed: then nobody wants it any more.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(limits["parent"]):
            os._exit(1)
    if limits:
        # A core file of several gigabytes would fill the device's disk.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "memory_mib" in limits:
        size = int(limits["memory_mib"]) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    if "nice" in limits:
        os.nice(int(limits["nice"]))
        try:
            # The first to go where memory runs out.
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
                stream.write("1000")
        except OSError:
            pass
    return limits


def _check_digest(request: BuildRequest) -> None:
    sha256 = hashlib.sha256()
    with open(request.path, "rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            sha256.update(chunk)
    if sha256.hexdigest() != request.artifact_sha256:
        raise IntegrityFault(
            "`%s` is not the file that the recipe names: its digest differs" % request.artifact,
            "unpack the bundle again",
        )


def _read_cache(path: str) -> Optional[bytes]:
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAX_CACHE_BYTES)
    except FileNotFoundError:
        return None


def _write(path: str, content: Any) -> Tuple[str, int]:
    """Write a file that has its name only when it is whole; return its SHA-256 and size."""
    partial, sha256, size = path + ".part", hashlib.sha256(), 0
    view = memoryview(content).cast("B")
    with open(partial, "wb") as stream:
        for start in range(0, len(view), _CHUNK_BYTES):
            chunk = view[start : start + _CHUNK_BYTES]
            sha256.update(chunk)
            size += stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    return sha256.hexdigest(), size


def _write_json(path: str, content: Any) -> None:
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    _write(path, text.encode("utf-8", "replace"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
