"""An engine that stands for two, TensorRT's and its fallback, and switches between calls."""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..engine import Engine
from ..errors import BadRequest, DeviceError
from ..tensor import Tensor

# `missing`   there is no engine for this device; the reason says why none is being built
# `building`  one is being built
# `checking`  one is compared with the golden samples and timed
# `live`      TensorRT answers
# `stale`     TensorRT answers, with an engine that was tuned under other circumstances
# `refused`   there was one, and it is not used; the reason says why
STATES = ("missing", "building", "checking", "live", "stale", "refused")

CLOSE_S = 10.0


class Progress(NamedTuple):
    """How far a build has come.

    Attributes:
        share: From 0.0 to 1.0; None where that is not known.
        seconds_left: None where that is not known.
        step: What is being done.
    """

    share: Optional[float] = None
    seconds_left: Optional[float] = None
    step: str = ""


class _Slot:
    """An engine, the calls that are in it, and whether new ones still come."""

    __slots__ = ("active", "engine")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.active = 0


class SwitchingEngine:
    """Answers from the fallback until an engine is switched in, and whenever that one fails.

    Everything it tells is about the engine that answers now. `run` may be called from several
    threads at once; a call ends in the engine that it began in, and an engine is closed only when
    its last call has returned.

    Args:
        fallback: Answers at first; stays open, because the other may fail at any time.
        wanted: The engine that the release asks for, such as `tensorrt`.
        announce: Takes a sentence at every change of the state or its reason.

    Attributes:
        wanted: As given.
        faults: Calls that failed in the accelerated engine.
        rescued: Those of them that the fallback answered.
    """

    def __init__(
        self,
        fallback: Engine,
        wanted: str = "tensorrt",
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.wanted = wanted
        self.faults = 0
        self.rescued = 0
        # Guards all below; held for a few assignments, never across a call.
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._fallback = _Slot(fallback)
        self._slot = self._fallback
        self._state = "missing"
        self._reason: Optional[str] = None
        self._progress: Optional[Progress] = None
        self._notes: List[str] = []
        self._retired: List[_Slot] = []
        self._closed = False
        self._announce = announce
        self._announced = ("missing", "")
        self._on_fault: Callable[[Exception], None] = lambda _: None
        self._on_close: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """The name of the engine that answers now."""
        return self._slot.engine.name

    @property
    def version(self) -> str:
        """Its version."""
        return self._slot.engine.version

    @property
    def provider(self) -> str:
        """What really runs the model."""
        return self._slot.engine.provider

    @property
    def precision(self) -> str:
        """The precision that answers now."""
        return self._slot.engine.precision

    @property
    def threads(self) -> int:
        """Intra-op threads of the engine that answers now."""
        return self._slot.engine.threads

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return self._state

    @property
    def reason(self) -> Optional[str]:
        """Why the state is what it is, in a sentence; None where that needs no words."""
        return self._reason

    @property
    def progress(self) -> Optional[Progress]:
        """How far the build has come, None where none is going on."""
        return self._progress

    @property
    def fallback(self) -> Engine:
        """The engine that answers until another may."""
        return self._fallback.engine

    @property
    def golden_level(self) -> Optional[str]:
        """What the golden samples are compared as: None for this processor's own level."""
        return None if self._slot is self._fallback else "gpu"

    def status(self) -> Dict[str, Any]:
        """Return all that is told of the engine, as it is at one moment."""
        with self._lock:
            slot, progress = self._slot, self._progress
            told: Dict[str, Any] = {
                "wanted": self.wanted,
                "state": self._state,
                "fallback": slot is self._fallback,
                "reason": self._reason,
                "notes": list(self._notes),
                "faults": self.faults,
                "rescued": self.rescued,
            }
            engine = slot.engine
            if progress is not None:
                told["progress"] = progress.share
                told["seconds_left"] = progress.seconds_left
                told["step"] = progress.step
        told["engine"] = {
            "name": engine.name,
            "version": engine.version,
            "provider": engine.provider,
            "precision": engine.precision,
        }
        return told

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Optional[Sequence[str]] = None
    ) -> Dict[str, Tensor]:
        """Return the outputs by name, from the engine that answers now, or else the fallback.

        Raises:
            BadRequest: the request cannot be answered.
            ModelFault: the fallback failed.
        """
        slot = self._enter(None)
        try:
            return slot.engine.run(feeds, outputs)
        except BadRequest:
            raise
        except Exception as fault:  # a vendor library may raise anything
            if slot is self._fallback:
                raise
            with self._lock:
                self.faults += 1
            failure = fault
        finally:
            self._leave(slot)
        other = self._enter(self._fallback)
        try:
            answer = other.engine.run(feeds, outputs)
        finally:
            self._leave(other)
        # Only now is the engine to blame: what both refuse is the request's fault.
        self._retire(slot, failure)
        return answer

    def close(self) -> None:
        """Stop what is under way, wait for the calls, and free both engines."""
        self._on_close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._slot is not self._fallback:
                self._retired.append(self._slot)
        # A call that hangs in a GPU must not keep the process from ending.
        self.close_retired(CLOSE_S)
        self._drain(self._fallback, None)

    # What follows is for whoever finds, builds and checks engines.

    def attach(self, on_fault: Callable[[Exception], None], on_close: Callable[[], None]) -> None:
        """Set what is told that an engine failed and was taken out, and that all ends."""
        self._on_fault, self._on_close = on_fault, on_close

    def tell(
        self,
        state: str,
        reason: Optional[str] = None,
        *,
        progress: Optional[Progress] = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Set the state; `notes` are sentences beside the reason."""
        if state not in STATES:
            raise ValueError(state)
        with self._lock:
            self._state, self._reason, self._progress = state, reason, progress
            self._notes = list(notes)
        self._announce_change()

    def tell_if_serving(self, state: str, notes: Sequence[str]) -> None:
        """Set `live` or `stale`, unless the engine has failed meanwhile."""
        with self._lock:
            if self._slot is not self._fallback:
                self._state, self._notes = state, list(notes)
        self._announce_change()

    def switch(self, engine: Engine, state: str, notes: Sequence[str] = ()) -> None:
        """Let an engine answer from now on; `close_retired` closes the one before."""
        with self._lock:
            if self._closed:
                refused = True
            else:
                refused = False
                if self._slot is not self._fallback:
                    self._retired.append(self._slot)
                self._slot = _Slot(engine)
                self._state, self._reason, self._progress = state, None, None
                self._notes = list(notes)
        if refused:
            engine.close()
        else:
            self._announce_change()

    def close_retired(self, timeout_s: Optional[float] = None) -> None:
        """Close the engines that get no new calls, each when its last one has returned.

        Args:
            timeout_s: Leave an engine open, and forget it, whose calls do not return by then.
        """
        while True:
            with self._lock:
                if not self._retired:
                    return
                slot = self._retired.pop()
            self._drain(slot, timeout_s)

    def _drain(self, slot: _Slot, timeout_s: Optional[float]) -> None:
        with self._idle:
            if not self._idle.wait_for(lambda: not slot.active, timeout_s):
                return
        slot.engine.close()

    def _enter(self, slot: Optional[_Slot]) -> _Slot:
        with self._lock:
            chosen = slot or self._slot
            chosen.active += 1
            return chosen

    def _leave(self, slot: _Slot) -> None:
        with self._lock:
            slot.active -= 1
            if not slot.active:
                self._idle.notify_all()

    def _retire(self, slot: _Slot, fault: Exception) -> None:
        """Take a failed engine out, once; whoever watches decides what follows."""
        with self._lock:
            self.rescued += 1
            if self._slot is not slot:
                return
            self._retired.append(slot)
            self._slot = self._fallback
            self._state, self._progress, self._notes = "refused", None, []
            self._reason = "it failed while it served: %s" % describe(fault)
        self._announce_change()
        self._on_fault(fault)

    def _announce_change(self) -> None:
        with self._lock:
            engine = self._slot.engine
            why = "; ".join([self._reason] if self._reason else self._notes)
            now = (self._state, why)
            if now == self._announced:
                return
            self._announced = now
        text = "%s: %s, answers come from %s" % (self.wanted, now[0], engine.name)
        self._announce("%s: %s" % (text, why) if why else text)


def describe(fault: BaseException) -> str:
    """Return a failure in one sentence, with what helps where that is known."""
    if isinstance(fault, DeviceError):
        return fault.message if fault.hint is None else "%s (%s)" % (fault.message, fault.hint)
    return "%s: %s" % (type(fault).__name__, fault)
