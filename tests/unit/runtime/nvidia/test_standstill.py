"""A build that stands still is noticed, one that computes, waits for a reader or sleeps is not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from runtime.errors import InputOutputFault
from runtime.nvidia.room import check_limit
from runtime.nvidia.standstill import Watch
from tests.unit.runtime.nvidia.graphs import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

Look = dict[int, tuple[str, int]]
AFTER_S = 0.2
DEADLOCK = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace
from runtime.nvidia import child

class Journal(SimpleNamespace):
    lines = ["[E] std::bad_alloc"]

def build(*_, say, **__):
    watch = child.Watch(0.2, lambda: child._end(say, 20, 160, Journal()))
    watch.start()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

say = child._take_standard_output()
build(say=say)
"""


class Looks:
    """Gives what a test says, then the last of it for ever; tells when that was asked for."""

    def __init__(self, *found: Look) -> None:
        self.found = list(found)
        self.over = threading.Event()

    def __call__(self) -> Look:
        if len(self.found) > 1:
            return self.found.pop(0)
        self.over.set()
        return self.found[0]


def growing() -> Iterator[Look]:
    return ({1: ("S", tick)} for tick in range(100))


def test_threads_that_wait_for_each_other_are_a_standstill() -> None:
    called = threading.Event()
    watch = Watch(AFTER_S, called.set, Looks({1: ("S", 5), 2: ("S", 0)}))
    watch.start()
    assert called.wait(60)


@pytest.mark.parametrize(
    "looks",
    [
        [{1: ("S", 5), 2: ("R", 7)}],
        [{1: ("D", 5)}],
        [{1: ("T", 5)}],
        list(growing()),
    ],
    ids=["runs", "reads a disk", "was stopped", "computes between"],
)
def test_whoever_computes_or_is_held_up_does_not_stand_still(looks: list[Look]) -> None:
    called = threading.Event()
    source = Looks(*looks)
    watch = Watch(AFTER_S, called.set, source)
    watch.start()
    assert source.over.wait(60)
    assert not called.is_set()
    watch.stop()


def test_waiting_for_whoever_reads_is_no_standstill() -> None:
    called = threading.Event()
    asked = threading.Semaphore(0)

    def look() -> Look:
        asked.release()
        return {1: ("S", 5)}

    watch = Watch(AFTER_S, called.set, look)
    with watch.waiting():
        watch.start()
        for _ in range(60):
            assert asked.acquire(timeout=60)
        assert not called.is_set()
    assert called.wait(60)


def test_a_process_whose_threads_are_stuck_ends_with_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEADLOCK, str(ROOT)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 5
    said = json.loads(done.stdout)
    assert said["error"] == (
        "the build stood still for 20 s, as it does where memory runs out, and it may take 160 MiB"
    )
    assert said["log"] == ["[E] std::bad_alloc"]
    assert f"error: {said['error']}\n\nhint: {said['hint']}" in done.stderr


def test_a_limit_under_which_no_build_ends_is_refused_at_once() -> None:
    check_limit(160, 5 << 20, "tensorrt_rtx")
    with pytest.raises(InputOutputFault) as caught:
        check_limit(150, 5 << 20, "tensorrt_rtx")
    assert caught.value.message == (
        "building this engine needs about 310 MiB of memory, and 150 MiB are allowed"
    )
