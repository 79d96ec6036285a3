"""What Linux knows of this process, by the names that Prometheus's client libraries use."""

from __future__ import annotations

import os
import time
from typing import List, Tuple

Fact = Tuple[str, str, str, float]


def process_facts() -> List[Fact]:
    """Return name, kind, meaning and value of each; nothing where Linux does not tell."""
    times = os.times()
    facts: List[Fact] = [
        ("process_cpu_seconds_total", "counter", "User and system CPU time.",
         round(times.user + times.system, 2))
    ]  # fmt: skip
    facts += _descriptors()
    try:
        with open("/proc/self/stat", "rb") as stream:
            # after the name, which may hold anything; proc(5) counts from 1, the state is 3
            fields = stream.read().rpartition(b")")[2].split()
    except OSError:
        return facts
    threads, ticks, virtual, pages = (int(fields[i]) for i in (17, 19, 20, 21))
    uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    started_s = round(time.time() - uptime_s, 2)
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    facts += [
        ("process_resident_memory_bytes", "gauge", "Resident memory.", resident),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory.", virtual),
        ("process_start_time_seconds", "gauge", "Start, in seconds since 1970.", started_s),
        ("process_thread_count", "gauge", "Threads.", threads),
    ]
    return facts


def _descriptors() -> List[Fact]:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = float("inf") if limit == resource.RLIM_INFINITY else limit
    facts: List[Fact] = [
        ("process_max_fds", "gauge", "The most file descriptors it may open.", most)
    ]
    try:
        count = len(os.listdir("/proc/self/fd")) - 1  # without the one that lists them
    except OSError:
        return facts
    return [("process_open_fds", "gauge", "Open file descriptors.", count), *facts]
