"""Makes and revokes API keys: a key is shown once, the file keeps its digest."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ..errors import InputOutputFault, UsageFault
from .dates import DAY_S, format_rfc3339
from .keys import SCOPES, KeysFileError, is_name, load_keys, parse_document

# Tells a scanner for leaked secrets what it has found.
_PREFIX = "epk_"


def run_new_key(values: Dict[str, Any]) -> None:
    """Make or revoke a key as the command line asks; the key goes to standard output, alone.

    Raises:
        UsageFault: a name, scope or file that cannot be.
        InputOutputFault: the file cannot be read or written.
    """
    name, revoked, path = values["name"], values["revoke"], values["file"]
    if (name is None) == (revoked is None):
        raise UsageFault(
            "`new-key` needs a name for the new key, or `--revoke NAME`",
            "python3 X.edgepack new-key camera-7 --file keys.json",
        )
    if path is None:
        raise UsageFault("`new-key` needs the keys file", "--file keys.json")
    if revoked is not None:
        count = revoke(path, revoked)
        _tell("revoked %d of `%s`; a running server forgets them within seconds" % (count, revoked))
        return
    key, until = add(
        path,
        name,
        scopes=[scope for scope in values["scopes"].split(",") if scope],
        days=values["days"],
        rate=values["rate"],
        concurrency=values["concurrency"],
    )
    print(key)
    _tell("`%s` may use it until %s; it is shown only now" % (name, until))


def add(
    path: str,
    name: str,
    *,
    scopes: Sequence[str] = ("infer",),
    days: float = 90.0,
    rate: Optional[float] = None,
    concurrency: Optional[int] = None,
    clock: Callable[[], float] = time.time,
) -> Tuple[str, str]:
    """Add a new key to a keys file, made where it is missing.

    A name that has keys gets a further one, so that its holder can change over.

    Returns:
        The key, and until when it is valid.

    Raises:
        UsageFault: a name or scope that cannot be, or a file that is no keys file.
        InputOutputFault: the file cannot be read or written.
    """
    if not is_name(name) or name == "anonymous":
        raise UsageFault(
            "`%s` cannot be a key's name" % name[:80], "letters, digits and `._@-`, 64 at most"
        )
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise UsageFault(
            "there is no scope `%s`" % ",".join(unknown), "one or more of " + ",".join(SCOPES)
        )
    key = _PREFIX + secrets.token_urlsafe(32)  # 256 bits
    now = clock()
    until = format_rfc3339(now + days * DAY_S)
    entry: Dict[str, Any] = {
        "name": name,
        "sha256": hashlib.sha256(key.encode("ascii")).hexdigest(),
        "scopes": sorted(set(scopes)),
        # a client whose clock is a little behind gets its key at once too
        "not_before": format_rfc3339(now - 60.0),
        "not_after": until,
    }
    if rate is not None:
        entry["rate"] = rate
    if concurrency is not None:
        entry["concurrency"] = concurrency
    with _changing(path, may_be_new=True) as document:
        document["keys"].append(entry)
        document["written"] = format_rfc3339(now)
    return key, until


def revoke(path: str, name: str, *, clock: Callable[[], float] = time.time) -> int:
    """Take all keys of a name out of a keys file and return how many there were.

    Raises:
        UsageFault: there are none, or the file is no keys file.
        InputOutputFault: the file cannot be read or written.
    """
    with _changing(path, may_be_new=False) as document:
        kept = [entry for entry in document["keys"] if entry.get("name") != name]
        count = len(document["keys"]) - len(kept)
        if not count:
            names = sorted({str(entry.get("name")) for entry in document["keys"]})
            raise UsageFault(
                "`%s` has no key of `%s`" % (path, name[:80]), "it has " + ", ".join(names[:20])
            )
        document["keys"] = kept
        document["written"] = format_rfc3339(clock())
    return count


@contextmanager
def _changing(path: str, *, may_be_new: bool) -> Iterator[Dict[str, Any]]:
    """Give the document of a keys file to be changed, then put it in place at once."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputOutputFault("cannot read `%s`: %s" % (folder, error.strerror)) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # two at once must not lose each other's key
        target = os.path.realpath(path)
        document, status = _read(target, path, may_be_new)
        yield document
        _write(target, document, status)
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(
    target: str, path: str, may_be_new: bool
) -> Tuple[Dict[str, Any], Optional[os.stat_result]]:
    if may_be_new and not os.path.exists(target):
        entries: List[Any] = []
        return {"keys": entries}, None
    load_keys(target)  # what the server refuses must not be built upon
    try:
        with open(target, "rb") as stream:
            return parse_document(stream.read()), os.fstat(stream.fileno())
    except OSError as error:
        raise InputOutputFault("cannot read `%s`: %s" % (path, error.strerror)) from error
    except KeysFileError as error:
        raise UsageFault("the keys file `%s` is wrong: %s" % (path, error)) from error


def _write(path: str, document: Dict[str, Any], status: Optional[os.stat_result]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".keys-", dir=os.path.dirname(path))
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            if status is not None:
                # a service that runs as another user reads it afterwards as it did before
                if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
                    os.fchown(stream.fileno(), status.st_uid, status.st_gid)
                os.fchmod(stream.fileno(), status.st_mode & 0o660)
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise InputOutputFault("cannot write `%s`: %s" % (path, error.strerror)) from error


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
