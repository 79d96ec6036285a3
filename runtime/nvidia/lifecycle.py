"""Brings an engine into service and keeps it there: finds, builds, checks, tries again."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Callable, Iterator, List, Mapping, Optional

from ..engine import Engine
from ..errors import DeviceError, InputOutputFault
from . import acceptance
from .fingerprint import differences, soft_differences
from .making import Found, Maker, Policy, Rejected, Stopped, Unusable
from .store import EngineStore
from .switching import Progress, SwitchingEngine, describe

JOIN_S = 15.0
_OTHER_PROCESS_S = 0.5
_FAILED_BUILDS, _STARTS = "failed_builds", "unfinished_starts"


class Lifecycle:
    """Drives a `SwitchingEngine` from `missing` to `live`, and after failures.

    Args:
        switch: What answers.
        maker: Builds and loads.
        store: Keeps engines.
        release: Has `.folder` and `.manifest`, for the golden samples.
        retune: Build a new engine even where one fits, and forget rejections.
        policy: How often to try again.
        clock: In seconds, for the timing of engines and of how long one served.
        notes: Sentences to tell beside every state, such as what the store found damaged.
    """

    def __init__(
        self,
        switch: SwitchingEngine,
        maker: Maker,
        store: EngineStore,
        release: Any,
        *,
        retune: bool = False,
        policy: Policy = Policy(),  # noqa: B008 - a tuple
        clock: Callable[[], float] = time.perf_counter,
        notes: Optional[List[str]] = None,
    ) -> None:
        self._switch = switch
        self._maker = maker
        self._store = store
        self._release = release
        self._retune = retune
        self._policy = policy
        self._clock = clock
        self._notes: List[str] = [] if notes is None else notes
        self._fingerprint = ""
        self._skip_carried = False
        self._built = False
        self._load_failures = 0
        self._failed_builds = 0
        self._failed_loads = 0
        self._live_since = 0.0
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._fault: Optional[Exception] = None
        self._tuned: Mapping[str, Any] = {}
        self._own_notes: List[str] = []
        self._thread: Optional[threading.Thread] = None
        switch.attach(self._on_fault, self.stop)

    def start(self) -> None:
        """Work in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._work, name="edgepack-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End what is under way, a build's child as well, and wait for that."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)
        self._store.close()

    def load_kept(self) -> None:
        """Switch to an engine that is there already, in this thread; build none."""
        with self._told():
            if not self._prepare():
                return
            found = self._find()
            if found is None:
                self._tell("missing", "no engine was built for this device; `serve` builds it")
            else:
                self._use(found)

    def _work(self) -> None:
        with self._told():
            if not self._prepare():
                return
            self._bring_up(build_first=False)
            if self._retune and not self._built:
                self._build_anew()
            with contextlib.suppress(DeviceError, OSError):
                self._store.sweep(self._fingerprint)
            while True:
                woken = self._wake.wait(self._policy.look_s)
                self._check_stop()
                if woken:
                    self._wake.clear()
                    self._recover()
                else:
                    self._look()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn whatever ends the work into a state: the server goes on."""
        try:
            yield
        except (Stopped, Rejected):
            pass
        except Exception as fault:  # noqa: BLE001 - a vendor library may raise anything
            self._tell("refused", describe(fault))

    def _prepare(self) -> bool:
        """Find out what this device is; return whether an engine may be used here."""
        try:
            self._store.check_ahead()
            self._maker.prepare()
            self._fingerprint = self._maker.fingerprint()
        except Exception as fault:  # noqa: BLE001 - a vendor library may raise anything
            self._tell("missing", describe(fault))
            return False
        if self._retune:
            self._store.forgive(self._fingerprint)
        rejected = self._store.rejected(self._fingerprint)
        if rejected is not None:
            self._tell("refused", rejected)
        return rejected is None

    def _bring_up(self, *, build_first: bool) -> None:
        """Bring an engine into service, as often as the policy allows."""
        build = build_first
        while True:
            found = None if build else self._find()
            try:
                if found is None:
                    self._build(again=build)
                    build = False
                else:
                    return self._use(found)
            except (Stopped, Rejected):
                raise
            except Exception as fault:  # noqa: BLE001 - a vendor library may raise anything
                self._check_stop()
                if found is not None and not isinstance(fault, Unusable):
                    self._pause_load(describe(fault))
                elif found is not None and found.carried:
                    self._skip_carried = True
                    self._notes.append("the bundle's own engine is not used: %s" % fault)
                else:
                    self._doubt(fault)
                    self._pause_build(fault)

    def _build_anew(self) -> None:
        """Build another engine while the one at hand serves; where that fails, it goes on."""
        state = self._switch.state
        try:
            self._bring_up(build_first=True)
        except Rejected:
            if self._switch.golden_level is None:
                raise
            self._notes.append("the new engine is not used: %s" % self._switch.reason)
            self._tell(state)

    def _recover(self) -> None:
        """Load an engine again that failed while it served."""
        self._switch.close_retired()
        fault = self._fault
        if fault is None:
            return
        self._fault = None
        if self._clock() - self._live_since > self._policy.forgotten_after_s:
            self._load_failures = 0
        reason = "it failed while it served: %s" % describe(fault)
        if getattr(fault, "is_lost", False):
            # CUDA says that nothing works in this process any more.
            self._reject("%s; start the server again to use the GPU" % reason, lasting=False)
        self._pause_load(reason)
        self._bring_up(build_first=False)

    def _look(self) -> None:
        """Tell what has changed around an engine that serves, such as the power mode."""
        before = self._switch.state
        try:
            changed = soft_differences(self._tuned, self._maker.soft())
        except Exception:  # noqa: BLE001 - what cannot be seen has not changed
            return
        state = "stale" if changed else "live"
        if before in ("live", "stale") and before != state:
            self._switch.tell_if_serving(state, [*changed, *self._own_notes, *self._notes])

    def _find(self) -> Optional[Found]:
        """Return this device's own engine, else the bundle's, else None."""
        path = self._store.find(self._fingerprint)
        entry = self._store.entry(self._fingerprint)
        if path is not None and entry is not None:
            return Found(path, str(entry["sha256"]), entry.get("soft") or {}, False)
        carried = None if self._skip_carried else self._maker.carried()
        if carried is None:
            return None
        return Found(carried.path, carried.sha256, carried.soft, True)

    def _build(self, *, again: bool) -> None:
        """Build an engine into the store, unless another process has done so meanwhile."""
        with self._store.building(self._fingerprint, self._wait) as held:
            if not held:
                raise Stopped
            if not again and self._store.find(self._fingerprint) is not None:
                return
            reason = self._why_build()
            self._tell("building", reason)
            facts = self._maker.facts()
            folder = self._store.build_folder(self._fingerprint)
            sha256 = self._maker.build(
                folder,
                # Who asks for another engine wants the kernels timed again.
                None if self._retune else self._store.timing_cache(facts, self._maker.soft()),
                lambda progress: self._tell("building", reason, progress),
                self._stop.is_set,
            )
            self._check_stop()
            self._store.keep(
                self._fingerprint, folder, facts, soft=self._maker.soft(), sha256=sha256
            )
            self._built = True

    def _why_build(self) -> str:
        """Return why no engine at hand is used."""
        if self._retune:
            return "a new engine was asked for"
        newest = self._store.newest()
        if newest is None:
            why = "; ".join(self._maker.why_rebuilt())
            return why or "there is no engine for this device yet"
        changed = differences(self._maker.facts(), newest["facts"])
        return "; ".join(changed) or "the engine for this device is built again"

    def _use(self, found: Found) -> None:
        """Load, check and switch in an engine.

        Raises:
            Rejected: it is not to be used again.
            Unusable: it never served, and does not load or run.
            DeviceError: it served before, and does not load or run now.
        """
        here = self._maker.soft()
        known = self._store.checked(self._fingerprint, found.sha256)
        trusted = known is not None and not soft_differences(known.get("soft") or {}, here)
        engine: Optional[Engine] = None
        try:
            with self._counted(not trusted):
                self._tell("checking")
                engine = self._maker.load(found.path)
                if not trusted or self._load_failures:
                    self._check(engine, found, here, known)
                self._check_stop()
        except BaseException as fault:
            if engine is not None:
                engine.close()
            outcome = isinstance(fault, (Rejected, Stopped)) or not isinstance(fault, Exception)
            if known is None and not outcome:
                raise Unusable(describe(fault)) from fault
            raise
        self._live_since = self._clock()
        self._fault = None
        self._tuned = found.soft
        self._own_notes = list(getattr(engine, "notes", ()))
        changed = soft_differences(found.soft, here)
        notes = [*changed, *self._own_notes, *self._notes]
        self._switch.switch(engine, "stale" if changed else "live", notes)
        self._switch.close_retired()

    def _check(self, engine: Engine, found: Found, here: Mapping[str, Any], known: Any) -> None:
        """Compare an engine with the golden samples, and time one that was never accepted."""
        verdict = acceptance.accept(
            self._release,
            engine,
            self._switch.fallback,
            timed=known is None,
            stopped=self._stop.is_set,
            clock=self._clock,
        )
        self._check_stop()
        if verdict.failure is None:
            showed = {**(known or {}), "soft": dict(here), "min_cosine": verdict.min_cosine}
            if known is None:
                showed.update(engine_ms=verdict.engine_ms, fallback_ms=verdict.fallback_ms)
            getattr(engine, "save_runtime_cache", lambda: None)()
            with self._kept():
                self._store.remember_check(self._fingerprint, found.sha256, showed)
        elif not verdict.final:
            raise DeviceError(verdict.failure)
        elif known is None:
            self._reject("the engine is not used: %s" % verdict.failure)
        else:
            # It was right under another driver: one that is built under this may be as well.
            raise Unusable(verdict.failure, wrong=True)

    def _doubt(self, fault: BaseException) -> None:
        """Remove an engine that is wrong, or that twice did not work: memory may be back."""
        if isinstance(fault, Unusable):
            self._failed_loads += 1
            if fault.wrong or self._failed_loads > 1:
                self._failed_loads = 0
                self._store.discard(self._fingerprint)

    def _pause_build(self, fault: BaseException) -> None:
        """Wait before the next build, or give up where builds failed too often."""
        reason = describe(fault)
        # A full disk says nothing against the engine, so the next start tries again.
        lasting = not isinstance(fault, InputOutputFault)
        self._failed_builds += 1
        if lasting:
            with self._kept():
                count = self._store.count(self._fingerprint, _FAILED_BUILDS)
                self._failed_builds = max(count, self._failed_builds)
        pauses = self._policy.build_pauses_s
        if self._failed_builds > len(pauses):
            reason = "%d tries failed, the last one: %s" % (self._failed_builds, reason)
            self._reject(reason, lasting=lasting)
        what = "the new engine does not work" if isinstance(fault, Unusable) else "the build failed"
        self._pause("missing", "%s: %s" % (what, reason), pauses[self._failed_builds - 1])

    def _pause_load(self, reason: str) -> None:
        """Wait before an accepted engine is loaded again, or give up until the next start."""
        self._load_failures += 1
        pauses = self._policy.load_pauses_s
        if self._load_failures > len(pauses):
            again = "start the server again to try once more"
            reason = "the engine failed %d times: %s (%s)" % (self._load_failures, reason, again)
            self._reject(reason, lasting=False)
        self._pause("refused", reason, pauses[self._load_failures - 1])

    def _pause(self, state: str, reason: str, pause_s: float) -> None:
        self._tell(state, "%s; it is tried again in %d s" % (reason, pause_s))
        if self._stop.wait(pause_s):
            raise Stopped

    @contextlib.contextmanager
    def _counted(self, counted: bool) -> Iterator[None]:
        """Count a start until it comes to an end: a crash must not come with each one.

        Raises:
            Rejected: processes ended too often in what is now begun again.
        """
        if not counted:
            yield
            return
        with self._kept():
            starts = self._store.count(self._fingerprint, _STARTS)
            if starts > self._policy.starts:
                self._reject("%d processes ended while they checked the engine" % (starts - 1))
        try:
            yield
        finally:
            with self._kept():
                self._store.clear(self._fingerprint, _STARTS)

    def _reject(self, reason: str, *, lasting: bool = True) -> None:
        if lasting:
            with self._kept():
                self._store.reject(self._fingerprint, reason)
        self._tell("refused", reason)
        raise Rejected

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Go on where the store cannot be written: it only saves work."""
        try:
            yield
        except DeviceError as fault:
            if fault.message not in self._notes:
                self._notes.append(fault.message)

    def _wait(self) -> bool:
        self._tell("building", "another process is building it")
        return not self._stop.wait(_OTHER_PROCESS_S)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _on_fault(self, fault: Exception) -> None:
        self._fault = fault
        self._wake.set()

    def _tell(
        self, state: str, reason: Optional[str] = None, progress: Optional[Progress] = None
    ) -> None:
        self._switch.tell(state, reason, progress=progress, notes=self._notes)
