"""The folder of kept requests: who may touch it, its lock, its segments, its state."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional

from ..errors import InputOutputFault, UsageFault

LOCK, STATE, LOG = "lock", "state.json", "deletions.log"
PARTIAL = ".part"
_NAME = re.compile(r"([0-9]{10})-[0-9a-f]{16}\.kept\Z")
_OTHERS = 0o077
_LOCK_ROUND_S = 0.05


def state_directory() -> Optional[str]:
    """Return the first folder that systemd has made for this service; None outside of one."""
    return os.environ.get("STATE_DIRECTORY", "").split(":")[0] or None


class Segment(NamedTuple):
    """One segment in the folder.

    Attributes:
        number: Counts the segments of a folder; none is used twice.
        size: In bytes.
    """

    name: str
    number: int
    size: int


class State(NamedTuple):
    """What the folder remembers beside its segments.

    Attributes:
        clock: The latest time that was ever known here, in seconds since 1970.
        next: The number of the next segment.
        deletions: Lines in the log of deletions, and `head`, the digest of the last.
    """

    clock: int = 0
    next: int = 0
    deletions: int = 0
    head: str = ""


_STATE_TYPES = [type(value) for value in State()]


class Folder:
    """A folder of kept requests.

    Args:
        path: Made where it does not exist, readable by nobody else.

    Raises:
        UsageFault: no folder is named, or others can reach into it.
        InputOutputFault: it cannot be made.
    """

    def __init__(self, path: Optional[str], *, make: bool = True) -> None:
        if not path:
            raise UsageFault(
                "there is no folder for kept requests",
                "give `--capture-dir DIR`, or `StateDirectory=` in the unit",
            )
        self.path = os.path.abspath(path)
        try:
            if make:
                os.makedirs(self.path, mode=0o700, exist_ok=True)
            status = os.stat(self.path)
        except OSError as fault:
            raise InputOutputFault(
                "`%s` cannot be used: %s" % (path, (fault.strerror or "").lower())
            ) from None
        if not stat.S_ISDIR(status.st_mode):
            raise UsageFault("`%s` is no folder" % path)
        if status.st_mode & _OTHERS and make:
            raise UsageFault("others can reach into `%s`" % path, "chmod 700 %s" % path)

    def file(self, name: str) -> str:
        """Return where one of the folder's files lies."""
        return os.path.join(self.path, name)

    @contextlib.contextmanager
    def locked(
        self, timeout_s: float, waiting: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Keep everyone else from changing the folder.

        Args:
            timeout_s: How long to wait for whoever does.
            waiting: Called again and again meanwhile.

        Raises:
            InputOutputFault: another process held it for all of that time.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.file(LOCK), flags, 0o600)
        try:
            end = time.monotonic() + timeout_s
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise InputOutputFault("another process holds `%s`" % self.path) from None
                    waiting()
                    time.sleep(_LOCK_ROUND_S)
            yield
        finally:
            os.close(descriptor)

    def segments(self) -> List[Segment]:
        """Return the segments in the order in which they were begun."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                match = _NAME.match(entry.name)
                if match and entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    found.append(Segment(entry.name, int(match.group(1)), size))
        return sorted(found, key=lambda segment: segment.number)

    def strangers(self) -> List[str]:
        """Return the names of what nobody here has made."""
        return sorted(
            name
            for name in os.listdir(self.path)
            if name not in (LOCK, STATE, LOG) and not _NAME.match(name)
        )

    def state(self) -> State:
        """Return the state; a folder whose state was lost counts on from its last segment."""
        state = self._read_state() or State()
        numbers = [segment.number for segment in self.segments()]
        return state._replace(next=max([state.next, *(number + 1 for number in numbers)]))

    @property
    def has_state(self) -> bool:
        """Whether there is a state that can be read."""
        return self._read_state() is not None

    def _read_state(self) -> Optional[State]:
        try:
            with open(self.file(STATE), "rb") as stream:
                found = json.loads(stream.read(4096).decode("ascii"))
            state = State(**found)
        except (OSError, ValueError, TypeError):
            return None
        return state if [type(value) for value in state] == _STATE_TYPES else None

    def keep_state(self, state: State) -> None:
        """Write the state, whole or not at all."""
        write_whole(self.file(STATE), state._asdict())

    def new_name(self, number: int) -> str:
        """Return the name of a segment to be begun."""
        return "%010d-%s.kept" % (number, os.urandom(8).hex())

    def sync(self) -> None:
        """Wait until the names in the folder have reached the disk."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Clock:
    """Time that never goes backwards, so that a clock set back keeps nothing for longer.

    Args:
        latest: The latest time known before, in seconds since 1970.
        wall: What the system believes.
        steady: Counts on, whatever is set.
    """

    def __init__(self, latest: float, wall: Any = time.time, steady: Any = None) -> None:
        self._wall = wall
        # also counts while a device sleeps, which CLOCK_MONOTONIC does not
        self._steady = steady or (lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
        self._floor = latest
        self._since = self._steady()

    def now(self) -> float:
        """Return the later of the system's time and of what must have passed."""
        steady = self._steady()
        self._floor = max(self._wall(), self._floor + steady - self._since)
        self._since = steady
        return self._floor


def write_whole(path: str, document: Mapping[str, Any]) -> None:
    """Write a JSON object in the place of what is there, so that it survives a loss of power."""
    partial = path + PARTIAL
    text: Dict[str, Any] = dict(document)
    with open(partial, "wb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(json.dumps(text, sort_keys=True).encode("ascii"))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
