"""The keys file: who may ask, for what, until when and how much. It holds digests, not keys.

A document `{"keys": [entry, …], "anonymous": …, "written": "…"}`; `docs/guide/security.md` tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from hmac import compare_digest
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple

from ..errors import InputOutputFault, UsageFault
from .dates import parse_rfc3339
from .rates import UNLIMITED, Limits

SCOPES = ("infer", "metrics", "admin")
MAX_FILE_BYTES = 1 << 20
MAX_KEY_CHARACTERS = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ENTRY_FIELDS = frozenset(
    ("name", "sha256", "scopes", "not_before", "not_after", "rate", "burst", "concurrency")
)
_ANONYMOUS_FIELDS = frozenset(("scopes", "rate", "burst", "concurrency"))
_FILE_FIELDS = frozenset(("keys", "anonymous", "written"))
_NEW = "python3 X.edgepack new-key NAME --file KEYS.json"


class KeysFileError(ValueError):
    """What keeps a document from being a keys file."""


class Entry(NamedTuple):
    """One key.

    Attributes:
        name: Who holds it; several entries may have the same, while one key replaces another.
        digest: SHA-256 of the key.
        not_before: Seconds since 1970.
        not_after: Seconds since 1970.
    """

    name: str
    digest: bytes
    scopes: FrozenSet[str]
    not_before: float
    not_after: float
    limits: Limits

    def is_valid(self, now: float) -> bool:
        """Say whether the key may be used at this time."""
        return self.not_before <= now < self.not_after


class Keys:
    """A keys file that was read.

    Args:
        entries: All keys, those out of their time too.
        anonymous: What callers without a key may do; None for nothing.
        floor: The earliest time that it can be, in seconds since 1970: a device without a battery
            wakes up in 1970, when no key had expired yet.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        entries: Tuple[Entry, ...],
        anonymous: Optional[Entry] = None,
        *,
        floor: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.entries = entries
        self.anonymous = anonymous
        self._floor = floor
        self._clock = clock
        self._found: Dict[bytes, Entry] = {}

    def now(self) -> float:
        """Return the time by which keys expire."""
        return max(self._clock(), self._floor)

    def find(self, key: str) -> Optional[Entry]:
        """Return the entry of a key, whether it is valid now or not.

        An unknown key is compared with every digest, in the same time wherever they differ.
        """
        if not 0 < len(key) <= MAX_KEY_CHARACTERS:
            return None
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        # Known by its digest from a key that was right before: there is nothing left to learn.
        found = self._found.get(digest)
        if found is None:
            for entry in self.entries:
                if compare_digest(entry.digest, digest):
                    found = entry
            if found is not None:
                self._found[digest] = found
        return found


def load_keys(path: str, *, clock: Callable[[], float] = time.time) -> Keys:
    """Return the keys of a file.

    Raises:
        InputOutputFault: it cannot be read.
        UsageFault: everyone may write it, or it is not a keys file.
    """
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        hint = _NEW if isinstance(error, FileNotFoundError) else None
        raise InputOutputFault("cannot read `%s`: %s" % (path, error.strerror), hint) from error
    if status.st_mode & stat.S_IWOTH:
        raise UsageFault("anyone may write the keys file `%s`" % path, "chmod 600 %s" % path)
    if len(content) > MAX_FILE_BYTES:
        raise UsageFault("the keys file `%s` has more than %d bytes" % (path, MAX_FILE_BYTES))
    try:
        document = parse_document(content)
        entries = [_entry(wire) for wire in document["keys"]]
        anonymous = None
        if document.get("anonymous") is not None:
            anonymous = _anonymous(document["anonymous"])
        written = _time(document, "written", 0.0)
    except KeysFileError as error:
        raise UsageFault("the keys file `%s` is wrong: %s" % (path, error)) from error
    digests = {entry.digest for entry in entries}
    if len(digests) < len(entries):
        raise UsageFault("the keys file `%s` has the same digest twice" % path)
    floor = max(written, status.st_mtime)
    return Keys(tuple(entries), anonymous, floor=floor, clock=clock)


