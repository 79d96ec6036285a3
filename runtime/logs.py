"""Writes what a server does to standard error, as text or JSON lines, without ever waiting for it.

No line holds anything of a request but its route, figures, and the ids that it brought to be found
by again: no path, query, header value or payload.
"""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

# What a pipe takes in one piece or not at all (POSIX's PIPE_BUF on Linux), so that no line is cut.
MAX_LINE_BYTES = 4096
MAX_VALUE_CHARACTERS = 256
# Of one event, in so many seconds; what comes on top is counted and told with the next line.
BURST = 20
BURST_S = 10.0
PRIORITIES = {"error": "<3>", "warning": "<4>", "info": "<6>"}  # sd-daemon(3)
SENTENCES: Mapping[str, str] = {
    "ready": "ready on %(url)s",
    "engine": "engine: %(engine)s",
    "start": "serving %(model)s %(version)s",
    "drain": "stopping: answering what was begun",
    "stopped": "stopped",
    "reload": "reloaded %(what)s",
    "reload_failed": "kept the old %(what)s: %(reason)s",
    "expiry": "%(message)s",
    "switched": "switched to %(to)s",
    "succeeded": "another release answers now, as process %(pid)d",
    "not_succeeded": "this release goes on, as the other one does not start: %(reason)s",
    "release_restored": "`%(folder)s` was deleted while it is served: it is there again",
    "release_lost": "`%(folder)s` was deleted while it is served, and stays lost: %(reason)s",
    "stream_failed": "an event stream ended with status %(status)d; events sent: %(events)d",
    "internal_error": "error: %(kind)s in %(where)s",
    "capture": "capture: %(state)s",
    "accelerator": "%(message)s",
    "too_many_connections": "turned a connection away: there are too many",
    "lines_lost": "%(lines)d lines of this log were lost: nobody read them in time",
}


class Log:
    """Standard error as a server uses it; lines may come from any thread.

    Args:
        descriptor: Returns where lines go; None for standard error as it is then.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        descriptor: Optional[Callable[[], Optional[int]]] = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._descriptor = descriptor or _standard_error
        self._clock = clock
        self._encode: Optional[Callable[[Any], str]] = None  # None: lines are text
        self._prefixed = False
        self.has_access = False
        self._lost = 0
        self._second = -1
        self._stamp = ""
        self._bursts: Dict[str, List[float]] = {}

    def configure(self, *, form: str = "text", access: bool = False) -> None:
        """Choose `text` or `json`, and whether `access` is called."""
        self._encode = None
        if form == "json":
            from json import JSONEncoder

            self._encode = JSONEncoder(separators=(",", ":")).encode
        self.has_access = access
        self._prefixed = _is_journal(self._descriptor())

    def event(self, name: str, level: str = "info", **fields: Any) -> None:
        """Write one line, unless there were too many of this name just now.

        Args:
            name: What happened, a name out of our code.
            level: `info`, `warning` or `error`.
            fields: Strings and numbers; those without a value are left out.
        """
        now = self._clock()
        burst = self._bursts.setdefault(name, [now, 0.0, 0.0])
        if now - burst[0] >= BURST_S or now < burst[0]:
            burst[0], burst[1] = now, 0.0
        if burst[1] >= BURST:
            burst[2] += 1
            return
        burst[1] += 1
        if burst[2]:
            fields["suppressed"] = int(burst[2])
            burst[2] = 0.0
        self._put(name, level, fields, now)

    def failure(self, error: BaseException) -> None:
        """Tell where a bug or a failure was, without its message, which may quote a request."""
        import traceback

        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join("%s:%s" % (frame.name, frame.lineno) for frame in reversed(frames))
        self.event("internal_error", "error", kind=type(error).__name__, where=where)

    def access(self, **fields: Any) -> None:
        """Write one request's line: its route, status and figures, never limited in number."""
        self._put("request", "info", fields, self._clock())

    def _put(self, name: str, level: str, fields: Mapping[str, Any], now: float) -> None:
        if self._lost and self._write("lines_lost", "warning", {"lines": self._lost}, now):
            self._lost = 0
        if not self._write(name, level, fields, now):
            self._lost += 1

    def _write(self, name: str, level: str, fields: Mapping[str, Any], now: float) -> bool:
        """Return whether the line went out whole."""
        form = self._as_text if self._encode is None else self._as_json
        prefix = PRIORITIES[level] if self._prefixed else ""
        line = (prefix + form(name, level, fields, now)).encode("utf-8", "replace")
        if len(line) >= MAX_LINE_BYTES:
            line = (prefix + form(name, level, {"cut": True}, now)).encode("utf-8", "replace")
        return _send(self._descriptor(), line + b"\n")

    def _as_text(self, name: str, level: str, fields: Mapping[str, Any], now: float) -> str:
        if name == "request":
            words = [self._time(now)]
            left = fields
        else:
            sentence, left = _sentence(name, fields)
            words = [sentence if level != "warning" else "warning: " + sentence]
        for key, value in left.items():
            if value is not None and value != "":
                text = _plain(value)
                words.append("%s=%s" % (key, '"%s"' % text if " " in text else text))
        return " ".join(words)

    def _as_json(self, name: str, level: str, fields: Mapping[str, Any], now: float) -> str:
        document = {"time": self._time(now), "level": level, "event": name}
        for key, value in fields.items():
            if value is not None and value != "":
                document[key] = value[:MAX_VALUE_CHARACTERS] if isinstance(value, str) else value
        assert self._encode is not None  # noqa: S101 - for the type checker: the caller looked
        return self._encode(document)

    def _time(self, now: float) -> str:
        """Return UTC as RFC 3339 has it, to the millisecond."""
        second, milliseconds = divmod(int(now * 1000), 1000)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return "%s.%03dZ" % (self._stamp, milliseconds)


def _sentence(name: str, fields: Mapping[str, Any]) -> Tuple[str, Mapping[str, Any]]:
    """Return an event's sentence, and the fields that it does not say."""
    form = SENTENCES.get(name)
    if form is None:
        return name.replace("_", " "), fields
    try:
        plain = {
            key: _plain(value) if isinstance(value, str) else value for key, value in fields.items()
        }
        text = form % plain
    except (KeyError, TypeError):
        return name.replace("_", " "), fields
    return text, {key: fields[key] for key in fields if "%%(%s)" % key not in form}


def _plain(value: Any) -> str:
    """Return a value as one line that no terminal takes for a command."""
    text = "%.3f" % value if isinstance(value, float) else str(value)[:MAX_VALUE_CHARACTERS]
    return (
        text
        if text.isprintable()
        else "".join(character if character.isprintable() else "?" for character in text)
    )


def _standard_error() -> Optional[int]:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None  # closed before we began: its number may by now be a client's socket


def _is_journal(descriptor: Optional[int]) -> bool:
    """Say whether lines go to systemd's journal, which reads priorities in front of them."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if descriptor is None or not inode:
        return False
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def _send(descriptor: Optional[int], line: bytes) -> bool:
    """Write a line if its reader takes it at once."""
    if descriptor is None:
        return True  # nobody wants to know
    try:
        ready = select.poll()
        ready.register(descriptor, select.POLLOUT)
        if not any(events & select.POLLOUT for _, events in ready.poll(0)):
            return False
        return os.write(descriptor, line) == len(line)
    except (OSError, ValueError):
        return False


# As there is one standard error of a process.
log = Log()
