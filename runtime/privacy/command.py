"""`captures`: lists, exports, deletes and verifies what a server has kept on this device."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime, timezone
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..errors import IntegrityFault, UsageFault
from ..npz import write_npz
from ..tensor import Tensor
from .folder import Folder, state_directory
from .keys import CaptureKey, read_key
from .records import DRIFT, REQUEST, Record
from .retention import (
    Deleted,
    begun_before,
    delete,
    delete_request,
    each_record,
    expired,
    finish,
    verify,
)
from .segments import SegmentReader

ACTIONS = ("list", "export", "drift", "delete", "verify")
LOCK_S = 30.0


def run_captures(values: Mapping[str, Any]) -> Tuple[Dict[str, Any], List[str]]:
    """Run one action and return its result for `--json`, and as lines.

    Args:
        values: `action`, `dir`, `capture_key`, `before`, `request`, `all`, `expired`, `output`,
            `outputs`.

    Raises:
        UsageFault: an action or option that cannot be.
        IntegrityFault: `verify` found a fault, or what was to be deleted is still there.
    """
    action = values["action"]
    if action not in ACTIONS:
        raise UsageFault("`captures` cannot `%s`" % action, "one of " + ", ".join(ACTIONS))
    path = values["capture_key"] or _credential()
    key = read_key(path) if path else None
    folder = Folder(values["dir"] or state_directory(), make=False)
    if action == "delete":
        return _delete(folder, key, values)
    if action == "verify":
        return _verify(folder, key)
    if key is None:
        if action != "list":
            read_key(None)
        return _list_heads(folder)
    if action == "list":
        return _list(folder, key)
    if action == "drift":
        return _drift(folder, key)
    return _export(folder, key, values)


def _credential() -> Optional[str]:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = os.path.join(folder, "capture.key") if folder else None
    return path if path and os.path.isfile(path) else None


def _list_heads(folder: Folder) -> Tuple[Dict[str, Any], List[str]]:
    found: List[Dict[str, Any]] = []
    for segment in folder.segments():
        with SegmentReader(folder.file(segment.name)) as reader:
            begun = reader.head.get("created")
        found.append({"name": segment.name, "bytes": segment.size, "created": begun})
    lines = ["%s  %10d bytes  begun %s" % (one["name"], one["bytes"], _date(one["created"]))
             for one in found]  # fmt: skip
    segments = _number(len(found), "segment")
    lines.append("%s; give `--capture-key` to see the requests in them" % segments)
    return {"segments": found}, lines


def _list(folder: Folder, key: CaptureKey) -> Tuple[Dict[str, Any], List[str]]:
    found: List[Dict[str, Any]] = []
    faults: List[str] = []
    for segment, record in each_record(folder, key, faults.append):
        if record.kind == REQUEST:
            found.append({**record.fields, "segment": segment.name})
    _refuse_unread(found, faults)
    lines = [
        "%s  %s  %s  %s" % (_date(one["time"]), one["id"], one["engine"], one["request"] or "")
        for one in found
    ]
    lines.append(_number(len(found), "request"))
    return {"requests": found, "faults": faults}, lines + faults


def _drift(folder: Folder, key: CaptureKey) -> Tuple[Dict[str, Any], List[str]]:
    faults: List[str] = []
    found = [
        record.fields
        for _, record in each_record(folder, key, faults.append)
        if record.kind == DRIFT
    ]
    lines = []
    for fields in found:
        lines.append(
            "%s to %s, %d requests"
            % (_date(fields["since"]), _date(fields["time"]), fields["requests"])
        )
        lines += [
            "  %-6s %-24s mean %-12.6g std %-12.6g low %-10s high %s"
            % (one["role"], one["name"], one["mean"], one["std"], one["low"], one["high"])
            for one in fields["tensors"]
        ]
    return {"drift": found, "faults": faults}, lines + faults


def _export(
    folder: Folder, key: CaptureKey, values: Mapping[str, Any]
) -> Tuple[Dict[str, Any], List[str]]:
    """Write rows of all requests as the build host's `-c` reads them."""
    if not values["output"]:
        raise UsageFault("`captures export` needs a file to write", "-o FILE.npz")
    faults: List[str] = []
    records = [
        record for _, record in each_record(folder, key, faults.append) if record.kind == REQUEST
    ]
    tensors, left_out = _stack(records, with_outputs=values["outputs"])
    if not tensors:
        _refuse_unread(records, faults)
        if records and not any(record.inputs for record in records) and not values["outputs"]:
            raise UsageFault(
                "all inputs of what is kept in `%s` are masked" % folder.path,
                "--outputs exports the answers",
            )
        raise UsageFault("no request is kept in `%s`" % folder.path)
    # what is decrypted is for nobody else either
    before = os.umask(0o077)
    try:
        write_npz(values["output"], tensors)
    finally:
        os.umask(before)
    rows = next(iter(tensors.values())).shape[0]
    result = {
        "output": values["output"],
        "requests": len(records) - left_out,
        "rows": rows,
        "left_out": left_out,
        "arrays": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "faults": faults,
    }
    counted = (_number(rows, "row"), _number(len(records) - left_out, "request"))
    lines = ["%s of %s in `%s`" % (*counted, values["output"])]
    if left_out:
        lines.append("of other shapes, and left out: " + _number(left_out, "request"))
    return result, lines + faults


