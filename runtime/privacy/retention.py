"""Deletes segments and single requests so that it can be proved, also after a loss of power.

The order is: what stays is written anew under a name that nobody reads, the deletion goes into the
log, the segment's own key is overwritten, its name is removed. `finish` completes a deletion that
was interrupted after it was in the log; before, nothing has happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ..errors import IntegrityFault
from . import deletions
from .folder import PARTIAL, Folder, Segment, State
from .keys import CaptureKey
from .records import REQUEST, Record, unpack_record
from .segments import WRAPPED_BYTES, SegmentReader, SegmentWriter

# How long a server has to let go of a segment that was deleted under it: it looks every second.
RELEASE_S = 10.0
_ROUND_S = 0.1
_DAMAGED_HEAD_BYTES = 1 << 17
_CHUNK_BYTES = 1 << 20


class Deleted(NamedTuple):
    """What a deletion did.

    Attributes:
        segments: Names of the files that are gone.
        records: Requests that are gone; None where nobody could count them without the key.
        remains: What of it is still there, in sentences; empty is the proof.
    """

    segments: Tuple[str, ...]
    records: Optional[int]
    remains: Tuple[str, ...]


def begin_segment(
    folder: Folder, state: State, head: Mapping[str, Any], key: CaptureKey
) -> Tuple[str, SegmentWriter, State]:
    """Begin a segment, and return its name, its writer, and the folder's new state."""
    name = folder.new_name(state.next)
    partial = folder.file(name) + PARTIAL
    writer = SegmentWriter(partial, {**head, "number": state.next}, key.wrapping)
    os.rename(partial, folder.file(name))
    folder.sync()
    state = state._replace(next=state.next + 1)
    folder.keep_state(state)
    return name, writer, state


def expired(folder: Folder, now: float, keep_s: float) -> List[Segment]:
    """Return the segments whose oldest request is too old, by this or by their own rule."""
    found = []
    for segment in folder.segments():
        try:
            with SegmentReader(folder.file(segment.name)) as reader:
                head = reader.head
            age_s = now - float(head["created"])
            overdue = age_s >= min(keep_s, float(head["keep_s"]))
        except (IntegrityFault, KeyError, TypeError, ValueError):
            # nobody can read it, and nobody can tell its age otherwise
            age_s = now - os.stat(folder.file(segment.name)).st_mtime
            overdue = age_s >= keep_s
        if overdue:
            found.append(segment)
    return found


def begun_before(folder: Folder, moment: float) -> List[Segment]:
    """Return the segments that may hold requests from before a moment."""
    found = []
    for segment in folder.segments():
        try:
            with SegmentReader(folder.file(segment.name)) as reader:
                begun = min(float(reader.head["created"]), float(reader.head["wall"]))
        except (IntegrityFault, KeyError, TypeError, ValueError):
            begun = 0.0
        if begun < moment:
            found.append(segment)
    return found


def delete(
    folder: Folder, segments: Sequence[Segment], why: str, key: Optional[CaptureKey] = None
) -> Deleted:
    """Delete whole segments; the caller holds the folder's lock."""
    state = finish(folder)
    records = None if key is None else sum(_count(folder, segment, key) for segment in segments)
    # what was asked for goes into the log in any case: the server may hold what it has not written
    if not segments and why == "expired":
        return Deleted((), 0, ())
    entry = _entry(folder, segments, why)
    entry["records"] = records
    deletions.append(folder, state, entry, None if key is None else key.signing)
    remains = _destroy(folder, [segment.name for segment in segments])
    return Deleted(tuple(segment.name for segment in segments), records, tuple(remains))


def delete_request(folder: Folder, request: str, key: CaptureKey) -> Deleted:
    """Delete the requests of one id, and leave all others; the caller holds the folder's lock.

    Raises:
        IntegrityFault: a segment cannot be read, so nobody can say what it holds.
    """
    state = finish(folder)
    gone: List[Segment] = []
    written: List[str] = []
    count = 0
    for segment in folder.segments():
        stay, found, head = _part(folder, segment, request, key)
        if not found:
            continue
        gone.append(segment)
        count += found
        if stay:
            name = folder.new_name(state.next)
            fresh = {**head, "number": state.next}
            writer = SegmentWriter(folder.file(name) + PARTIAL, fresh, key.wrapping)
            for record in stay:
                writer.append(record)
            writer.close()
            state = state._replace(next=state.next + 1)
            written.append(name)
    salt = os.urandom(16).hex()
    entry = _entry(folder, gone, "request")
    entry.update(
        records=count,
        written=written,
        request={"salt": salt, "sha256": deletions.request_digest(salt, request)},
    )
    # also where nothing was found: the server may hold a request that it has not written yet
    deletions.append(folder, state, entry, key.signing)
    for name in written:
        os.rename(folder.file(name) + PARTIAL, folder.file(name))
    folder.sync()
    names = [segment.name for segment in gone]
    remains = _destroy(folder, names)
    for segment in folder.segments():
        if _part(folder, segment, request, key)[1]:
            remains.append("`%s` still holds the request" % segment.name)
    return Deleted(tuple(names), count, tuple(remains))


