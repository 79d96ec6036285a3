"""Notices that a build stands still: no thread of the process computes or waits for a disk."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Callable, Dict, Iterator, Optional, Tuple

# TensorRT-RTX 1.7 builds on the processor alone. Where an allocation fails in one of its threads,
# the others may wait for that one for ever (seen at limits of 150 MiB for a network of 5 MB).
RTX_S = 20.0
# TensorRT times kernels meanwhile: a processor that waits for the GPU computes nothing either.
GPU_S = 300.0
_LOOKS = 20
# States of `/proc/PID/task/TID/stat` in which a thread waits for another, for a lock or for input.
_ASLEEP = "S"


class Watch:
    """Calls back once where no other thread of this process has computed for a while.

    Args:
        after_s: How long.
        stood_still: Is called in a thread of the watch.
        look: Gives, by thread, its state and the processor time it had; by default those of this
            process's other threads.
    """

    def __init__(
        self,
        after_s: float,
        stood_still: Callable[[], None],
        look: Optional[Callable[[], Dict[int, Tuple[str, int]]]] = None,
    ) -> None:
        self._after_s = after_s
        self._stood_still = stood_still
        self._look = look or _other_threads
        self._waiting = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgepack-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for somebody else, such as who reads a pipe, which is no standstill."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def _run(self) -> None:
        last: Dict[int, Tuple[str, int]] = {}
        idle = 0
        # Looks are counted, not seconds: a machine that slept meanwhile has no standstill.
        while not self._ended.wait(self._after_s / _LOOKS):
            found = self._look()
            asleep = all(state == _ASLEEP for state, _ in found.values())
            same = found == last and asleep and not self._waiting
            idle = idle + 1 if same else 0
            last = found
            if idle >= _LOOKS:
                self._stood_still()
                return


def _other_threads() -> Dict[int, Tuple[str, int]]:
    """Return state and processor time, in clock ticks, of this process's other threads."""
    found = {}
    own = threading.get_native_id()
    for word in os.listdir("/proc/self/task"):
        if int(word) == own:
            continue
        try:
            with open("/proc/self/task/%s/stat" % word, encoding="ascii", errors="replace") as file:
                # The name in brackets may hold anything.
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(word)] = (fields[0], int(fields[11]) + int(fields[12]))
    return found
