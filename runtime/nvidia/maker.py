"""Makes engines with the TensorRT of this device: a child process builds, the adapter runs."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from ..engine import Engine
from ..errors import DeviceError, TargetMismatch
from ..logs import log
from ..signature import Signature
from .durable import read_record, unlink, write_record
from .fingerprint import differences, digest, first_gpu, hard_facts, soft_facts
from .lifecycle import Lifecycle
from .making import Carried
from .request import BuildRequest, from_manifest
from .store import EngineStore, open_store
from .switching import Progress, SwitchingEngine

# A slow module takes the better part of an hour for a large network with several profiles.
BUILD_TIMEOUT_S = 3 * 3600.0
# As the server has workers, so that one request is copied while another runs.
WORKERS = 2
_MEMORY = "memory.json"
_RUNTIME_CACHE = "runtime.cache"


class DeviceMaker:
    """Builds and loads engines for a release on this device.

    Args:
        release: Has `.folder` and `.manifest`.
        store: Where the files beside an engine lie.
        fallback: Runs the rest of a model that was cut into parts.
        workers: Requests that run in an engine at once.
        gpu_facts: What this device is; by default `device.gpu_facts`.
        command: What builds, in front of REQUEST and FOLDER; by default this release's own.
        say: Takes sentences for the user.
    """

    def __init__(
        self,
        release: Any,
        store: EngineStore,
        fallback: Engine,
        *,
        workers: int = WORKERS,
        gpu_facts: Optional[Callable[[], Dict[str, Any]]] = None,
        command: Optional[List[str]] = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._release = release
        self._store = store
        self._fallback = fallback
        self._workers = workers
        self._table: Mapping[str, Any] = release.manifest["tensorrt"]
        self._gpu_facts = gpu_facts or _gpu_facts
        # -B: a compiled file in the release's folder would be one that the manifest lacks
        self._command = command or [sys.executable, "-B", release.folder, "build-engine"]
        self._say = say
        self._looked_at_fallback = False
        self._fresh: Optional[Dict[str, Any]] = None
        self._facts: Dict[str, Any] = {}
        self._rebuilt: List[str] = []
        self._request: Any = None
        self._vendor: Any = None
        self._cudart: Any = None

    def prepare(self) -> None:
        """Find TensorRT, CUDA and the GPU.

        Raises:
            DeviceError: one lacks or does not fit; says what helps.
        """
        from .carried import use_carried
        from .cudart import load_cudart
        from .obstacles import reasons_against_engine, why_rebuilt
        from .vendor import load_vendor

        request = from_manifest(self._release.manifest, self._release.folder)
        use_carried(self._release.folder)
        device = self._gpu_facts()
        reasons = reasons_against_engine(self._table, device)
        if reasons:
            raise TargetMismatch("; ".join(reasons))
        self._rebuilt = why_rebuilt(self._table, device)
        self._vendor = load_vendor(request.module, wanted=request.version)
        self._cudart = load_cudart()
        self._request = _for_this_gpu(request, device)
        self._facts = hard_facts(self._request, self._vendor.version, device)
        self._fresh = device

    def fingerprint(self) -> str:
        """Return what an engine for this device is kept under."""
        return digest(self._facts)

    def facts(self) -> Dict[str, Any]:
        """Return the hard facts behind the fingerprint."""
        return self._facts

    def soft(self) -> Dict[str, Any]:
        """Return the soft facts of this moment; the first time, those that `prepare` saw."""
        device, self._fresh = self._fresh, None
        return dict(soft_facts(self._gpu_facts() if device is None else device))

    def carried(self) -> Optional[Carried]:
        """Return the bundle's own engine for this fingerprint, if it has one."""
        wanted = self.fingerprint()
        for entry in self._table.get("engines") or ():
            if entry["fingerprint"] == wanted:
                digests = {file["path"]: file["sha256"] for file in self._release.manifest["files"]}
                path = os.path.join(self._release.folder, *entry["path"].split("/"))
                return Carried(path, digests[entry["path"]], entry.get("soft") or {})
        return None

    def why_rebuilt(self) -> List[str]:
        """Return why this device needs another engine than the bundle's, a sentence each."""
        carried = [entry["facts"] for entry in self._table.get("engines") or () if "facts" in entry]
        if carried:
            return differences(self._facts, carried[0])
        return self._rebuilt

    def build(
        self,
        folder: str,
        timing_cache: Optional[str],
        on_progress: Callable[[Progress], None],
        stopped: Callable[[], bool],
    ) -> Optional[str]:
        """Build in a child process, and return the engine's digest.

        Raises:
            BuildFailed: it did not come to an engine, or to one for another device.
            InputOutputFault: memory or disk are too small.
        """
        from .builder import BuildFailed
        from .building import start_build

        self._look_at_fallback()
        unlink(self._store.beside(self.fingerprint(), _MEMORY))
        report = start_build(
            self._command,
            self._request,
            folder,
            timeout_s=BUILD_TIMEOUT_S,
            timing_cache=timing_cache,
            stopped=stopped,
            on_progress=lambda step: on_progress(
                Progress(step.fraction, step.seconds_left, step.phase)
            ),
        )
        strange = differences(self._facts, report.facts)
        if strange:
            raise BuildFailed("the build saw another device: %s" % "; ".join(strange))
        return report.sha256

    def _look_at_fallback(self) -> None:
        """Say so, once, where what answers meanwhile does not answer as recorded."""
        from .acceptance import fallback_fault

        if self._looked_at_fallback:
            return
        self._looked_at_fallback = True
        fault = fallback_fault(self._release, self._fallback)
        if fault is not None:
            said = "until the engine is there, answers on this processor are not as recorded: %s"
            self._say(said % fault)

    def load(self, path: str) -> Engine:
        """Return the loaded engine, with the model's other parts where it has such."""
        from .adapter import TensorRTEngine

        with open(path, "rb") as stream, contextlib.ExitStack() as kept:
            plan: Any = b""
            if os.fstat(stream.fileno()).st_size:
                plan = kept.enter_context(
                    mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
                )
            engine = TensorRTEngine(
                self._vendor,
                self._cudart,
                plan,
                getattr(self._fallback, "core_signature", None)
                or Signature(self._release.manifest["model"]["signature"]),
                self._table["profiles"],
                precision=str(self._table["precision"]),
                workers=self._workers,
                memory=self._known_memory(),
                cuda_graphs=self._table.get("cuda_graphs") is True,
                runtime_cache=self._runtime_cache(),
                host_code_allowed=self._request.version_compatible,
            )
        self._remember_memory(engine.memory)
        whole = getattr(self._fallback, "with_core", None)
        return engine if whole is None else whole(engine)

    def _known_memory(self) -> str:
        """Return the kind of memory that was the faster one when this device measured it."""
        try:
            known = read_record(self._store.beside(self.fingerprint(), _MEMORY)).get("memory")
        except (OSError, ValueError):
            return "auto"
        return known if known in ("shared", "own") else "auto"

    def _remember_memory(self, found: Mapping[str, Any]) -> None:
        if "own_us" in found:
            path = self._store.beside(self.fingerprint(), _MEMORY)
            with contextlib.suppress(OSError):  # measured again at the next start
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                write_record(path, found)

    def _runtime_cache(self) -> Optional[str]:
        """Return where kernels are kept that are compiled on the device, in TensorRT-RTX only."""
        if not self._vendor.is_rtx:
            return None
        path = self._store.beside(self.fingerprint(), _RUNTIME_CACHE)
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return path


