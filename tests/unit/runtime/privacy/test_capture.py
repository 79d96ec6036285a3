"""Capture: which requests are kept, that no request waits or fails for it, and its bounds."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from runtime.privacy import capture as module
from runtime.privacy.capture import Capture, Chooser
from runtime.privacy.folder import Folder
from runtime.privacy.keys import CaptureKey
from runtime.privacy.records import REQUEST, Record
from runtime.privacy.retention import delete, delete_request, each_record, verify
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[4]
KEY = CaptureKey(bytes(range(32)))


class Request(NamedTuple):
    feeds: dict[str, Tensor]
    id: str | None = None


def request(name: str | None, size: int = 4) -> Request:
    secret = Tensor("uint8", (1,), b"s")
    return Request({"x": Tensor("uint8", (size,), bytes(size)), "secret": secret}, name)


RESULTS = {"y": Tensor("float32", (1,), b"\0\0\0\0")}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "kept"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S", 0.02)


@pytest.fixture
def make(folder: Folder) -> Iterator[Callable[..., Capture]]:
    made = []

    def capture(**changes: Any) -> Capture:
        arguments: dict[str, Any] = {
            "chooser": Chooser(1.0),
            "masked": ["secret"],
            "keep_s": 3600.0,
            "describe": lambda: {"engine": "e 1", "precision": "int8", "model": "m"},
        }
        found = Capture(folder, KEY, **{**arguments, **changes})
        made.append(found)
        return found

    yield capture
    for found in made:
        found.close()


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def kept(folder: Folder) -> list[Record]:
    faults: list[str] = []
    found = [record for _, record in each_record(folder, KEY, faults.append)]
    assert faults == []
    return found


def test_a_kept_request_has_all_but_what_is_masked(
    folder: Folder, make: Callable[..., Capture]
) -> None:
    capture = make(wall=lambda: 1_700_000_000.25)
    capture.start()
    capture.observe(request("order 66"), RESULTS)
    capture.close()
    (record,) = kept(folder)
    assert record.kind == REQUEST
    assert list(record.inputs) == ["x"]
    assert record.outputs == RESULTS
    fields = dict(record.fields)
    assert len(fields.pop("id")) == 32
    assert fields == {
        "time": 1_700_000_000.25, "request": "order 66", "engine": "e 1", "precision": "int8",
        "model": "m",
    }  # fmt: skip
    assert verify(folder, KEY)["faults"] == []
    assert verify(folder, KEY)["unfinished"] == 0


def test_the_same_seed_chooses_the_same_and_the_share_is_kept() -> None:
    def chosen(share: float, seed: int | None, count: int = 20_000) -> list[bool]:
        chooser = Chooser(share, seed)
        return [chooser.chooses_next() for _ in range(count)]

    assert chosen(0.3, 7, 500) == chosen(0.3, 7, 500)
    assert chosen(0.3, 7, 500) != chosen(0.3, 8, 500)
    for share in (0.01, 0.1, 0.5):
        # within five standard deviations
        spread = (20_000 * share * (1 - share)) ** 0.5
        assert abs(sum(chosen(share, 1)) - 20_000 * share) < 5 * spread
    assert all(chosen(1.0, 3, 1000))
    assert not any(chosen(0.0, 3, 1000))
    # whoever sends every second request is chosen from like everyone else
    assert abs(sum(chosen(0.5, 1)[::2]) - 5000) < 5 * 50


def test_a_request_is_copied_before_its_memory_is_used_again(
    folder: Folder, make: Callable[..., Capture]
) -> None:
    capture = make()
    lent = bytearray(b"abcd")
    capture.observe(Request({"x": Tensor("uint8", (4,), memoryview(lent))}), RESULTS)
    lent[:] = b"zzzz"
    capture.start()
    capture.close()
    assert kept(folder)[0].inputs["x"].data == b"abcd"


def test_a_full_queue_drops_and_counts(folder: Folder, make: Callable[..., Capture]) -> None:
    capture = make()
    for _ in range(module.MAX_QUEUED + 5):
        capture.observe(request(None), RESULTS)
    assert capture.dropped["queue"] == 5
    capture.start()
    capture.close()
    assert capture.kept == module.MAX_QUEUED == len(kept(folder))


def test_what_waits_takes_bounded_memory(
    make: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED_BYTES", 10_000)
    capture = make()
    for _ in range(10):
        capture.observe(request(None, 3000), RESULTS)
    assert capture.dropped["queue"] == 7
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1000)
    capture.observe(request(None, 3000), RESULTS)
    assert capture.dropped["size"] == 1


def test_a_full_folder_stops_keeping_and_says_so(
    folder: Folder, make: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.05)
    said: list[str] = []
    capture = make(quota_bytes=6000, tell=said.append)
    capture.start()
    for number in range(8):
        capture.observe(request(str(number), 1000), RESULTS)
        wait(lambda: not capture._queue)
    wait(lambda: capture.stopped)
    wait(lambda: sum(capture.dropped.values()) + capture.kept == 8)
    capture.observe(request("late", 1000), RESULTS)
    assert capture.dropped["quota"] >= 3
    assert said == ["the folder of kept requests is full; none is kept until that changes"]
    assert sum(one.size for one in folder.segments()) <= 6000
    # room again once something is deleted
    with folder.locked(5):
        assert delete(folder, folder.segments(), "all", KEY).remains == ()
    wait(lambda: not capture.stopped)
    assert said[-1] == "requests are kept again"
    before = capture.kept
    capture.observe(request("again", 10), RESULTS)
    wait(lambda: capture.kept == before + 1)


def test_a_disk_that_refuses_fails_no_request(
    folder: Folder, make: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    capture = make(tell=said.append)
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if threading.current_thread().name == "edgepack-capture":
            raise OSError(errno.ENOSPC, "canary in the message")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    capture.start()
    capture.observe(request("a"), RESULTS)
    wait(lambda: capture.stopped)
    assert capture.dropped["error"] == 1
    assert said == [
        "requests cannot be kept: no space left on device; none is kept until that changes"
    ]
    monkeypatch.undo()
    capture.close()
    assert kept(folder) == []


def test_a_tensor_that_cannot_be_copied_fails_no_request(make: Callable[..., Capture]) -> None:
    capture = make()
    capture.observe(Request({"x": Tensor("uint8", (1,), object())}), RESULTS)
    assert capture.dropped["error"] == 1


def test_segments_end_by_size_and_by_age(
    folder: Folder, make: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SEGMENT_BYTES", 5000)
    now = [1_000_000.0]
    capture = make(wall=lambda: now[0], keep_s=2400.0)
    capture.start()
    for number in range(6):
        capture.observe(request(str(number), 2000), RESULTS)
        wait(lambda number=number: capture.kept == number + 1)
    assert len(folder.segments()) == 3
    now[0] += 101  # a 24th of what anything is kept for
    wait(lambda: capture._segment is None)
    capture.observe(request("later", 10), RESULTS)
    wait(lambda: capture.kept == 7)
    assert len(folder.segments()) == 4


def test_what_is_too_old_goes_at_the_start_and_while_serving(
    folder: Folder, make: Callable[..., Capture]
) -> None:
    now = [1_000_000.0]
    first = make(wall=lambda: now[0], keep_s=100.0)
    first.start()
    first.observe(request("a"), RESULTS)
    first.close()
    now[0] += 50
    second = make(wall=lambda: now[0], keep_s=100.0)
    second.start()
    second.observe(request("b"), RESULTS)
    wait(lambda: second.kept == 1)
    assert [one.fields["request"] for one in kept(folder)] == ["a", "b"]
    now[0] += 60
    wait(lambda: len(folder.segments()) == 1)
    second.close()
    assert [one.fields["request"] for one in kept(folder)] == ["b"]
    now[0] += 1000
    make(wall=lambda: now[0], keep_s=100.0)
    assert folder.segments() == []
    assert verify(folder, KEY)["faults"] == []
    assert verify(folder, KEY)["signed"] == 2


def test_a_clock_that_is_set_back_keeps_nothing_for_longer(
    folder: Folder, make: Callable[..., Capture]
) -> None:
    now = [2_000_000.0]
    first = make(wall=lambda: now[0], keep_s=100.0)
    first.start()
    first.observe(request("a"), RESULTS)
    first.close()
    assert folder.state().clock == 2_000_000
    now[0] = 50.0  # as a device without a battery starts
    second = make(wall=lambda: now[0], keep_s=100.0)
    second.start()
    second.observe(request("b"), RESULTS)
    second.close()
    heads = [one.fields["time"] for one in kept(folder)]
    assert heads == [2_000_000.0, 50.0]
    now[0] = 2_000_101.0
    make(wall=lambda: now[0], keep_s=100.0)
    assert folder.segments() == []


def test_a_deletion_also_holds_for_what_is_not_written_yet(
    folder: Folder, make: Callable[..., Capture]
) -> None:
    capture = make()
    for name in ("a", "b", "a"):
        capture.observe(request(name), RESULTS)
    with folder.locked(5):
        assert delete_request(folder, "a", KEY).records == 0
    capture.start()
    wait(lambda: capture.kept == 1)
    assert capture.dropped["deleted"] == 2
    assert [one.fields["request"] for one in kept(folder)] == ["b"]


def test_a_server_lets_go_of_what_is_deleted_under_it(
    folder: Folder, make: Callable[..., Capture]
) -> None:
    capture = make()
    capture.start()
    capture.observe(request("a"), RESULTS)
    wait(lambda: capture.kept == 1)
    with folder.locked(5):
        assert delete(folder, folder.segments(), "all", KEY).remains == ()
    assert folder.segments() == []
    wait(lambda: capture._log_lines == 1)
    capture.observe(request("b"), RESULTS)
    wait(lambda: capture.kept == 2)
    capture.close()
    assert [one.fields["request"] for one in kept(folder)] == ["b"]
    assert verify(folder, KEY)["faults"] == []
    opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in opened if str(path).startswith(folder.path)]


def test_a_server_that_waits_for_the_lock_lets_go_all_the_same(
    folder: Folder, make: Callable[..., Capture]
) -> None:
    capture = make()
    capture.start()
    capture.observe(request("a"), RESULTS)
    wait(lambda: capture.kept == 1)
    with folder.locked(5):
        capture.observe(request("b"), RESULTS)
        wait(lambda: not capture._queue)  # taken, and waiting for the lock
        assert delete(folder, folder.segments(), "all", KEY).remains == ()
    wait(lambda: capture.dropped["deleted"] == 1)
    assert not capture.stopped


def test_one_segment_spans_one_stretch_of_time(
    folder: Folder, make: Callable[..., Capture]
) -> None:
    now = [1_000_000.0]
    capture = make(wall=lambda: now[0])
    capture.start()
    for name, back_s in (("a", 0), ("b", 1), ("c", 500)):
        now[0] -= back_s
        capture.observe(request(name), RESULTS)
        wait(lambda name=name: capture.kept == ord(name) - 96)
    assert len(folder.segments()) == 2


SCRIPT = """
import sys
from runtime.core import InferRequest
from runtime.privacy.capture import Capture, Chooser
from runtime.privacy.drift import Drift
from runtime.privacy.folder import Folder
from runtime.privacy.keys import CaptureKey
from runtime.privacy.retention import delete_request, each_record, verify
from runtime.tensor import Tensor

