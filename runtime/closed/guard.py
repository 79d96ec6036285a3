"""Admits a request by its key: 401 for none or a wrong one, 403 for the wrong one here, 429."""

from __future__ import annotations

import time
from typing import Callable, Dict, Mapping, Optional

from ..errors import Denied, TooMany
from .keys import Entry, Keys
from .rates import Failures, Usage

# one message for unknown, expired and not yet valid: which it was helps only who guesses
_DENIED = "this server needs a valid key"
_HINT = "send `Authorization: Bearer KEY`"


class Caller:
    """Who sent one request, from its head to the end of its answer.

    Attributes:
        name: Of the key, or `anonymous`.
    """

    __slots__ = ("_usage", "name")

    def __init__(self, name: str, usage: Optional[Usage] = None) -> None:
        self.name = name
        self._usage = usage

    def release(self) -> None:
        """Give the slot back: the answer was sent, or nobody waits for it; twice does no harm."""
        usage, self._usage = self._usage, None
        if usage is not None:
            usage.active -= 1


class Guard:
    """Knows the keys and what each caller has used; belongs to one loop.

    Args:
        keys: What the keys file says.
        clock: Monotonic seconds.
        rejected: Called with `key`, `rate` or `concurrency` for each refusal.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        clock: Callable[[], float] = time.monotonic,
        rejected: Callable[[str], None] = lambda reason: None,
        failures: Optional[Failures] = None,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._rejected = rejected
        self._failures = failures or Failures()
        self._usages: Dict[str, Usage] = {}

    def replace(self, keys: Keys) -> None:
        """Go on with what a new keys file says; what callers have used is not forgotten."""
        self._keys = keys
        names = {entry.name for entry in keys.entries} | {"anonymous"}
        # A caller in the middle of a request keeps its usage alive by itself.
        self._usages = {name: usage for name, usage in self._usages.items() if name in names}

    def admit(self, fields: Mapping[str, str], scope: str, peer: str) -> Caller:
        """Return who asks; `release` it once.

        Args:
            fields: Header fields by lower-case name.
            scope: `infer`, `metrics` or `admin`; `any` is content with every valid key, and the
                empty scope with none.
            peer: The address that failures are counted under.

        Raises:
            Denied: no key, no valid one (401), or one that is not good for this (403).
            TooMany: past this caller's rate or concurrency, or too many wrong keys.
        """
        if not scope:
            return _NOBODY
        entry = self._entry(fields, scope, peer)
        limits = entry.limits
        if limits.rate is None and limits.concurrency is None:
            return Caller(entry.name)
        usage = self._usages.get(entry.name)
        if usage is None:
            usage = self._usages[entry.name] = Usage()
        if usage.is_full(limits):
            self._rejected("concurrency")
            raise TooMany(
                "`%s` has %d requests under way, as many as it may" % (entry.name, usage.active)
            )
        wait_s = usage.take(limits, self._clock())
        if wait_s:
            self._rejected("rate")
            raise TooMany(
                "`%s` may ask %.6g times a second" % (entry.name, limits.rate or 0.0),
                retry_after_s=wait_s,
            )
        if limits.concurrency is None:
            return Caller(entry.name)
        usage.active += 1
        return Caller(entry.name, usage)

    def _entry(self, fields: Mapping[str, str], scope: str, peer: str) -> Entry:
        keys = self._keys
        key = presented_key(fields)
        if key is None:
            anonymous = keys.anonymous
            if anonymous is not None and _allows(anonymous, scope):
                return anonymous
            if "authorization" not in fields and "x-api-key" not in fields:
                raise self._denied()  # no attempt, so no failure: a browser's first request
        entry = None if key is None else keys.find(key)
        if entry is None or not entry.is_valid(keys.now()):
            wait_s = self._failures.add(peer, self._clock())
            if wait_s:
                self._rejected("key")
                raise TooMany("too many requests without a valid key", retry_after_s=wait_s)
            raise self._denied()
        if not _allows(entry, scope):
            self._rejected("key")
            raise Denied("this key is not good for this", 403)
        return entry

    def _denied(self) -> Denied:
        self._rejected("key")
        return Denied(_DENIED, 401, _HINT)


def presented_key(fields: Mapping[str, str]) -> Optional[str]:
    """Return the key of a request; None where there is none, or none that can be read.

    A bearer token or `X-API-Key`; never a part of the URL, which ends up in histories and logs.
    """
    authorization = fields.get("authorization")
    if authorization is None:
        return fields.get("x-api-key")
    scheme, _, credentials = authorization.partition(" ")
    return credentials.strip(" ") if scheme.lower() == "bearer" else None


def _allows(entry: Entry, scope: str) -> bool:
    return scope in entry.scopes or scope not in _SCOPED


_SCOPED = frozenset(("infer", "metrics", "admin"))
_NOBODY = Caller("anonymous")
