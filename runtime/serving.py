"""Puts a server together: release, engine, app, and what takes its place one day."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional

from .errors import DeviceError, IntegrityFault
from .options import SUCCEEDS

if TYPE_CHECKING:
    from .handover import Handover, Succession


class Aside:
    """Runs a function in a thread of its own; `result` waits for what it returns or raises."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._returned: Any = None
        self._raised: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._returned = self._function()
        except BaseException as fault:  # noqa: BLE001 - raised again where it is waited for
            self._raised = fault

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        self._thread.join()
        if self._raised is not None:
            raise self._raised
        return self._returned


class Keeper:
    """Puts a release back that is deleted from the cache while it is served.

    Modules and pages that nobody has asked for yet are read from there. All that this needs itself
    is in memory by then.

    Args:
        bundle: The file that the release came from, or the release's own folder.
        release: Has `.folder` and `.digest`.
    """

    def __init__(self, bundle: str, release: Any) -> None:
        self._bundle = bundle
        self._folder = release.folder
        self._digest = release.digest
        self._thread: Optional[threading.Thread] = None

    def look(self) -> None:
        """Begin to put it back where it is missing, once for each time; called now and then."""
        if os.path.isdir(self._folder):
            self._thread = None
        elif self._thread is None:
            self._thread = threading.Thread(target=self._restore, daemon=True)
            self._thread.start()

    def _restore(self) -> None:
        from .logs import log
        from .release import restore_release

        try:
            restore_release(self._bundle, self._digest)
        except (DeviceError, OSError) as error:
            log.event("release_lost", "error", folder=self._folder, reason=str(error))
        else:
            log.event("release_restored", "warning", folder=self._folder)


def run_server(path: str, values: Mapping[str, Any]) -> None:
    """Serve a release until told to stop, or until another process has taken over.

    Args:
        path: The bundle file or release folder, perhaps by a link that will point elsewhere.
        values: The command line's, by long name.
    """
    from .release import open_release
    from .secrecy import forbid_core_files, hush_interpreter

    forbid_core_files()
    hush_interpreter()
    # what a link points at now is what is served until the end, whatever becomes of the link
    place = os.path.realpath(path)
    opened = Aside(lambda: open_release(place, True))
    # Hashing needs no interpreter lock: these are compiled on the other core meanwhile.
    from .app import load_app
    from .engine import open_engine
    from .options import serve_options
    from .server import import_door, serve

    options = serve_options(values)
    import_door(options)
    succession = _inherited()
    with opened.result() as release:
        import_from(release.folder)
        _check_device(release)
        _tell_engine(release.manifest)
        engine = open_engine(release, values["threads"], serving=True, retune=values["retune"])
        watch = None
        try:
            if succession is not None:
                prove(release, engine)
            app = load_app(release, engine)
            app.inference.warm_up()  # before anyone observes: these zeros are nobody's request
            if release.manifest.get("privacy"):
                from .privacy.watching import Watch

                watch = Watch(release, app.inference, options, app.metrics)
            successor = partial(_handover, path, release.digest)
            look = Keeper(place, release).look
            serve(app, options, handover=successor, succession=succession, look=look)
        finally:
            engine.close()
            if watch is not None:
                watch.close()


def _inherited() -> Optional[Succession]:
    if SUCCEEDS not in os.environ:
        return None
    from .handover import inherited

    return inherited()


def _handover(path: str, digest: str) -> Handover:
    from .handover import Handover  # most servers are never asked to

    return Handover(path, digest)


def import_from(folder: str) -> None:
    """Take modules that are only needed later from a release that was verified.

    The file or link that this process was started from may be another's by then.
    """
    package = sys.modules[__package__]
    package.__path__ = [os.path.join(folder, "runtime")]


def prove(release: Any, engine: Any) -> None:
    """Let a release that takes over from another pass its golden samples first.

    Raises:
        IntegrityFault: a sample comes out otherwise than recorded.
    """
    from .golden import self_test

    outcome = self_test(release, engine, getattr(engine, "golden_level", None))
    if not outcome.passed:
        raise IntegrityFault("the self-test failed: %s" % "; ".join(outcome.failures))


def _check_device(release: Any) -> None:
    from .detect import check_fits, detect_device

    check_fits(release.manifest, detect_device())


def _tell_engine(manifest: Dict[str, Any]) -> None:
    """Say at the start which engine will answer, where the target has a choice."""
    if manifest.get("tensorrt"):
        from .logs import log
        from .nvidia.device import engine_outlook, gpu_facts

        log.event("engine", engine=engine_outlook(manifest, gpu_facts())["engine"])