def finish(folder: Folder) -> State:
    """Complete what was interrupted, and return the state; the caller holds the folder's lock."""
    state = deletions.catch_up(folder, folder.state())
    entries = deletions.read_log(folder)
    for entry in entries:
        for name in entry.get("written") or ():
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder.file(name) + PARTIAL, folder.file(name))
    here = {segment.name for segment in folder.segments()}
    gone = [item["name"] for entry in entries for item in entry["segments"]]
    _destroy(folder, [name for name in gone if name in here])
    for name in folder.strangers():
        if name.endswith(".kept" + PARTIAL):
            _destroy(folder, [name])
    return state


def verify(folder: Folder, key: Optional[CaptureKey]) -> Dict[str, Any]:
    """Return what is kept, and every fault of the folder, in sentences.

    With the key every record is decrypted; without, only the heads are looked at.
    """
    state = folder.state()
    faults = deletions.faults(folder, state, None if key is None else key.signing)
    entries = [] if faults else deletions.read_log(folder)
    deleted = [str(item["name"]) for entry in entries for item in entry["segments"]]
    segments = folder.segments()
    here = {segment.name for segment in segments}
    if (segments or entries) and not folder.has_state:
        faults.append("`state.json`, which counts segments and deletions, is not there or changed")
    faults += ["`%s` was deleted and is there" % name for name in deleted if name in here]
    accounted = {segment.number for segment in segments}
    accounted.update(int(name[:10]) for name in deleted)
    if not faults:
        faults += [
            "segment %d is missing and no deletion is on record" % number
            for number in range(state.next)
            if number not in accounted
        ]
    faults += ["`%s` is none of ours" % name for name in folder.strangers()]
    records = 0
    unfinished = 0
    for segment in segments:
        try:
            with SegmentReader(folder.file(segment.name)) as reader:
                if key is not None:
                    for _ in reader.read(key.wrapping):
                        records += 1
                    unfinished += not reader.is_closed
        except (IntegrityFault, OSError) as fault:
            faults.append(getattr(fault, "message", "`%s` cannot be read" % segment.name))
    return {
        "segments": len(segments),
        "bytes": sum(segment.size for segment in segments),
        "records": None if key is None else records,
        "unfinished": None if key is None else unfinished,
        "deletions": len(entries),
        "signed": sum("mac" in entry for entry in entries),
        "faults": faults,
    }


def each_record(
    folder: Folder, key: CaptureKey, tell: Callable[[str], None]
) -> Iterable[Tuple[Segment, Record]]:
    """Yield every record of every segment; what cannot be read is told and passed over."""
    for segment in folder.segments():
        try:
            with SegmentReader(folder.file(segment.name)) as reader:
                for data in reader.read(key.wrapping):
                    yield segment, unpack_record(data)
        except IntegrityFault as fault:
            tell(fault.message)
        except FileNotFoundError:
            continue  # its time was up meanwhile


def _part(
    folder: Folder, segment: Segment, request: str, key: CaptureKey
) -> Tuple[List[bytes], int, Dict[str, Any]]:
    """Return the records that stay, how many go, and the segment's head."""
    stay, found = [], 0
    with SegmentReader(folder.file(segment.name)) as reader:
        for data in reader.read(key.wrapping):
            record = unpack_record(data)
            if record.kind == REQUEST and request in (
                record.fields.get("request"),
                record.fields.get("id"),
            ):
                found += 1
            else:
                stay.append(data)
        return stay, found, reader.head


def _count(folder: Folder, segment: Segment, key: CaptureKey) -> int:
    try:
        with SegmentReader(folder.file(segment.name)) as reader:
            return sum(unpack_record(data).kind == REQUEST for data in reader.read(key.wrapping))
    except IntegrityFault:
        return 0


def _entry(folder: Folder, segments: Sequence[Segment], why: str) -> Dict[str, Any]:
    return {
        "time": int(time.time()),
        "why": why,
        "segments": [
            {"name": segment.name, "sha256": _digest(folder.file(segment.name))}
            for segment in segments
        ],
        "written": [],
        "records": None,
        "request": None,
    }


def _destroy(folder: Folder, names: Sequence[str]) -> List[str]:
    """Overwrite the keys of segments, remove their names, and return what is still there."""
    remains = []
    opened = []
    try:
        for name in names:
            try:
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(folder.file(name), flags)
            except FileNotFoundError:
                continue
            opened.append((name, descriptor))
            _overwrite_key(folder.file(name), descriptor)
            os.unlink(folder.file(name))
        folder.sync()
        here = set(os.listdir(folder.path))
        remains += ["`%s` is still there" % name for name in names if name in here]
        end = time.monotonic() + RELEASE_S
        for name, descriptor in opened:
            if not _is_released(descriptor, end):
                remains.append("a process still has `%s` open" % name)
    finally:
        for _, descriptor in opened:
            os.close(descriptor)
    return remains


def _overwrite_key(path: str, descriptor: int) -> None:
    """Make a segment unreadable for whoever has the capture key and finds its blocks."""
    start, size = 0, min(os.fstat(descriptor).st_size, _DAMAGED_HEAD_BYTES)
    with contextlib.suppress(IntegrityFault), SegmentReader(path) as reader:
        start, size = reader.key_offset, WRAPPED_BYTES
    os.pwrite(descriptor, bytes(size), start)
    os.fsync(descriptor)


def _is_released(descriptor: int, end: float) -> bool:
    """Wait until nobody else has a file open: its writer holds a shared lock as long as it does."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_ROUND_S)
        else:
            return True


def _digest(path: str) -> str:
    sha256 = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            chunk = stream.read(_CHUNK_BYTES)
            if not chunk:
                return sha256.hexdigest()
            sha256.update(chunk)
