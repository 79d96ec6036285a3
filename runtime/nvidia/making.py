"""What the state machine asks of whoever makes engines, and how often it asks."""

# ruff: noqa: N818 - the exceptions are outcomes, not errors

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Protocol, Tuple

from ..engine import Engine
from ..errors import DeviceError
from .switching import Progress


class Policy(NamedTuple):
    """How often is tried what has failed, and after how long.

    Attributes:
        build_pauses_s: After each failed build but the last. The count outlives the process.
        load_pauses_s: After each time an accepted engine fails to load or to run, but the last.
        forgotten_after_s: An engine that served for this long begins with no failures again.
        look_s: Between looks at the soft facts while an engine serves.
        starts: Processes that may end while they load and check an engine, before it is rejected.
    """

    build_pauses_s: Tuple[float, ...] = (60.0, 600.0)
    load_pauses_s: Tuple[float, ...] = (10.0, 60.0, 300.0)
    forgotten_after_s: float = 3600.0
    look_s: float = 60.0
    starts: int = 2


class Carried(NamedTuple):
    """An engine that the bundle itself carries, already verified; and what it was tuned under."""

    path: str
    sha256: str
    soft: Mapping[str, Any]


class Maker(Protocol):
    """Builds and loads engines; every call may raise `DeviceError`, or what a vendor raises."""

    def prepare(self) -> None:
        """Find the vendor's libraries and the GPU; raise where one lacks."""

    def fingerprint(self) -> str:
        """Return what an engine for this device is kept under."""

    def facts(self) -> Dict[str, Any]:
        """Return the hard facts behind the fingerprint."""

    def soft(self) -> Dict[str, Any]:
        """Return the soft facts of this moment."""

    def carried(self) -> Optional[Carried]:
        """Return the bundle's own engine for this fingerprint, if it has one."""

    def why_rebuilt(self) -> List[str]:
        """Return why this device needs another engine than the bundle's, a sentence each."""

    def build(
        self,
        folder: str,
        timing_cache: Optional[str],
        on_progress: Callable[[Progress], None],
        stopped: Callable[[], bool],
    ) -> Optional[str]:
        """Write `engine` into `folder`, and return its SHA-256 where the builder tells it.

        Raises soon after `stopped` becomes true.
        """

    def load(self, path: str) -> Engine:
        """Return a loaded engine of the whole model."""


class Found(NamedTuple):
    """An engine file that fits, and what it was tuned under."""

    path: str
    sha256: str
    soft: Mapping[str, Any]
    carried: bool


class Stopped(Exception):
    """Nobody waits for the outcome any more."""


class Rejected(Exception):
    """The engine is not to be built or used again."""


class Unusable(DeviceError):
    """An engine that does not load or run, though it may yet; or that has become wrong.

    Attributes:
        wrong: Another load of the same file would show the same.
    """

    def __init__(self, message: str, *, wrong: bool = False) -> None:
        super().__init__(message)
        self.wrong = wrong
