"""Runs a command under a unit's own seccomp rules, as systemd would install them.

`python sandbox.py UNIT PROGRAM …`: the allowed calls come from `systemd-analyze syscall-filter`,
the filters from libseccomp. A listening socket that the caller leaves as descriptor 3 is handed on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

_ALLOW = 0x7FFF0000
_NOT_EQUAL, _MASKED_EQUAL = 1, 7
_WRITE, _EXECUTE = 2, 4
_SHM_EXECUTE = 0o100000
_AF_UNIX = 1


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def _refuse(number: int) -> int:
    return 0x00050000 | number


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def members(group: str) -> set[str]:
    """Return the calls of a group of systemd's, those of its groups too."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    found = set()
    for line in done.stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= members(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


def allowed(lines: list[str]) -> set[str]:
    calls: set[str] = set()
    for line in lines:
        for group in line.lstrip("~").split():
            calls = calls - members(group) if line.startswith("~") else calls | members(group)
    # what systemd always allows besides, so that anything can start at all
    return calls | members("@default") | {"execve"}


def main(unit: Path, argv: list[str]) -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    found = settings(unit)

    def load(default: int, rules: list[tuple[int, str, tuple[_Comparison, ...]]]) -> None:
        context = ctypes.c_void_p(library.seccomp_init(default))
        for action, call, conditions in rules:
            number = library.seccomp_syscall_resolve_name(call.encode())
            if number >= 0:
                array = (_Comparison * len(conditions))(*conditions)
                done = library.seccomp_rule_add_array(
                    context, action, number, len(conditions), array
                )
                assert done == 0, (call, done)
        assert library.seccomp_load(context) == 0

    names = allowed(found["SystemCallFilter"])
    assert found["LimitCORE"] == ["0"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if found["RestrictAddressFamilies"] == ["AF_UNIX"]:
        other = _Comparison(0, _NOT_EQUAL, _AF_UNIX, 0)
        load(_ALLOW, [(_refuse(errno.EAFNOSUPPORT), "socket", (other,))])
    if found["MemoryDenyWriteExecute"] == ["yes"]:
        both = _WRITE | _EXECUTE
        no = _refuse(errno.EPERM)
        load(_ALLOW, [
            (no, "mmap", (_Comparison(2, _MASKED_EQUAL, both, both),)),
            (no, "mprotect", (_Comparison(2, _MASKED_EQUAL, _EXECUTE, _EXECUTE),)),
            (no, "pkey_mprotect", (_Comparison(2, _MASKED_EQUAL, _EXECUTE, _EXECUTE),)),
            (no, "shmat", (_Comparison(2, _MASKED_EQUAL, _SHM_EXECUTE, _SHM_EXECUTE),)),
        ])  # fmt: skip
    load(_refuse(errno.EPERM), [(_ALLOW, name, ()) for name in sorted(names)])
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
