"""A maker of engines whose every step a test decides: slow, failing, wrong, slower, crashing."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from runtime.errors import DeviceError, ModelFault
from runtime.nvidia import fingerprint
from runtime.nvidia.lifecycle import Lifecycle
from runtime.nvidia.making import Carried, Policy
from runtime.nvidia.store import EngineStore
from runtime.nvidia.switching import Progress, SwitchingEngine
from runtime.tensor import Tensor
from tests.unit.runtime.live_server import BATCH, OpenRelease, make_release, tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

QUICK = Policy(build_pauses_s=(0.0, 0.0), load_pauses_s=(0.0, 0.0, 0.0))
FACTS = {
    "module": "tensorrt", "version": "10.3.0.30", "capabilities": ["8.7"],
    "platform": "linux-aarch64", "artifact": "a" * 64,
    "profiles": [{"x": {"min": [1, 2], "opt": [1, 2], "max": [32, 2]}}], "precision": "fp16",
    "typed": True, "flags": [], "sparse": False, "dla_core": None, "gpu_fallback": True,
    "workspace_mib": 1024, "version_compatible": False,
}  # fmt: skip
SOFT = {"gpu": "Orin", "driver": "540.4.0", "cuda": "12.6.68", "power_mode": "15W"}


class CudaFault(DeviceError):  # noqa: N818 - as the adapter calls it
    """Simulates what the adapter raises."""


@dataclass
class SimulatedEngine:
    """Doubles, unless it is told otherwise.

    Attributes:
        fault: Raised by the next calls, once each.
        takes: Called on every run, for a clock of the test's to go on.
        held: Where it is set, calls wait for it.
        calls: Calls that came.
        inside: Calls that have not returned.
        closed: Whether it was closed; a call after that fails the test.
    """

    offset: float = 0.0
    fault: list[Exception] = field(default_factory=list)
    takes: Callable[[], object] = lambda: None
    held: threading.Event | None = None
    calls: int = 0
    inside: int = 0
    closed: bool = False
    misuse: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    name: str = "tensorrt"
    version: str = "10.3.0.30"
    provider: str = "TensorRT"
    precision: str = "fp16"
    threads: int = 1

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        with self.lock:
            self.calls += 1
            self.inside += 1
            if self.closed:
                self.misuse.append("run after close")
            fault = self.fault.pop() if self.fault else None
        try:
            if self.held is not None:
                assert self.held.wait(60)
            self.takes()
            if fault is not None:
                raise fault
            values = [value * 2 + self.offset for value in feeds["x"].to_flat()]
            return {"y": Tensor.from_flat(values, feeds["x"].shape, "float32")}
        finally:
            with self.lock:
                self.inside -= 1

    def close(self) -> None:
        with self.lock:
            if self.inside or self.closed:
                self.misuse.append(f"closed with {self.inside} calls inside, closed={self.closed}")
            self.closed = True


@dataclass
class SimulatedMaker:
    """Builds files that say what the engine does, and loads them.

    Attributes:
        hard: The hard facts here.
        soft_here: The soft facts here.
        missing: Raised by `prepare`.
        build_faults: Raised by the next builds, in order.
        load_faults: Raised by the next loads, in order.
        offset: Added to the answers of engines built from now on.
        gate: Builds wait for it where it is set; while they wait they look at `stopped`.
        begun: Set once a build is under way.
        in_bundle: What `carried` gives.
        rebuilt: What `why_rebuilt` gives.
        make: Makes the engine of a file.
    """

    hard: dict[str, Any] = field(default_factory=lambda: dict(FACTS))
    soft_here: dict[str, Any] = field(default_factory=lambda: dict(SOFT))
    missing: Exception | None = None
    build_faults: list[Exception] = field(default_factory=list)
    load_faults: list[Exception] = field(default_factory=list)
    offset: float = 0.0
    gate: threading.Event | None = None
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    in_bundle: Carried | None = None
    rebuilt: tuple[str, ...] = ()
    builds: int = 0
    loads: int = 0
    engines: list[SimulatedEngine] = field(default_factory=list)
    timing_caches: list[str | None] = field(default_factory=list)
    make: Callable[..., SimulatedEngine] = SimulatedEngine

    def prepare(self) -> None:
        if self.missing is not None:
            raise self.missing

    def fingerprint(self) -> str:
        return fingerprint.digest(self.hard)

    def facts(self) -> dict[str, Any]:
        return self.hard

    def soft(self) -> dict[str, Any]:
        return dict(self.soft_here)

    def carried(self) -> Carried | None:
        return self.in_bundle

    def why_rebuilt(self) -> list[str]:
        return list(self.rebuilt)

    def build(
        self,
        folder: str,
        timing_cache: str | None,
        on_progress: Callable[[Progress], None],
        stopped: Callable[[], bool],
    ) -> str | None:
        self.builds += 1
        self.timing_caches.append(timing_cache)
        on_progress(Progress(0.25, 30.0, "Timing tactics"))
        self.begun.set()
        try:
            while self.gate is not None and not self.gate.wait(0.01):
                if stopped():
                    raise DeviceError("the build was ended")
        finally:
            self.ended.set()
        if self.build_faults:
            raise self.build_faults.pop(0)
        data = json.dumps({"offset": self.offset, "number": self.builds}).encode()
        (Path(folder) / "engine").write_bytes(data)
        (Path(folder) / "timing.cache").write_bytes(b"timings")
        return hashlib.sha256(data).hexdigest()

    def load(self, path: str) -> SimulatedEngine:
        self.loads += 1
        if self.load_faults:
            raise self.load_faults.pop(0)
        fields = json.loads(Path(path).read_bytes())
        self.engines.append(self.make(offset=fields["offset"]))
        return self.engines[-1]


def double_model(path: Path) -> Path:
    """Write an ONNX model that doubles x [n, 2]."""
    shape = ["n", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def double_release(folder: Path, library: Path) -> OpenRelease:
    """Return a release of a model that doubles, with two golden samples."""
    release = make_release(
        folder,
        double_model(folder / "double.onnx"),
        library,
        [tensor("x", "float32", BATCH, 2)],
        [tensor("y", "float32", BATCH, 2)],
        name="double",
    )
    (folder / "golden").mkdir()
    for number in range(2):
        x = np.array([[1 + number, -3.5]], np.float32)
        for part, name, values in (
            ("inputs", "i0", x), ("artifact", "o0", x * 2), ("original", "o0", x * 2),
        ):  # fmt: skip
            np.savez(folder / "golden" / f"{number:03}.{part}.npz", **{name: values})
    release.manifest["golden"] = {
        "samples": 2, "cpu": "avx2", "same_cpu": {"atol": 1e-5, "rtol": 1e-4},
        "other_cpu": {"min_cosine": 0.999}, "original": {"min_cosine": 0.99},
    }  # fmt: skip
    return release


class Ticks:
    """A clock that goes on only when a simulated engine is run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def go(self, seconds: float) -> Callable[[], None]:
        def on() -> None:
            self.now += seconds

        return on