def _refuse_unread(found: List[Any], faults: List[str]) -> None:
    """Raise an `IntegrityFault` where nothing could be read, which is not the same as nothing."""
    if faults and not found:
        raise IntegrityFault("; ".join(faults))


def _stack(records: List[Record], *, with_outputs: bool) -> Tuple[Dict[str, Tensor], int]:
    """Return all rows by name, and how many requests have another form than the most common."""
    forms: Dict[Any, List[Mapping[str, Tensor]]] = {}
    for record in records:
        tensors = {**record.inputs, **(record.outputs if with_outputs else {})}
        rows = {tensor.shape[:1] for tensor in tensors.values()}
        if tensors and len(rows) == 1 and () not in rows:
            form = tuple((name, one.dtype, one.shape[1:]) for name, one in tensors.items())
            forms.setdefault(form, []).append(tensors)
    chosen = max(forms.values(), key=len, default=[])
    found = {}
    for name in chosen[0] if chosen else ():
        parts = [tensors[name] for tensors in chosen]
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        data: Any = b"".join([part.data for part in parts]) if parts[0].dtype != "string" else [
            item for part in parts for item in part.data
        ]  # fmt: skip
        found[name] = Tensor(parts[0].dtype, shape, data)
    return found, len(records) - len(chosen)


def _delete(
    folder: Folder, key: Optional[CaptureKey], values: Mapping[str, Any]
) -> Tuple[Dict[str, Any], List[str]]:
    asked = [name for name in ("before", "request", "all", "expired") if values[name]]
    if len(asked) != 1:
        raise UsageFault(
            "`captures delete` needs to know what",
            "one of --before DATE, --request ID, --expired, --all",
        )
    why = asked[0]
    moment = read_date(values["before"]) if why == "before" else 0.0
    if why == "request" and key is None:
        read_key(None)
    with folder.locked(LOCK_S):
        finish(folder)
        if why == "request" and key is not None:
            done = delete_request(folder, values["request"], key)
        else:
            chosen = (
                folder.segments()
                if why == "all"
                else begun_before(folder, moment)
                if why == "before"
                # by each segment's own rule, and time as the folder knows it
                else expired(folder, max(time.time(), folder.state().clock), float("inf"))
            )
            done = delete(folder, chosen, why, key)
        check = verify(folder, key)
    faults = [*done.remains, *check["faults"]]
    if faults:
        raise IntegrityFault("the deletion is not proved: %s" % "; ".join(faults))
    return _say_deleted(done, check, why)


def _say_deleted(
    done: Deleted, check: Mapping[str, Any], why: str
) -> Tuple[Dict[str, Any], List[str]]:
    result = {
        "why": why,
        "segments": list(done.segments),
        "requests": done.records,
        "left": {"segments": check["segments"], "requests": check["records"]},
        "proved": True,
    }
    return result, [_say_what(done, why), _say_rest(done, check, why)]


def _say_what(done: Deleted, why: str) -> str:
    segments = _number(len(done.segments), "segment")
    if not done.segments:
        return "nothing that is kept is meant, so nothing was deleted"
    if why == "request":
        # the others of those segments were written anew
        requests = _number(done.records or 0, "request")
        return "%s deleted, and the key of %s overwritten" % (requests, segments)
    if done.records is None:
        # how many there were cannot be read without the capture key
        return "%s deleted with all requests in %s, each segment's key overwritten" % (
            segments,
            "it" if len(done.segments) == 1 else "them",
        )
    requests = _number(done.records, "request")
    return "%s deleted with %s, each segment's key overwritten" % (segments, requests)


def _say_rest(done: Deleted, check: Mapping[str, Any], why: str) -> str:
    left = _number(check["segments"], "segment")
    if not done.segments and why == "expired":
        return "%s left" % left
    return "nothing of it remains; %s left, and line %d of `deletions.log` is the record" % (
        left,
        check["deletions"],
    )


def _number(number: int, what: str) -> str:
    return "%d %s%s" % (number, what, "" if number == 1 else "s")


def _verify(folder: Folder, key: Optional[CaptureKey]) -> Tuple[Dict[str, Any], List[str]]:
    with folder.locked(LOCK_S):
        result = verify(folder, key)
    if result["faults"]:
        raise IntegrityFault("; ".join(result["faults"]))
    lines = [
        "%s, every number accounted for" % _number(result["segments"], "segment"),
        "%s in an unbroken chain, %d of them signed"
        % (_number(result["deletions"], "deletion"), result["signed"]),
    ]
    if key is None:
        lines.append("give `--capture-key` to check what is in the segments and who signed")
    else:
        lines.append("%s decrypted and authentic" % _number(result["records"], "record"))
    return result, lines


def read_date(text: str) -> float:
    """Read `2026-01-31`, `2026-01-31T12:00:00` (both UTC) or seconds since 1970.

    Raises:
        UsageFault: another form.
    """
    if re.match(r"[0-9]{1,11}\Z", text):
        return float(text)
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"):
        try:
            return (
                datetime.strptime(text.rstrip("Z"), form).replace(tzinfo=timezone.utc).timestamp()
            )
        except ValueError:
            continue
    raise UsageFault("`%s` is no date" % text, "as 2026-01-31 or 2026-01-31T12:00:00, in UTC")


def _date(seconds: Any) -> str:
    try:
        moment = datetime.fromtimestamp(float(seconds), tz=timezone.utc)
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
