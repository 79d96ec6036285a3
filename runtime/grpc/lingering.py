"""Streams that are answered while their requests still come: the rest is dropped, within bounds.

A server may answer early and ask with `RST_STREAM` for no more (RFC 9113, section 8.1), but clients
such as curl then forget the answer with the stream. So the request goes on for a while unheard.
"""

from __future__ import annotations

from typing import Dict, List, Optional

LINGER_S = 2.0
# What is dropped of one request; half a second of a fast network.
MAX_LINGER_BYTES = 8 << 20
# At the same time on one connection: the first of more is reset at once.
MAX_LINGERING = 16


class _Rest:
    """What still comes of one request: until when, and within which window."""

    __slots__ = ("allowance", "receivable", "until")

    def __init__(self, receivable: int, until: float) -> None:
        self.receivable = receivable
        self.allowance = MAX_LINGER_BYTES
        self.until = until


class Lingering:
    """The answered streams of one connection whose clients still send."""

    __slots__ = ("_rests",)

    def __init__(self) -> None:
        self._rests: Dict[int, _Rest] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._rests)

    def add(self, identifier: int, receivable: int, now: float) -> Optional[int]:
        """Take a stream that was answered; return another one that has to be reset for it.

        Args:
            identifier: The stream.
            receivable: Bytes that its client may send.
            now: In seconds.
        """
        self._rests[identifier] = _Rest(receivable, now + LINGER_S)
        if len(self._rests) <= MAX_LINGERING:
            return None
        oldest = next(iter(self._rests))
        del self._rests[oldest]
        return oldest

    def drop(self, identifier: int, size: int, *, ends: bool) -> Optional[int]:
        """Drop what came on a stream.

        Returns:
            Bytes by which its window is to be opened; None if it is not here, -1 if it is not any
            more as too much came.
        """
        rest = self._rests.get(identifier)
        if rest is None:
            return None
        rest.receivable -= size
        rest.allowance -= size
        if ends:
            del self._rests[identifier]
        elif rest.receivable < 0 or rest.allowance <= 0:
            del self._rests[identifier]
            return -1
        elif rest.receivable < min(rest.allowance, MAX_LINGER_BYTES // 16):
            missing = rest.allowance - rest.receivable
            rest.receivable = rest.allowance
            return missing
        return 0

    def forget(self, identifier: int) -> None:
        """The client has given the stream up."""
        self._rests.pop(identifier, None)

    def overdue(self, now: float) -> List[int]:
        """Return the streams whose time is over, which are then forgotten."""
        found = []
        for identifier, rest in self._rests.items():
            if rest.until > now:
                break
            found.append(identifier)
        for identifier in found:
            del self._rests[identifier]
        return found
