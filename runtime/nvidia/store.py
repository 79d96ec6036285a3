"""Keeps engines on the device under their fingerprints, with what is known of each.

Under the store's folder, for each fingerprint::

    FINGERPRINT.lock          held by the process that builds
    FINGERPRINT/entry.json    names the engine file; replaced in one step, so it never half exists
    FINGERPRINT/*.engine      called by its digest, as is its timing cache, `*.timing`
    FINGERPRINT/checked.json  what the golden samples and the timing showed, for that digest
    FINGERPRINT/rejected.json why no engine of this fingerprint is built or used again
    FINGERPRINT/tries.json    builds that failed, and starts that did not come to an end
    FINGERPRINT/build/        the last build: its log, its request, `reproduce.sh`
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

from ..errors import InputOutputFault, IntegrityFault
from .durable import digest_file, move, read_record, unlink, write_record
from .fingerprint import digest, soft_differences

# Another bundle's engines that no process has opened for this long are removed.
FORGOTTEN_S = 90 * 86400.0
_ENTRY, _CHECKED = "entry.json", "checked.json"
_REJECTED, _TRIES = "rejected.json", "tries.json"
# what a timing cache depends on
_TIMED_BY = ("module", "version", "capabilities", "platform")
_IS_DIGEST = re.compile("[0-9a-f]{64}\\Z").match


def open_store(release: Any, say: Callable[[str], None]) -> EngineStore:
    """Return the store of a release's engines, in the first place that can be written.

    That is `$XDG_CACHE_HOME/edgepack/engines/BUNDLE`, else beside the release, else temporary.

    Args:
        release: Has `.folder` and `.digest`.
        say: Takes sentences for the user.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    places = [release.folder.rstrip("/") + ".engines"]
    if os.path.isabs(base):
        places.insert(0, os.path.join(base, "edgepack", "engines", str(release.digest)))
    for place in places:
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
            status = os.stat(place)
        except OSError:
            continue
        # An engine is code: nobody else may be able to put one there.
        private = status.st_uid == os.geteuid() and not status.st_mode & 0o022
        if private and os.access(place, os.W_OK | os.X_OK):
            return EngineStore(place, say)
    import tempfile

    try:
        folder = tempfile.mkdtemp(prefix="edgepack-engines-")
    except OSError as fault:
        raise _unwritable("TMPDIR", fault) from fault
    say("engines cannot be kept in `%s`: each start builds its own" % places[0])
    return EngineStore(folder, say, temporary=True)


