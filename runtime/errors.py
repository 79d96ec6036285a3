"""Every failure that a device explains to its user, one class and one exit code per kind.

DeviceError
├── UsageFault         2    an argument that cannot be
├── TargetMismatch     3    a bundle that was made for another machine
├── ModelFault         5    a model or engine that does not load, run or answer as recorded
├── IntegrityFault     8    a digest that does not match
├── InputOutputFault  10    disk, permission or port
└── BadRequest         2    a request that is not answered (HTTP status 400, or another)
    ├── Denied              no key, or one that is not good for this (401, 403)
    ├── TooMany             more than this caller may ask (429)
    ├── Busy                more than this server can work on (503)
    └── TooLate             its time was up before work on it began (504)

Exit code 70 is our own bug, as on the build host.
"""

# ruff: noqa: N818 - the names are part of the contract between host and device

from __future__ import annotations

from typing import Optional


class DeviceError(Exception):
    """A failure that is explained instead of shown as a traceback.

    Args:
        message: What was wrong: lower case, no final period, backticks round what the user typed.
        hint: Something the user can run or change.
    """

    exit_code = 70

    def __init__(self, message: str, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageFault(DeviceError):
    """An argument that cannot be."""

    exit_code = 2


class TargetMismatch(DeviceError):
    """A bundle that was made for another machine."""

    exit_code = 3


class ModelFault(DeviceError):
    """A model or engine that does not load, run or answer as recorded."""

    exit_code = 5


class IntegrityFault(DeviceError):
    """A digest that does not match."""

    exit_code = 8


class InputOutputFault(DeviceError):
    """A disk, permission or port that refuses."""

    exit_code = 10


class BadRequest(DeviceError):
    """A request that cannot be answered, with the HTTP status that says so.

    Attributes:
        status: The HTTP status.
        fields: Header lines that go with it, each with its line end.
    """

    exit_code = 2
    fields = b""

    def __init__(self, message: str, status: int = 400, hint: Optional[str] = None) -> None:
        super().__init__(message, hint)
        self.status = status


class Denied(BadRequest):
    """No key, or one that is not good for this."""

    def __init__(self, message: str, status: int = 401, hint: Optional[str] = None) -> None:
        super().__init__(message, status, hint)
        if status == 401:
            self.fields = b"WWW-Authenticate: Bearer\r\n"


class TooMany(BadRequest):
    """More than this caller may ask.

    Args:
        retry_after_s: When it is worth asking again.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, 429)
        self.fields = _retry_after(retry_after_s)


class Busy(BadRequest):
    """More than this server can work on now.

    Args:
        retry_after_s: When it is worth asking again.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, 503)
        self.fields = _retry_after(retry_after_s)


class TooLate(BadRequest):
    """The time of a request was up before work on it began."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 504)


def _retry_after(seconds: float) -> bytes:
    # whole seconds by RFC 9110, and 0 would be an invitation to a storm
    return b"Retry-After: %d\r\n" % max(1, -int(-seconds // 1))