folder, key = Folder(sys.argv[1]), CaptureKey(bytes(range(32)))
print(sorted(record.fields["request"] for _, record in each_record(folder, key, print)))
drift = Drift([])
capture = Capture(folder, key, chooser=Chooser(1.0), masked=["m"], keep_s=3600.0,
                  describe=lambda: {"engine": "e", "precision": "p", "model": "m"},
                  also=drift.records)
capture.start()
for name in ("stays", "goes"):
    for dtype, data in (("float32", bytes(8)), ("string", [b"a", b"b"]), ("bool", b"\\0\\1")):
        request = InferRequest({"x": Tensor(dtype, (2,), data), "m": Tensor("uint8", (1,), b"s")},
                               name)
        results = {"y": Tensor("float16", (1, 2), bytes(4))}
        capture.observe(request, results)
        drift.observe(request, results)
capture.close()
with folder.locked(5.0):
    print(delete_request(folder, "goes", key)[1:], verify(folder, key)["faults"])
"""


def test_every_cpython_keeps_reads_and_deletes_alike(
    old_python: Path, folder: Folder, make: Callable[..., Capture]
) -> None:
    capture = make()
    capture.start()
    capture.observe(request("from here"), RESULTS)
    capture.close()
    done = subprocess.run(
        [old_python, "-c", SCRIPT, folder.path], env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["['from here']", "(3, ()) []"]
    assert sorted(one.fields["request"] for one in kept(folder)) == ["from here"] + ["stays"] * 3
    assert {next(iter(one.inputs)) for one in kept(folder)} == {"x"}
