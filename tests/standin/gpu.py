"""A machine with a stand-in GPU: the library, what it holds, and engines on it."""

from __future__ import annotations

import gc
from array import array
from typing import TYPE_CHECKING, Any

from runtime.nvidia.adapter import TensorRTEngine
from runtime.nvidia.cudart import Cudart
from runtime.tensor import Tensor
from tests.standin.simulated_tensorrt import load_simulated, make_plan, simulated_vendor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ROWS = ([1, 3], [4, 3], [32, 3])
DOUBLED = {"y": {"dtype": "float32", "of": "x", "scale": 2.0, "offset": 1.0}}


class StandinGpu:
    """A GPU of its own: another library file holds other state.

    Args:
        library: A copy of the stand-in that nothing else has loaded.
        version: TensorRT's.
        rtx: Whether it is TensorRT-RTX.
    """

    def __init__(self, library: Path, *, version: str = "10.3.0.30", rtx: bool = False) -> None:
        self.path = library
        self.trt: Any = load_simulated(library, version=version, rtx=rtx)
        self.cudart = Cudart(str(library))

    @property
    def live(self) -> int:
        """Allocations, streams and graphs that nobody freed."""
        gc.collect()
        return int(self.trt.library.standin_live())

    def fail(self, name: str, code: int, *, skip: int = 0, times: int = 1) -> None:
        """Let a function of CUDA's fail after `skip` calls, `times` times; -1 for ever."""
        self.trt.library.standin_fail(name.encode(), code, skip, times)

    def heal(self) -> None:
        """Let everything succeed again."""
        self.trt.library.standin_heal()

    def configure(
        self,
        *,
        devices: int = 1,
        driver: int = 12060,
        runtime: int = 12060,
        memory_mib: int = 4096,
        integrated: bool = False,
        can_map: bool = True,
    ) -> None:
        """Make it another machine."""
        self.trt.library.standin_configure(
            devices, driver, runtime, memory_mib, integrated, can_map
        )

    def plan(self, **changes: Any) -> bytes:
        """Return an engine: x float32 [1..32, 3] → y = 2x + 1, unless told otherwise."""
        fields: dict[str, Any] = {
            "inputs": {"x": ("float32", [-1, 3])},
            "outputs": DOUBLED,
            "profiles": [{"x": ROWS}],
            "version": self.trt.__version__,
        }
        return make_plan(**{**fields, **changes})

    def open(self, plan: bytes | None = None, **changes: Any) -> TensorRTEngine:
        """Return an engine behind the adapter."""
        fields: dict[str, Any] = {"signature": None, "profiles": (), "memory": "own"}
        fields.update(precision="fp32", **changes)
        return TensorRTEngine(
            simulated_vendor(self.trt),
            self.cudart,
            self.plan() if plan is None else plan,
            **fields,
        )


def wire_profiles(
    *profiles: Mapping[str, Sequence[Sequence[int]]],
) -> list[dict[str, dict[str, list[int]]]]:
    """Return profiles as a manifest holds them."""
    return [
        {
            name: {"min": list(low), "opt": list(opt), "max": list(high)}
            for name, (low, opt, high) in profile.items()
        }
        for profile in profiles
    ]


def rows(count: int, start: float = 0.0) -> Tensor:
    """Return float32 [count, 3], counted up from `start`."""
    values = array("f", [start + index for index in range(3 * count)])
    return Tensor("float32", (count, 3), values.tobytes())


def floats(tensor: Tensor) -> list[float]:
    """Return a float32 tensor's elements."""
    return array("f", bytes(tensor.data)).tolist()


def doubled(tensor: Tensor) -> list[float]:
    """Return what the usual engine makes of its input."""
    return [2 * value + 1 for value in floats(tensor)]