class EngineStore:
    """Engines in a folder of this user's own.

    Args:
        folder: Made where it is absent.
        say: Takes sentences on what was found damaged.
        temporary: The folder goes with `close`.
    """

    def __init__(
        self, folder: str, say: Callable[[str], None] = lambda _: None, *, temporary: bool = False
    ) -> None:
        self.folder = folder
        self._say = say
        self._temporary = temporary
        self._ahead: Dict[str, Tuple[threading.Thread, List[Tuple[str, int]]]] = {}
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as fault:
            raise _unwritable(folder, fault) from fault

    def find(self, fingerprint: str) -> Optional[str]:
        """Return the path of the kept engine, its digest checked; None where there is none.

        A damaged one is removed, and said.
        """
        # Twice: another process may replace the engine between the record and the file.
        for attempt in range(2):
            entry = self.entry(fingerprint)
            if entry is None:
                return None
            path = os.path.join(self._place(fingerprint), entry["engine"])
            try:
                sha256, size = self._digest(path)
            except OSError:
                if attempt == 0:
                    continue
                self._remove_damaged(fingerprint, "its file is missing")
                return None
            if sha256 == entry["sha256"]:
                return path
            reason = (
                "has %d bytes where %d were kept" % (size, entry["size"])
                if size != entry["size"]
                else "differs from what was kept"
            )
            self._remove_damaged(fingerprint, "its file " + reason)
            return None
        return None

    def check_ahead(self) -> None:
        """Begin to read the newest engine, for `find` to have its digest by then.

        Reading takes as long as loading does; meanwhile the vendor's libraries are imported.
        """
        entries = self._entries()
        if entries:
            fingerprint, entry = max(entries, key=lambda item: int(item[1].get("made", 0)))
            path = os.path.join(self._place(fingerprint), entry["engine"])
            found: List[Tuple[str, int]] = []

            def read() -> None:
                with contextlib.suppress(OSError):
                    found.append(digest_file(path))

            self._ahead[path] = (threading.Thread(target=read, daemon=True), found)
            self._ahead[path][0].start()

    def entry(self, fingerprint: str) -> Optional[Dict[str, Any]]:
        """Return the record of a kept engine: its file, `sha256`, `size`, `facts`, `soft`."""
        entry = self._read(fingerprint, _ENTRY)
        if entry is None:
            return None
        name = entry.get("engine")
        whole = (
            isinstance(name, str)
            and os.path.basename(name) == name
            and isinstance(entry.get("sha256"), str)
            and isinstance(entry.get("size"), int)
            and isinstance(entry.get("facts"), dict)
        )
        if not whole or digest(entry["facts"]) != fingerprint:
            self._remove_damaged(fingerprint, "its record does not fit")
            return None
        return entry

    def keep(
        self,
        fingerprint: str,
        built: str,
        facts: Mapping[str, Any],
        *,
        soft: Optional[Mapping[str, Any]] = None,
        sha256: Optional[str] = None,
    ) -> str:
        """Move a built engine, and its timing cache, into the store and return its path.

        The engine of before stays in use until the record names the new one.

        Args:
            fingerprint: What the facts give.
            built: The folder with `engine` and perhaps `timing.cache`.
            facts: The hard facts that give the fingerprint.
            soft: What it was tuned under.
            sha256: What the builder says the engine's digest is.

        Raises:
            IntegrityFault: the engine is not what the builder wrote, or not of this fingerprint.
            InputOutputFault: the store cannot be written.
        """
        if digest(facts) != fingerprint:
            raise IntegrityFault("the engine's facts do not give the fingerprint it is kept under")
        place = self._place(fingerprint)
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
            found, size = digest_file(os.path.join(built, "engine"))
            if sha256 is not None and found != sha256:
                raise IntegrityFault("the engine has changed since it was built")
            name = found[:32] + ".engine"
            move(os.path.join(built, "engine"), os.path.join(place, name))
            timing = os.path.join(built, "timing.cache")
            if os.path.isfile(timing):
                move(timing, os.path.join(place, found[:32] + ".timing"))
            entry = {
                "format": 1, "engine": name, "sha256": found, "size": size,
                "made": int(time.time()), "facts": dict(facts), "soft": dict(soft or {}),
            }  # fmt: skip
            self._write(fingerprint, _ENTRY, entry)
            for other in os.listdir(place):
                if other.endswith((".engine", ".timing")) and not other.startswith(found[:32]):
                    unlink(os.path.join(place, other))
        except OSError as fault:
            raise _unwritable(place, fault) from fault
        return os.path.join(place, name)

    def discard(self, fingerprint: str) -> None:
        """Remove an engine, so that it is built again."""
        place = self._place(fingerprint)
        for name in (_ENTRY, _CHECKED):
            unlink(os.path.join(place, name))
        for name in _listed(place):
            if name.endswith(".engine"):
                unlink(os.path.join(place, name))

    def reject(self, fingerprint: str, reason: str) -> None:
        """Remember why an engine of this fingerprint is not to be built or used again."""
        self._write(fingerprint, _REJECTED, {"reason": reason, "when": int(time.time())})
        self.discard(fingerprint)

    def rejected(self, fingerprint: str) -> Optional[str]:
        """Return the reason, None where the engine was not rejected."""
        found = self._read(fingerprint, _REJECTED)
        return None if found is None else str(found.get("reason", "it was rejected before"))

    def forgive(self, fingerprint: str) -> None:
        """Forget a rejection and the failures before it: the user asks for another try."""
        for name in (_REJECTED, _TRIES):
            unlink(os.path.join(self._place(fingerprint), name))

    def count(self, fingerprint: str, what: str) -> int:
        """Count one more of `what`, such as failed builds, over all starts; return how many."""
        tries = self._read(fingerprint, _TRIES) or {}
        found = tries.get(what)
        tries[what] = (found if isinstance(found, int) else 0) + 1
        self._write(fingerprint, _TRIES, tries)
        count: int = tries[what]
        return count

    def clear(self, fingerprint: str, what: str) -> None:
        """Begin counting `what` from nought."""
        tries = self._read(fingerprint, _TRIES)
        if tries is not None and tries.pop(what, None) is not None:
            self._write(fingerprint, _TRIES, tries)

    def remember_check(self, fingerprint: str, sha256: str, found: Mapping[str, Any]) -> None:
        """Keep what the check of an engine showed."""
        self._write(fingerprint, _CHECKED, {**found, "sha256": sha256})

    def checked(self, fingerprint: str, sha256: str) -> Optional[Dict[str, Any]]:
        """Return what the check of exactly this engine showed; None where it was not checked."""
        found = self._read(fingerprint, _CHECKED)
        return found if found is not None and found.get("sha256") == sha256 else None

    def build_folder(self, fingerprint: str) -> str:
        """Return an empty folder for a build, where the one of the last build was.

        Raises:
            InputOutputFault: the store cannot be written.
        """
        folder = os.path.join(self._place(fingerprint), "build")
        try:
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder, mode=0o700)
        except OSError as fault:
            raise _unwritable(folder, fault) from fault
        return folder

    def beside(self, fingerprint: str, name: str) -> str:
        """Return the path of a file that belongs to an engine, such as its runtime cache."""
        return os.path.join(self._place(fingerprint), name)

    def timing_cache(self, facts: Mapping[str, Any], soft: Mapping[str, Any]) -> Optional[str]:
        """Return the newest timings of this TensorRT on such a GPU, none of other soft facts."""
        wanted, found = [facts.get(name) for name in _TIMED_BY], []
        for fingerprint, entry in self._entries():
            has = [entry["facts"].get(name) for name in _TIMED_BY]
            path = os.path.join(self._place(fingerprint), entry["sha256"][:32] + ".timing")
            same = has == wanted and not soft_differences(entry.get("soft") or {}, soft)
            if same and os.path.isfile(path):
                found.append((int(entry.get("made", 0)), path))
        return max(found)[1] if found else None

    def newest(self) -> Optional[Dict[str, Any]]:
        """Return the record of the engine made last, of any fingerprint."""
        entries = [entry for _, entry in self._entries()]
        return max(entries, key=lambda entry: int(entry.get("made", 0))) if entries else None

    @contextlib.contextmanager
    def building(self, fingerprint: str, wait: Callable[[], bool]) -> Iterator[bool]:
        """Hold the right to build one engine, which one process has at a time.

        Args:
            fingerprint: The engine's.
            wait: Called between tries; lets a moment pass and returns whether to go on waiting.

        Yields:
            Whether it is held.

        Raises:
            InputOutputFault: the store cannot be written.
        """
        import fcntl

        path = self._place(fingerprint) + ".lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            raise _unwritable(path, fault) from fault
        try:
            held = False
            while not held:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                except OSError:
                    if not wait():
                        break
            yield held
        finally:
            os.close(lock)

    def sweep(self, keep: str) -> None:
        """Remove what is not needed any more; what cannot be removed stays.

        Beside `keep` the newest other engine stays, for the way back after an update of
        TensorRT. Other bundles' engines go when nobody has opened them for long.
        """
        entries = sorted(
            ((int(entry.get("made", 0)), name) for name, entry in self._entries() if name != keep),
            reverse=True,
        )
        for _, fingerprint in entries[1:]:
            with self.building(fingerprint, lambda: False) as held:
                if held:
                    shutil.rmtree(self._place(fingerprint), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.utime(self.folder)
        parent = os.path.dirname(self.folder)
        if os.path.basename(parent) != "engines":
            return
        for name in _listed(parent):
            other = os.path.join(parent, name)
            with contextlib.suppress(OSError):
                if _IS_DIGEST(name) and time.time() - os.stat(other).st_mtime > FORGOTTEN_S:
                    shutil.rmtree(other, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder if it was only for this process."""
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, fingerprint: str) -> str:
        return os.path.join(self.folder, fingerprint)

    def _digest(self, path: str) -> Tuple[str, int]:
        thread, found = self._ahead.pop(path, (None, []))
        if thread is not None:
            thread.join()
        return found[0] if found else digest_file(path)

    def _entries(self) -> List[Tuple[str, Dict[str, Any]]]:
        named = ((name, self.entry(name)) for name in filter(_IS_DIGEST, _listed(self.folder)))
        return [(name, entry) for name, entry in named if entry]

    def _remove_damaged(self, fingerprint: str, reason: str) -> None:
        self.discard(fingerprint)
        self._say("the kept engine %s… was damaged and is removed: %s" % (fingerprint[:12], reason))

    def _read(self, fingerprint: str, name: str) -> Optional[Dict[str, Any]]:
        path = os.path.join(self._place(fingerprint), name)
        try:
            return read_record(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self._say("the record `%s` of a kept engine was damaged and is removed" % name)
            unlink(path)
            return None

    def _write(self, fingerprint: str, name: str, record: Mapping[str, Any]) -> None:
        place = self._place(fingerprint)
        path = os.path.join(place, name)
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
            write_record(path, record)
        except OSError as fault:
            raise _unwritable(path, fault) from fault


def _listed(folder: str) -> List[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _unwritable(path: str, fault: OSError) -> InputOutputFault:
    return InputOutputFault(
        "engines cannot be kept in `%s`: %s" % (path, (fault.strerror or str(fault)).lower()),
        hint="make room there, or set XDG_CACHE_HOME to a folder that can be written",
    )
