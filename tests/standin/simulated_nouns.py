"""What the simulated TensorRT is told and hands out: faults, shapes, loggers, configurations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Faults:
    """What goes wrong from now on; each may be set and cleared at any time.

    Attributes:
        wrong_answer: Added to every floating-point or integer output.
        execute: `false` or `raise`: what `execute_async_v3` does instead of its work.
        execute_after: Calls that still succeed before `execute` or `crash` strikes.
        contexts: How many contexts can be made, None for any number; then None comes back.
        runtime: A sentence that the logger gets when a `Runtime` is made.
        deserialize: A sentence that the logger gets, whereupon no engine comes back.
        crash: `deserialize` or `execute`: there the process aborts, as a segmentation fault would.
        capturable: Whether a CUDA graph can be captured.
        profile_sharing: Whether two contexts may use one profile, as from TensorRT 10 on.
        shape: A sentence that `set_input_shape` logs before it refuses.
        execute_s: How long the work of one call takes.
    """

    wrong_answer: float = 0.0
    execute: str = ""
    execute_after: int = 0
    contexts: int | None = None
    runtime: str = ""
    deserialize: str = ""
    crash: str = ""
    capturable: bool = True
    profile_sharing: bool = True
    shape: str = ""
    execute_s: float = 0.0


class Dims:
    """A shape, which compares with nothing but is a sequence, as the real one."""

    def __init__(self, sizes: Sequence[int] = ()) -> None:
        self._sizes = tuple(sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        return self._sizes[index]

    def __repr__(self) -> str:
        return repr(self._sizes)


class ILogger:
    """What a logger derives from."""

    class Severity(IntEnum):
        """The most severe first."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def log(self, severity: Severity, msg: str) -> None:
        raise TypeError("ILogger.log has to be overridden")


class Logger(ILogger):
    """The library's own logger, silent here."""

    def __init__(self, min_severity: ILogger.Severity = ILogger.Severity.WARNING) -> None:
        self.min_severity = min_severity

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        """Drop the line."""


class IOutputAllocator:
    """What an allocator of outputs of unknown size derives from."""


class IRuntimeCache:
    """Kernels compiled on the device."""

    def __init__(self) -> None:
        self.content = b""

    def serialize(self) -> memoryview:
        return memoryview(b"cache:" + self.content)

    def deserialize(self, blob: Any) -> bool:
        data = bytes(blob)
        if not data.startswith(b"cache:"):
            return False
        self.content = data[6:]
        return True


class IRuntimeConfig:
    """How a context of TensorRT-RTX is made."""

    cuda_graph_strategy: Any = 0

    def __init__(self) -> None:
        self.cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self.cache = cache
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self.cache