@dataclass
class Machine:
    """A switching engine with all that drives it."""

    maker: SimulatedMaker
    switch: SwitchingEngine
    life: Lifecycle
    store: EngineStore
    fallback: SimulatedEngine
    clock: Ticks


def make_machine(
    folder: Path, release: OpenRelease, maker: SimulatedMaker, **options: Any
) -> Machine:
    """Return a state machine over a fallback that takes ten times as long as the engines."""
    clock = Ticks()
    if maker.make is SimulatedEngine:
        maker.make = lambda **fields: SimulatedEngine(takes=clock.go(0.001), **fields)
    fallback = SimulatedEngine(
        name="onnxruntime", version="1.32.0", provider="CPUExecutionProvider", precision="fp32",
        takes=clock.go(0.010),
    )  # fmt: skip
    notes: list[str] = []
    store = EngineStore(str(folder), notes.append)
    switch = SwitchingEngine(options.pop("fallback", fallback))
    options.setdefault("policy", QUICK)
    life = Lifecycle(switch, maker, store, release, clock=clock, notes=notes, **options)
    return Machine(
        maker=maker, switch=switch, life=life, store=store, fallback=fallback, clock=clock
    )


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition, as long as it takes on a slow machine."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within 60 s: {what}"
        time.sleep(0.002)


def one(value: float = 1.5) -> dict[str, Tensor]:
    """Return a request."""
    return {"x": Tensor.from_flat([value, -value], (1, 2), "float32")}


def answer(engine: Any, value: float = 1.5) -> list[float]:
    """Return what an engine says to it."""
    return list(engine.run(one(value))["y"].to_flat())


def refusing(message: str) -> ModelFault:
    """Return a failure as the runtime explains it."""
    return ModelFault(message)
