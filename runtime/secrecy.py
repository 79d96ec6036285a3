"""Keeps what requests hold out of core files, tracebacks and the interpreter's own complaints."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import Any, List, Optional

_PR_SET_DUMPABLE = 4
_MOST_FRAMES = 50
_MOST_CAUSES = 8


def forbid_core_files() -> None:
    """Let no core file of this process be written, and no other process of this user look into it.

    Without the right to be dumped a kernel writes none, whatever limit or pipe it is told to use;
    the limit is for the processes that this one starts. Source: prctl(2), core(5).
    """
    import ctypes
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def hush_interpreter() -> None:
    """Have the interpreter report what nobody caught without messages and values."""

    def from_thread(arguments: Any) -> None:
        if arguments.exc_type is not SystemExit:
            _complain("in a thread", arguments.exc_value, arguments.exc_type)

    def unraisable(arguments: Any) -> None:
        _complain("where none can be caught", arguments.exc_value, arguments.exc_type)

    def uncaught(kind: Any, value: Any, _: Optional[TracebackType]) -> None:
        _complain("that nobody caught", value, kind)

    threading.excepthook = from_thread
    sys.unraisablehook = unraisable
    sys.excepthook = uncaught


def bare_traceback(error: BaseException) -> str:
    """Return where an exception came from: kinds, files, lines, functions.

    Never its message or its arguments, which could hold what a client sent, nor source lines.
    """
    lines: List[str] = []
    seen: List[BaseException] = []
    following: Optional[BaseException] = error
    while following is not None and following not in seen and len(seen) < _MOST_CAUSES:
        seen.append(following)
        lines.append("%s%s" % ("" if len(seen) == 1 else "after ", _name(type(following))))
        if isinstance(following, OSError) and isinstance(following.errno, int):
            lines[-1] += ": %s" % os.strerror(following.errno)
        lines += _frames(following.__traceback__)
        hidden = following.__suppress_context__
        following = following.__cause__ or (None if hidden else following.__context__)
    return "\n".join(lines) + "\n"


def _frames(trace: Optional[TracebackType]) -> List[str]:
    found = []
    while trace is not None:
        code = trace.tb_frame.f_code
        found.append("  %s:%s in %s" % (code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    return found[-_MOST_FRAMES:]


def _complain(where: str, error: Optional[BaseException], kind: Any) -> None:
    try:
        text = _name(kind) + "\n" if error is None else bare_traceback(error)
        sys.stderr.write("error: an exception %s: %s" % (where, text))
        sys.stderr.flush()
    except Exception:  # noqa: BLE001 - standard error is gone, and with it whom to tell
        return


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", "exception"))
