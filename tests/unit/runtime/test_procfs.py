"""What the process tells of itself."""

from __future__ import annotations

import os
import resource
import threading
import time

from runtime.procfs import process_facts


def facts() -> dict[str, float]:
    return {name: value for name, _, _, value in process_facts()}


def test_the_figures_are_those_of_this_process() -> None:
    found = facts()
    assert found["process_resident_memory_bytes"] > 10_000_000
    assert found["process_resident_memory_bytes"] <= found["process_virtual_memory_bytes"]
    assert 1_700_000_000 < found["process_start_time_seconds"] <= time.time()
    assert found["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found["process_cpu_seconds_total"] > 0


def test_open_descriptors_and_threads_are_counted() -> None:
    before = facts()
    descriptors = os.pipe()
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    try:
        after = facts()
    finally:
        gate.set()
        thread.join()
        for descriptor in descriptors:
            os.close(descriptor)
    assert after["process_open_fds"] == before["process_open_fds"] + 2
    assert after["process_thread_count"] == before["process_thread_count"] + 1
