"""Measures a release on this device: latency, throughput, memory, start."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Dict, List, Optional

from .detect import check_fits, detect_device
from .engine import describe_choice, open_engine
from .errors import ModelFault
from .golden import read_sample
from .release import open_release
from .signature import Signature

_WARM_UP_RUNS = 5
# As many as the server has workers.
_CALLERS = 2


def run_bench(
    path: str, *, seconds: float, runs: Optional[int], threads: Optional[int]
) -> Dict[str, Any]:
    """Run the first golden sample again and again, one call at a time and then two at once.

    Args:
        path: The bundle or release.
        seconds: Length of each of both parts, at most.
        runs: Calls of each part, at most; None for no such bound.
        threads: Intra-op threads; None for the manifest's choice.

    Returns:
        Latencies in ms, throughput in calls per second, memory in MB (10^6 bytes), and the time
        from the start of this process to its first answer in seconds.

    Raises:
        TargetMismatch: the bundle is for another machine.
        ModelFault: the bundle has no golden sample, or the model fails on it.
    """
    with open_release(path, True) as release:
        check_fits(release.manifest, detect_device())
        if not release.manifest["golden"]["samples"]:
            raise ModelFault("the bundle carries no golden sample to run")
        signature = Signature(release.manifest["model"]["signature"])
        feeds = read_sample(release.folder, 0, "inputs", list(signature.inputs))
        before_mb = memory_mb("VmRSS")
        engine = open_engine(release, threads)
        try:
            engine.run(feeds)
            start_s = process_age_s()
            for _ in range(_WARM_UP_RUNS):
                engine.run(feeds)
            latencies_ms = _measure(lambda: engine.run(feeds), seconds, runs)
            throughput = _measure_throughput(lambda: engine.run(feeds), seconds, runs)
            choice = describe_choice(engine)
        finally:
            engine.close()
        latencies_ms.sort()
        return {
            "engine": "%s %s" % (engine.name, engine.version),
            "provider": engine.provider,
            "precision": engine.precision,
            **({} if choice is None else {"accelerator": choice}),
            "threads": engine.threads,
            "runs": len(latencies_ms),
            "p50_latency_ms": _percentile(latencies_ms, 0.50),
            "p90_latency_ms": _percentile(latencies_ms, 0.90),
            "p99_latency_ms": _percentile(latencies_ms, 0.99),
            "throughput_per_s": round(throughput, 1),
            "throughput_callers": _CALLERS,
            "start_s": round(start_s, 3),
            "memory_mb": memory_mb("VmRSS"),
            "peak_memory_mb": memory_mb("VmHWM"),
            "engine_memory_mb": round(memory_mb("VmRSS") - before_mb, 1),
        }


def memory_mb(key: str) -> float:
    """Return this process's `VmRSS` or `VmHWM` in MB (10^6 bytes)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        for line in stream:
            if line.startswith(key + ":"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return 0.0


def process_age_s() -> float:
    """Return how long ago this process was started, to the kernel's 10 ms."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stream:
        # The command's name is in parentheses and may hold anything.
        fields = stream.read().rpartition(")")[2].split()
    begun_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun_s


def _measure(call: Any, seconds: float, runs: Optional[int]) -> List[float]:
    latencies_ms: List[float] = []
    end = time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        if latencies_ms and (began >= end or len(latencies_ms) == runs):
            return latencies_ms
        call()
        latencies_ms.append((time.perf_counter() - began) * 1e3)


def _measure_throughput(call: Any, seconds: float, runs: Optional[int]) -> float:
    share = None if runs is None else max(1, runs // _CALLERS)
    counts: List[int] = []
    callers = [
        threading.Thread(target=lambda: counts.append(len(_measure(call, seconds, share))))
        for _ in range(_CALLERS)
    ]
    began = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return sum(counts) / (time.perf_counter() - began)


def _percentile(ordered: List[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)