def serve_switching(release: Any, fallback: Engine, *, retune: bool = False) -> SwitchingEngine:
    """Return an engine that answers from the fallback while TensorRT's is brought into service.

    Args:
        release: Of a target with TensorRT.
        fallback: Answers meanwhile, and belongs to what is returned.
        retune: Build a new engine even where one fits.
    """
    switch, life = _assemble(release, fallback, workers=WORKERS, retune=retune, announce=_announce)
    if life is not None:
        life.start()
    return switch


def use_kept(release: Any, fallback: Engine) -> SwitchingEngine:
    """Return an engine that answers from TensorRT where an engine is there already."""
    switch, life = _assemble(release, fallback, workers=1)
    if life is not None:
        life.load_kept()
    return switch


def _assemble(
    release: Any,
    fallback: Engine,
    *,
    workers: int,
    retune: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Tuple[SwitchingEngine, Optional[Lifecycle]]:
    notes: List[str] = []
    switch = SwitchingEngine(fallback, str(release.manifest["tensorrt"]["module"]), announce)
    try:
        store = open_store(release, notes.append)
    except DeviceError as fault:
        switch.tell("missing", fault.message)
        return switch, None

    def say(sentence: str) -> None:
        notes.append(sentence)
        announce(sentence)

    maker = DeviceMaker(release, store, fallback, workers=workers, say=say)
    return switch, Lifecycle(switch, maker, store, release, retune=retune, notes=notes)


def _announce(text: str) -> None:
    log.event("accelerator", message=text)


def _for_this_gpu(request: BuildRequest, device: Mapping[str, Any]) -> BuildRequest:
    """Return the request for the GPU at hand where TensorRT-RTX's list does not name it."""
    here = first_gpu(device).get("compute_capability")
    if request.module != "tensorrt_rtx" or here in (None, *request.compute_capabilities):
        return request
    return request._replace(compute_capabilities=(str(here),))


def _gpu_facts() -> Dict[str, Any]:
    from .device import gpu_facts

    return gpu_facts()
