"""Every failure that a device explains to its user, one class and one exit code per kind.

DeviceError
├── UsageFault         2    an argument that cannot be
├── TargetMismatch     3    a bundle that was made for another machine
├── ModelFault         5    a model or engine that does not load, run or answer as recorded
├── IntegrityFault     8    a digest that does not match
├── InputOutputFault  10    disk, permission or port
└── BadRequest         2    a request that the model's signature does not allow (HTTP status 400)

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
    """A request that cannot be answered, with the HTTP status that says so."""

    exit_code = 2

    def __init__(self, message: str, status: int = 400, hint: Optional[str] = None) -> None:
        super().__init__(message, hint)
        self.status = status
