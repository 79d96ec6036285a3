"""How often and how many at once: token buckets, slots and failed attempts, in bounded memory."""

from __future__ import annotations

import socket
from typing import Dict, NamedTuple, Optional

FAILURES_PER_MINUTE = 10
_WINDOW_S = 60.0
_MAX_PEERS = 1024


class Limits(NamedTuple):
    """What one caller may do.

    Attributes:
        rate: Requests a second in the long run; None: as many as the server can.
        burst: Requests at once after a pause.
        concurrency: Requests being answered at the same time; None: no limit of its own.
    """

    rate: Optional[float] = None
    burst: float = 1.0
    concurrency: Optional[int] = None


UNLIMITED = Limits()


class Usage:
    """What one caller has done lately.

    The limits are handed in with each call, so that a new keys file changes them but does not
    forgive what was used.
    """

    __slots__ = ("_tokens", "_updated", "active")

    def __init__(self) -> None:
        self._tokens: Optional[float] = None  # a full bucket, whatever its size
        self._updated = 0.0
        self.active = 0

    def take(self, limits: Limits, now: float) -> float:
        """Take one token; return 0, or the seconds until there is one."""
        if limits.rate is None:
            return 0.0
        tokens = limits.burst if self._tokens is None else self._tokens
        gained = max(0.0, now - self._updated) * limits.rate
        tokens = min(limits.burst, tokens + gained)
        self._updated = now
        # what a float loses on its way must not cost a request: 0.1 s at 10 a second is a token
        if tokens >= 1.0 - 1e-9:
            self._tokens = max(0.0, tokens - 1.0)
            return 0.0
        self._tokens = tokens
        return (1.0 - tokens) / limits.rate

    def is_full(self, limits: Limits) -> bool:
        """Say whether as many requests are being answered as may be."""
        return limits.concurrency is not None and self.active >= limits.concurrency


class Failures:
    """Counts wrong keys by the address that they come from.

    A right key is never refused for it: guessing 256 random bits is hopeless anyway, and a client
    behind the same address must not suffer. The limit keeps logs and dashboards readable.

    Args:
        per_minute: Failures that are answered as what they are; later ones are told to wait.
        max_peers: Addresses remembered; the one seen first is forgotten for a new one.
    """

    def __init__(
        self, per_minute: int = FAILURES_PER_MINUTE, *, max_peers: int = _MAX_PEERS
    ) -> None:
        self._limits = Limits(rate=per_minute / _WINDOW_S, burst=float(per_minute))
        self._max_peers = max_peers
        self._peers: Dict[str, Usage] = {}

    def add(self, peer: str, now: float) -> float:
        """Count one; return 0, or the seconds to wait where there were too many."""
        network = _network(peer)
        usage = self._peers.pop(network, None)
        if usage is None:
            usage = Usage()
            if len(self._peers) >= self._max_peers:
                del self._peers[next(iter(self._peers))]
        self._peers[network] = usage  # at the end: seen last
        return usage.take(self._limits, now)


def _network(peer: str) -> str:
    """Return the address, or of IPv6 the /64 that one subscriber has all of."""
    if ":" not in peer:
        return peer
    try:
        packed = socket.inet_pton(socket.AF_INET6, peer.partition("%")[0])
    except OSError:
        return peer
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):  # IPv4 on a socket for both
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + b"\0" * 8)
