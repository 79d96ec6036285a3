"""The log of deletions: each line holds the digest of the one before, so none can be changed.

A line is JSON: `n`, `time` (seconds since 1970), `why` (`expired`, `all`, `before`, `request`),
`segments` (name and SHA-256 of each file that went), `written` (the segments that hold what was to
stay), `records` (how many requests went, null where nobody could count them), `request` (salt and
salted digest of the id that was asked for), `previous` and `digest`; `mac` authenticates it where
the capture key was at hand.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from typing import Any, Dict, List, Mapping, Optional

from ..errors import IntegrityFault
from .folder import LOG, Folder, State

_MAX_BYTES = 256 << 20


def append(
    folder: Folder, state: State, entry: Mapping[str, Any], signing: Optional[bytes]
) -> State:
    """Write a line, wait until it has reached the disk, and return the state that knows it.

    Args:
        folder: Locked by the caller.
        state: Of the folder.
        entry: Without number, digests and `mac`.
        signing: The key of `mac`; None where the capture key is not at hand.
    """
    line = {**entry, "n": state.deletions, "previous": state.head}
    digest = _digest(line)
    line["digest"] = digest
    if signing is not None:
        line["mac"] = _mac(signing, digest)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder.file(LOG), flags, 0o600)
    with open(descriptor, "r+b") as stream:
        # a line that a loss of power left unfinished was never in force
        stream.truncate(stream.seek(stream.read().rfind(b"\n") + 1))
        stream.write(json.dumps(line, sort_keys=True).encode("ascii") + b"\n")
        stream.flush()
        os.fsync(descriptor)
    folder.sync()
    state = state._replace(deletions=state.deletions + 1, head=digest)
    folder.keep_state(state)
    return state


def read_log(folder: Folder) -> List[Dict[str, Any]]:
    """Return the lines; a last one that was never finished is left out.

    Raises:
        IntegrityFault: a line is no JSON object.
    """
    try:
        with open(folder.file(LOG), "rb") as stream:
            data = stream.read(_MAX_BYTES)
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")[:-1]
    found = []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line.decode("ascii"))
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("segments"), list):
            raise IntegrityFault("line %d of `%s` is damaged" % (number + 1, LOG))
        found.append(entry)
    return found


def log_bytes(folder: Folder) -> int:
    """Return the size of the log, by which somebody who knew it sees that it has grown."""
    try:
        return os.stat(folder.file(LOG)).st_size
    except FileNotFoundError:
        return 0


def faults(folder: Folder, state: State, signing: Optional[bytes]) -> List[str]:
    """Return what is wrong with the log, in sentences; empty where it proves itself."""
    previous = ""
    entries = read_log(folder)
    for number, entry in enumerate(entries):
        line = {key: value for key, value in entry.items() if key not in ("digest", "mac")}
        if line.get("n") != number or line.get("previous") != previous:
            return ["line %d of `%s` does not follow the one before" % (number + 1, LOG)]
        if entry.get("digest") != _digest(line):
            return ["line %d of `%s` was changed" % (number + 1, LOG)]
        mac = entry.get("mac")
        if signing is not None and mac is not None:
            wanted = _mac(signing, entry["digest"])
            if not hmac.compare_digest(str(mac).encode(), wanted.encode()):
                return ["line %d of `%s` was not signed with this key" % (number + 1, LOG)]
        previous = entry["digest"]
    # one more is what a loss of power between both files leaves
    known = state.deletions
    if len(entries) < known or (known and entries[known - 1]["digest"] != state.head):
        return ["`%s` has lost lines: %d of %d are there" % (LOG, len(entries), known)]
    return []


def catch_up(folder: Folder, state: State) -> State:
    """Return the state with what the log has beyond it, as a loss of power leaves them."""
    entries = read_log(folder)
    if len(entries) > state.deletions:
        state = state._replace(deletions=len(entries), head=str(entries[-1].get("digest")))
        folder.keep_state(state)
    return state


def request_digest(salt: str, request: str) -> str:
    """Return what stands for a client's request id in the log."""
    return hashlib.sha256(
        salt.encode("ascii") + request.encode("utf-8", "surrogatepass")
    ).hexdigest()


def _digest(line: Mapping[str, Any]) -> str:
    text = json.dumps(line, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _mac(signing: bytes, digest: str) -> str:
    return hmac.new(signing, digest.encode("ascii"), hashlib.sha256).hexdigest()
