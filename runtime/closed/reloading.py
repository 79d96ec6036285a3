"""Reads files again when they change; a bad new file keeps what the old one said."""

from __future__ import annotations

import os
from typing import Callable, Generic, Optional, Sequence, Tuple, TypeVar

from ..errors import DeviceError

_T = TypeVar("_T")
_Stamp = Tuple[Optional[Tuple[int, int, int, int]], ...]


class Reloading(Generic[_T]):
    """What was read from a few files, kept up to date by `look`.

    Args:
        what: What it is, in words, for the log.
        paths: The files; looked at by times, size and inode, so links may be switched too, and
            a file that was refused for its mode is read once its mode is mended.
        load: Reads them all.
        use: Takes what was read anew.
        say: Takes the name of an event and its fields for the log.

    Attributes:
        value: What was read last without a fault.

    Raises:
        DeviceError: what `load` raises, at first; later it is only told.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[str],
        load: Callable[[], _T],
        use: Callable[[_T], object],
        say: Callable[..., None],
    ) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._load = load
        self._use = use
        self._say = say
        self._seen = self._stamp()  # before it is read: what changes meanwhile is read again
        self._next = self._seen
        self.value = load()

    def look(self) -> None:
        """Read again what has changed and then been left alone since the last look.

        Certificate and key are two files: between their changes they do not fit.
        """
        stamp = self._stamp()
        quiet, self._next = stamp == self._next, stamp
        if quiet and stamp != self._seen:
            self._read(stamp)

    def reload(self) -> None:
        """Read again whether anything has changed or not."""
        self._read(self._stamp())

    def _read(self, stamp: _Stamp) -> None:
        self._seen = self._next = stamp  # bad files too are read once
        try:
            value = self._load()
        except DeviceError as error:
            self._say("reload_failed", level="warning", what=self._what, reason=error.message)
            return
        self.value = value
        self._use(value)
        self._say("reload", what=self._what)

    def _stamp(self) -> _Stamp:
        return tuple(_stamp_of(path) for path in self._paths)


def _stamp_of(path: str) -> Optional[Tuple[int, int, int, int]]:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
