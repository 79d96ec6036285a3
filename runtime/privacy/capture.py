"""Keeps a share of the requests: chosen without regard to what they hold, encrypted by a thread."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, List, Mapping, Optional

from ..errors import DeviceError
from . import deletions
from .deletions import log_bytes
from .folder import Clock, Folder, State
from .keys import CaptureKey
from .records import REQUEST, Record, copy_tensors, pack_record, size_of
from .retention import begin_segment, delete, expired, finish
from .segments import MAX_RECORD_BYTES, SegmentWriter

QUOTA_BYTES = 256 << 20
MAX_SEGMENT_BYTES = 16 << 20
MAX_SEGMENT_S = 3600.0
MAX_SEGMENTS = 4096
MAX_QUEUED = 256
MAX_QUEUED_BYTES = 32 << 20
ROUND_S = 1.0
SYNC_S = 5.0
EXPIRE_S = 60.0
PAUSE_S = 60.0
LOCK_S = 30.0
END_S = 10.0
# Requests of several threads come a little out of order.
DISORDER_S = 2.0
REASONS = ("queue", "size", "quota", "error", "deleted")
_WORD = (1 << 64) - 1


class Chooser:
    """Chooses a share of all requests; the same seed chooses the same numbers.

    Nothing of a request has a part in it, so what is kept is not biased, and no client can
    influence it.

    Args:
        share: 0 to 1.
        seed: None for one that nobody knows.
    """

    def __init__(self, share: float, seed: Optional[int] = None) -> None:
        self._below = int(share * (1 << 64))
        self._seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed & _WORD
        self._numbers = itertools.count(1)

    def chooses_next(self) -> bool:
        """Say whether the next request is one of those."""
        # Steele, Lea, Flood: Fast splittable pseudorandom number generators (SplitMix64)
        word = (self._seed + next(self._numbers) * 0x9E3779B97F4A7C15) & _WORD
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
        return (word ^ (word >> 31)) < self._below


class Capture:
    """Writes what was kept, in a thread of its own; a request never waits for it.

    Args:
        folder: Where.
        key: Encrypts it.
        chooser: Says which requests; None for none, where only statistics are kept.
        masked: Inputs that are never kept.
        keep_s: For how long anything is kept.
        describe: Returns `engine`, `precision` and `model` of this moment.
        also: Returns further records, asked for about once a second and at the end.
        tell: Hears one sentence where keeping stops or goes on.
        quota_bytes: The most that the folder's segments may take.

    Attributes:
        kept: Requests that have been written.
        dropped: Requests that were chosen and not kept, by reason.
        stopped: Why nothing is kept at the moment, else empty.
    """

    def __init__(
        self,
        folder: Folder,
        key: CaptureKey,
        *,
        chooser: Optional[Chooser],
        masked: Iterable[str],
        keep_s: float,
        describe: Callable[[], Mapping[str, str]],
        also: Callable[[bool], List[Record]] = lambda _: [],
        tell: Callable[[str], None] = lambda _: None,
        quota_bytes: int = QUOTA_BYTES,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._key = key
        self._chooser = chooser
        self._masked = frozenset(masked)
        self._keep_s = keep_s
        self._describe = describe
        self._also = also
        self._tell = tell
        self._quota_bytes = quota_bytes
        self._wall = wall
        # a segment goes as a whole, so what it spans is kept so much shorter than allowed
        self._segment_s = min(MAX_SEGMENT_S, keep_s / 24)
        self.kept = 0
        self.dropped = dict.fromkeys(REASONS, 0)
        self.stopped = ""
        self._queue: Deque[Record] = deque()
        self._queued_bytes = 0
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._segment: Optional[SegmentWriter] = None
        self._segment_wall = self._segment_end = 0.0
        self._stored_bytes = self._log_lines = self._log_bytes = 0
        self._stored_segments = 0
        self._resume_at = self._sync_at = self._expire_at = 0.0
        with folder.locked(LOCK_S):
            self._clock = Clock(finish(folder).clock, wall)
            self._know_log()
            self._expire(self._clock.now())
        self._thread = threading.Thread(target=self._run, name="edgepack-capture", daemon=True)

    @property
    def stored_bytes(self) -> int:
        """What the segments take."""
        return self._stored_bytes + (self._segment.size if self._segment else 0)

    def start(self) -> None:
        """Begin to write what is chosen."""
        self._thread.start()

    def observe(self, request: Any, results: Mapping[str, Any]) -> None:
        """Keep a request with its results if it is chosen; quick, and never raises."""
        if self._chooser is None or not self._chooser.chooses_next():
            return
        try:
            self._take(request, results)
        except Exception:  # noqa: BLE001 - no request fails because it could not be kept
            self._drop("error")

    def close(self) -> None:
        """Write what is waiting, and end."""
        self._ending = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(END_S)

    def _take(self, request: Any, results: Mapping[str, Any]) -> None:
        if self.stopped:
            self._drop("quota" if self.stopped.startswith("the folder") else "error")
            return
        size = size_of(request.feeds) + size_of(results)
        if size > MAX_RECORD_BYTES // 2:
            self._drop("size")
            return
        with self._guard:
            room = len(self._queue) < MAX_QUEUED and (
                self._queued_bytes + size <= MAX_QUEUED_BYTES or not self._queue
            )
            if room:
                self._queued_bytes += size
        if not room:
            self._drop("queue")
            return
        fields = {
            "time": round(self._wall(), 3),
            "id": os.urandom(16).hex(),
            "request": getattr(request, "id", None),
            **self._describe(),
        }
        nothing: "frozenset[str]" = frozenset()
        self._queue.append(
            Record(
                REQUEST,
                fields,
                copy_tensors(request.feeds, self._masked),
                copy_tensors(results, nothing),
            )
        )
        self._wake.set()

    def _drop(self, reason: str, count: int = 1) -> None:
        with self._guard:
            self.dropped[reason] += count

    def _run(self) -> None:
        while True:
            self._wake.wait(ROUND_S)
            self._wake.clear()
            ending = self._ending
            batch = self._drain()
            try:
                self._round(batch, ending=ending)
            except Exception as fault:  # noqa: BLE001 - the server goes on without keeping
                self._fail(len(batch), _reason(fault))
            if ending:
                return

    def _drain(self) -> List[Record]:
        batch = []
        with self._guard:
            while self._queue:
                batch.append(self._queue.popleft())
            self._queued_bytes = 0
        return batch

    def _round(self, batch: List[Record], *, ending: bool) -> None:
        """Write a batch; look after what was deleted, what is too old, what is not on disk yet."""
        now = self._clock.now()
        self._let_go()
        if self._segment is not None and now >= self._segment_end:
            self._end_segment()
        if self.stopped and time.monotonic() >= self._resume_at:
            self._expire_at = 0.0
        further = self._also(ending)
        if batch or further or now >= self._expire_at or ending or self._log_has_grown():
            with self._folder.locked(LOCK_S, self._let_go):
                if now >= self._expire_at:
                    self._expire(now)
                    self._go_on()
                batch = self._without_deleted(batch)
                for number, record in enumerate([*batch, *further]):
                    if not self._write(record, now):
                        self._drop("quota", max(len(batch) - number, 0))
                        break
                if ending:
                    self._end_segment()
                    self._keep_clock(now)
        if self._segment is not None and not self._segment.synced and now >= self._sync_at:
            self._segment.sync()
            self._sync_at = now + SYNC_S

    def _write(self, record: Record, now: float) -> bool:
        """Append a record; False where the folder is full."""
        data = pack_record(record)
        if (
            self.stored_bytes + len(data) > self._quota_bytes
            or self._stored_segments >= MAX_SEGMENTS
        ):
            self._stop("the folder of kept requests is full")
            return False
        moment = float(record.fields["time"])
        segment = self._segment
        if segment is not None and (
            segment.is_deleted
            or now >= self._segment_end
            # one segment spans one stretch of time, so that `delete --before` finds it
            or moment < self._segment_wall
            or segment.size + len(data) > MAX_SEGMENT_BYTES
        ):
            self._end_segment()
        if self._segment is None:
            self._segment = self._begin(now, moment)
        self._segment.append(data)
        self.kept += record.kind == REQUEST
        return True

    def _begin(self, now: float, moment: float) -> SegmentWriter:
        self._segment_wall = moment - DISORDER_S
        self._segment_end = now + self._segment_s
        head = {
            "created": int(now),
            "wall": int(min(self._segment_wall, now)),
            "keep_s": self._keep_s,
            "model": self._describe()["model"],
        }
        _, writer, _ = begin_segment(self._folder, self._folder.state(), head, self._key)
        self._stored_segments += 1
        return writer

    def _end_segment(self, *, whole: bool = True) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            deleted = segment.is_deleted
            self._stored_bytes += 0 if deleted else segment.size
            segment.close(whole=whole)

    def _let_go(self) -> None:
        """Close what somebody has deleted: they hold the lock until nobody has it open."""
        if self._segment is not None and self._segment.is_deleted:
            self._end_segment()

    def _expire(self, now: float) -> None:
        """Delete what is too old; the lock is held."""
        overdue = expired(self._folder, now, self._keep_s)
        if overdue:
            delete(self._folder, overdue, "expired", self._key)
            self._know_log()
        segments = self._folder.segments()
        self._stored_segments = len(segments)
        open_bytes = self._segment.size if self._segment else 0
        self._stored_bytes = sum(segment.size for segment in segments) - open_bytes
        self._keep_clock(now)
        self._expire_at = now + min(EXPIRE_S, self._keep_s / 24)

    def _keep_clock(self, now: float) -> None:
        state: State = self._folder.state()
        if int(now) > state.clock:
            self._folder.keep_state(state._replace(clock=int(now)))

    def _without_deleted(self, batch: List[Record]) -> List[Record]:
        """Return what nobody has asked to delete while it waited; the lock is held."""
        if not self._log_has_grown():
            return batch
        stay = batch
        for entry in deletions.read_log(self._folder)[self._log_lines :]:
            asked = entry.get("request")
            if entry.get("why") != "request" or not isinstance(asked, dict):
                stay = []
                break
            stay = [
                record
                for record in stay
                if asked["sha256"]
                not in (
                    deletions.request_digest(asked["salt"], str(record.fields[key]))
                    for key in ("request", "id")
                )
            ]
        self._know_log()
        self._drop("deleted", len(batch) - len(stay))
        return stay

    def _log_has_grown(self) -> bool:
        return log_bytes(self._folder) != self._log_bytes

    def _know_log(self) -> None:
        self._log_lines = self._folder.state().deletions
        self._log_bytes = log_bytes(self._folder)

    def _fail(self, count: int, reason: str) -> None:
        self._drop("error", count)
        self._stop("requests cannot be kept: %s" % reason)
        try:
            self._end_segment(whole=False)
        except OSError:
            pass

    def _stop(self, why: str) -> None:
        self._resume_at = time.monotonic() + PAUSE_S
        if not self.stopped:
            self._tell("%s; none is kept until that changes" % why)
        self.stopped = why

    def _go_on(self) -> None:
        if self.stopped and time.monotonic() >= self._resume_at:
            if self.stored_bytes < self._quota_bytes and self._stored_segments < MAX_SEGMENTS:
                self.stopped = ""
                self._tell("requests are kept again")
            else:
                self._resume_at = time.monotonic() + PAUSE_S


def status(capture: Capture) -> Dict[str, Any]:
    """Return what metrics tell."""
    return {
        "kept": capture.kept,
        "dropped": dict(capture.dropped),
        "bytes": capture.stored_bytes,
        "stopped": bool(capture.stopped),
    }


def _reason(fault: Exception) -> str:
    if isinstance(fault, DeviceError):
        return fault.message
    # nothing else of a fault: a message could hold what was being written
    said = os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno else None
    return (said or type(fault).__name__).lower()