def parse_document(content: bytes) -> Dict[str, Any]:
    """Return the document of a keys file, its entries unread.

    Raises:
        KeysFileError: not one; the message says why, without its content.
    """
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_pairs)
    except KeysFileError:
        raise
    except (ValueError, RecursionError):
        raise KeysFileError("it is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise KeysFileError('it has no list `"keys"`')
    _only(document, _FILE_FIELDS, "the file")
    return document


def _pairs(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeysFileError("a field comes twice in one object")
    return found


def _entry(wire: Any) -> Entry:
    if not isinstance(wire, dict) or not isinstance(wire.get("name"), str):
        raise KeysFileError("an entry has no `name`")
    name = wire["name"]
    if not is_name(name) or name == "anonymous":
        raise KeysFileError("`%s` is no name of letters, digits and `._@-`" % name[:80])
    _only(wire, _ENTRY_FIELDS, "`%s`" % name)
    digest = wire.get("sha256")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise KeysFileError("`sha256` of `%s` is not 64 hexadecimal digits in lower case" % name)
    return Entry(
        name=name,
        digest=bytes.fromhex(digest),
        scopes=_scopes(wire, name),
        not_before=_time(wire, "not_before", 0.0),
        not_after=_time(wire, "not_after", float("inf")),
        limits=_limits(wire, name),
    )


def _anonymous(wire: Any) -> Entry:
    if not isinstance(wire, dict):
        raise KeysFileError("`anonymous` is not an object")
    _only(wire, _ANONYMOUS_FIELDS, "`anonymous`")
    return Entry(
        "anonymous", b"", _scopes(wire, "anonymous"), 0.0, float("inf"), _limits(wire, "anonymous")
    )


def is_name(name: str) -> bool:
    """Say whether a key can be called so: it is seen in logs."""
    return _NAME.fullmatch(name) is not None


def _only(wire: Mapping[str, Any], known: FrozenSet[str], where: str) -> None:
    # a misspelt `not_after` would be a key that never expires
    unknown = sorted(set(wire) - known)
    if unknown:
        raise KeysFileError("%s has no field `%s`" % (where, unknown[0][:80]))


def _scopes(wire: Mapping[str, Any], name: str) -> FrozenSet[str]:
    scopes = wire.get("scopes")
    if not isinstance(scopes, list) or not scopes:
        raise KeysFileError("`scopes` of `%s` is not a list of %s" % (name, ", ".join(SCOPES)))
    for scope in scopes:
        if scope not in SCOPES:
            raise KeysFileError("`scopes` of `%s` may be %s" % (name, ", ".join(SCOPES)))
    return frozenset(scopes)


def _time(wire: Mapping[str, Any], field: str, default: float) -> float:
    text = wire.get(field)
    if text is None:
        return default
    try:
        return parse_rfc3339(text)
    except (TypeError, ValueError):
        raise KeysFileError("`%s` is no date like 2027-01-31T00:00:00Z" % field) from None


def _limits(wire: Mapping[str, Any], name: str) -> Limits:
    rate = _number(wire, "rate", name, (int, float))
    burst = _number(wire, "burst", name, (int, float))
    concurrency = _number(wire, "concurrency", name, (int,))
    if rate is None and concurrency is None and burst is None:
        return UNLIMITED
    if burst is not None and (rate is None or burst < 1):
        raise KeysFileError("`burst` of `%s` needs a `rate` and is at least 1" % name)
    if burst is None:
        burst = max(1.0, rate or 1.0)
    return Limits(rate, burst, None if concurrency is None else int(concurrency))


def _number(
    wire: Mapping[str, Any], field: str, name: str, kinds: Tuple[type, ...]
) -> Optional[float]:
    value = wire.get(field)
    if value is None:
        return None
    number: Any = value
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < number <= 1e9:
        raise KeysFileError("`%s` of `%s` is not a number above 0" % (field, name))
    return float(number)


def describe_expiry(keys: Keys, within_s: float) -> List[str]:
    """Return a sentence for each key that ends soon or has ended."""
    now = keys.now()
    newest: Dict[str, float] = {}
    for entry in keys.entries:
        newest[entry.name] = max(entry.not_after, newest.get(entry.name, 0.0))
    lines = []
    for name in sorted(newest):
        days = (newest[name] - now) / 86400.0
        if days <= 0:
            lines.append("the key `%s` has expired" % name)
        elif newest[name] - now <= within_s:
            lines.append("the key `%s` expires in %d days" % (name, days))
    return lines
