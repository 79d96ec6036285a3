"""How far a build is, and how long it takes yet: from the builder's phases, or from its log."""

from __future__ import annotations

import re
import time
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

# Where the time goes: phase -> the share that phases inside it take, whatever else it counts as a
# step. A share of 0 and names that are not here count by their steps. Names as seen in
# TensorRT-RTX 1.7; where kernels are timed, timing them takes nearly all.
_TIMED = {
    "building engine": {"building engine from subgraph": 0.95},
    "building engine from subgraph": {"optimizing graph": 0.02, "computing profile costs": 0.96},
    "computing profile costs": {"timing tactics": 0.85},
    "timing tactics": {"timing graph nodes": 0.95},
}
# TensorRT-RTX times nothing: it compiles, once for each profile.
_COMPILED = {
    "building engine": {"building engine from subgraph": 0.90},
    "building engine from subgraph": {"optimizing graph": 0.04, "computing profile costs": 0.92},
    "computing profile costs": {"determining refit engines": 0.90},
}
_ONCE_EACH_PROFILE = ("timing tactics", "determining refit engines")
# Between two reports that say nearly the same.
_LEAST_S = 0.2
_LEAST_FRACTION = 0.01
_LAYERS = re.compile(r"After [a-zA-Z .\-]+: (\d+) layers")
_COSTS = "Computing costs for"
_FINISHED = "Engine generation completed"
# Graph optimization is over in moments.
_BEFORE_TIMING = 0.02
_AFTER_TIMING = 0.95
# A rate is known from then on.
_FIRST_ESTIMATE_S = 0.5
_FIRST_ESTIMATE = 0.01


class Step(NamedTuple):
    """Where a build stands.

    Attributes:
        fraction: Done, 0 to 1; never goes back.
        seconds_left: Estimated from the pace so far; None while there is none.
        phase: In the builder's words.
    """

    fraction: float
    seconds_left: Optional[float]
    phase: str


Report = Callable[[Step], Any]


class Pace:
    """Turns fractions of one part of the work into steps of the whole.

    Args:
        report: Takes each step.
        start: The fraction of the whole that was done before this part.
        share: Of the whole, that is this part.
        since: When the whole began; by `time.monotonic`.
    """

    def __init__(
        self,
        report: Report,
        *,
        start: float = 0.0,
        share: float = 1.0,
        since: Optional[float] = None,
    ) -> None:
        self._report = report
        self._start = start
        self._share = share
        self._since = time.monotonic() if since is None else since
        self._done = start
        self._told: Optional[Tuple[float, float]] = None

    def tell(self, fraction: float, phase: str) -> None:
        """Report that this part is done to a fraction; one that goes back counts as none."""
        done = self._start + self._share * min(1.0, max(0.0, fraction))
        self._done = max(self._done, done)
        now = time.monotonic()
        if self._told is not None and fraction < 1.0:
            when, what = self._told
            if now - when < _LEAST_S and self._done - what < _LEAST_FRACTION:
                return
        self._told = now, self._done
        elapsed = now - self._since
        left = None
        if elapsed >= _FIRST_ESTIMATE_S and self._done >= _FIRST_ESTIMATE:
            left = round(elapsed * (1.0 - self._done) / self._done, 1)
        self._report(Step(round(self._done, 4), left, phase))


class Phases:
    """The nested phases of a builder, as its progress monitor names them.

    Args:
        profiles: Of the build; some phases come once for each.
        timed: Whether kernels are timed, as by every TensorRT but TensorRT-RTX.
    """

    def __init__(self, profiles: int, *, timed: bool) -> None:
        self._profiles = max(1, profiles)
        self._shares = _TIMED if timed else _COMPILED
        self._open: Dict[str, _Phase] = {}

    def start(self, name: str, parent: Optional[str], steps: int) -> None:
        """Note that a phase has begun inside another."""
        phase = _Phase(name.lower(), self._open.get(parent) if parent else None, max(1, steps))
        self._open[name] = phase
        if phase.above is not None:
            phase.above.running = phase

    def step(self, name: str, index: int) -> None:
        """Note that the phase has finished the step with that index."""
        phase = self._open.get(name)
        if phase is not None:
            phase.done = min(phase.steps, max(phase.done, index + 1))

    def finish(self, name: str) -> None:
        """Note that a phase is over."""
        phase = self._open.pop(name, None)
        if phase is not None and phase.above is not None:
            above = phase.above
            above.finished[phase.name] = above.finished.get(phase.name, 0) + 1
            if above.running is phase:
                above.running = None

    def fraction(self) -> float:
        """Return how much of the outermost phase is done; 0 where none is open."""
        roots = [phase for phase in self._open.values() if phase.above is None]
        return self._fraction(roots[-1]) if roots else 0.0

    def _fraction(self, phase: "_Phase") -> float:
        shares, inside = self._shares.get(phase.name, {}), 0.0
        for name, share in shares.items():
            times = self._profiles if name in _ONCE_EACH_PROFILE else 1
            done = float(phase.finished.get(name, 0))
            if phase.running is not None and phase.running.name == name:
                done += self._fraction(phase.running)
            inside += share * min(1.0, done / times)
        return min(1.0, inside + (1.0 - sum(shares.values())) * phase.done / phase.steps)


class _Phase:
    """One phase: its steps, and the phases inside it that have run or run now."""

    def __init__(self, name: str, above: Optional["_Phase"], steps: int) -> None:
        self.name = name
        self.above = above
        self.steps = steps
        self.done = 0
        self.finished: Dict[str, int] = {}
        self.running: Optional[_Phase] = None


class LogLines:
    """Reads progress from the lines of a builder that has no progress monitor (before 10.0).

    Args:
        profiles: Layers are timed once for each.
    """

    def __init__(self, profiles: int) -> None:
        self._profiles = max(1, profiles)
        self._layers = 0
        self._timed = 0

    def read(self, text: str) -> Optional[float]:
        """Return the fraction that is done after a line; None where the line says nothing of it."""
        if _COSTS in text:
            self._timed += 1
            total = max(self._layers * self._profiles, self._timed + 1)
            return _BEFORE_TIMING + (_AFTER_TIMING - _BEFORE_TIMING) * (self._timed - 1) / total
        if _FINISHED in text:
            return 1.0
        found = _LAYERS.search(text)
        if found and not self._timed:
            self._layers = int(found.group(1))
        return None


def make_monitor(trt: Any, phases: Phases, pace: Pace) -> Any:
    """Return a progress monitor that a builder configuration takes.

    Args:
        trt: The vendor's module: its base class exists only there.
        phases: Is kept up to date.
        pace: Is told after every step.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Hands each call on; an exception here would end the process inside the library."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            pace.tell(phases.fraction(), phase_name)
            return True

    return Monitor()
