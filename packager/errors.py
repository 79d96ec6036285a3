"""Every error a user can see, one class and one exit code per kind.

EdgepackError
├── UsageError            2    an option, recipe key or argument that cannot be
├── TargetError           3    an unknown target, or one this artifact does not fit
├── BackendMissing        4    an engine or optional package that is not installed
├── ModelUnsupported      5    a model that cannot be imported, converted or trusted
├── ExternalToolError     6    a program we called failed
├── BudgetMissed          7    no artifact keeps the accuracy or latency budget
├── IntegrityError        8    a digest or signature that does not match
├── DeviceUnreachable     9    a device that does not answer
└── InputOutputError     10    disk, permission or port

Exit code 70 is our own bug, 130 an interruption.
"""

from __future__ import annotations

from typing import ClassVar


class EdgepackError(Exception):
    """A failure that is explained to the user instead of shown as a traceback.

    Args:
        message: What was wrong: lower case, no final period, backticks round what the user typed.
        accepted: What would have been accepted, as a sentence of the same form.
        hint: Something the user can run or change.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self, message: str, *, accepted: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.accepted = accepted
        self.hint = hint


class UsageError(EdgepackError):
    """An option, recipe key or argument that cannot be."""

    exit_code = 2


class TargetError(EdgepackError):
    """An unknown target, or one that this artifact or machine does not fit."""

    exit_code = 3


class BackendMissing(EdgepackError):  # noqa: N818 - says what happened
    """An engine or optional package that is not installed."""

    exit_code = 4


class ModelUnsupported(EdgepackError):  # noqa: N818 - says what happened
    """A model that cannot be imported, converted or trusted."""

    exit_code = 5


class ExternalToolError(EdgepackError):
    """A program that edgepack called failed."""

    exit_code = 6


class BudgetMissed(EdgepackError):  # noqa: N818 - says what happened
    """No artifact keeps the accuracy or latency budget."""

    exit_code = 7


class IntegrityError(EdgepackError):
    """A digest or signature that does not match."""

    exit_code = 8


class DeviceUnreachable(EdgepackError):  # noqa: N818 - says what happened
    """A device that does not answer."""

    exit_code = 9


class InputOutputError(EdgepackError):
    """A disk, permission or port that refuses."""

    exit_code = 10
