"""Opens a release: an unpacked folder, or a bundle file that is unpacked once into the cache."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any, Dict, Iterator, Optional, Set, Tuple

from .errors import DeviceError, InputOutputFault, IntegrityFault, UsageFault
from .manifest import MAX_MANIFEST_BYTES, Manifest, digest_line, parse_manifest

# Few rounds: after each one this waits for the thread that imports meanwhile.
_CHUNK_BYTES = 1 << 22
_FOLDER_MODE = 0o755
_COMPILED = "__pycache__"


class Release:
    """A verified release in a folder of its own.

    Attributes:
        folder: Where it lies.
        manifest: The JSON object of `manifest.json`.
        digest: The bundle's identity.
    """

    def __init__(self, folder: str, manifest: Manifest, temporary: Optional[str] = None) -> None:
        self.folder = folder
        self.manifest: Dict[str, Any] = manifest.fields
        self.digest = manifest.digest
        self._temporary = temporary

    def path(self, name: str) -> str:
        """Return where one of the manifest's paths lies."""
        return os.path.join(self.folder, *name.split("/"))

    def close(self) -> None:
        """Remove the folder if it was only for this process."""
        if self._temporary is not None:
            _remove(self._temporary)
            self._temporary = None

    def __enter__(self) -> Release:  # noqa: PYI034 - Self came with 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_release(path: str, running: bool = False) -> Release:
    """Verify a release folder, or the cached release of a bundle file, and return it.

    A bundle file is unpacked once into `$XDG_CACHE_HOME/edgepack/releases/DIGEST`, or, where that
    cannot be written, into a temporary folder that `close()` removes.

    Args:
        path: The folder or file.
        running: This process was started from it; see `verify_release`.

    Raises:
        IntegrityFault: anything differs from the manifest.
        InputOutputFault: nothing to read at `path`, or no place to unpack to.
    """
    if os.path.isdir(path):
        return Release(path, verify_release(path, running))
    from .archive import read_manifest  # a start from a folder does without

    manifest = read_manifest(path)
    cache = _cache_folder()
    if cache is not None:
        cached = _open_cached(path, manifest, cache)
        if cached is not None:
            return cached
    return _open_temporary(path, manifest)


def restore_release(path: str, digest: str) -> None:
    """Unpack a bundle file into the cache once more, after its release was deleted from there.

    Raises:
        IntegrityFault: it is another bundle by now, or a damaged one.
        InputOutputFault: nothing to read at `path`, or no place to unpack to.
    """
    from .archive import read_manifest

    manifest = read_manifest(path)
    if manifest.digest != digest:
        raise IntegrityFault("another bundle lies at `%s` by now" % path)
    cache = _cache_folder()
    if cache is None or _open_cached(path, manifest, cache) is None:
        raise InputOutputFault("the cache cannot be written")


def unpack(path: str, folder: str) -> Manifest:
    """Unpack a bundle into a folder that does not exist or is empty; it appears whole.

    Raises:
        UsageFault: the folder holds something.
        IntegrityFault: anything differs from the manifest.
        InputOutputFault: the bundle cannot be read, or the folder not written.
    """
    from .archive import unpack_into

    target = os.path.abspath(folder)
    if os.path.islink(target) or (os.path.exists(target) and not os.path.isdir(target)):
        raise UsageFault("`%s` exists and is no folder" % folder, "name a new folder")
    if os.path.isdir(target) and os.listdir(target):
        raise UsageFault("`%s` is not empty" % folder, "name a new folder")
    parent = os.path.dirname(target)
    try:
        os.makedirs(parent, exist_ok=True)
        partial = _partial_folder(parent, os.path.basename(target))
    except OSError as fault:
        raise _unwritable(parent, fault) from fault
    try:
        manifest = unpack_into(path, partial)
        _publish(partial, target)
    except BaseException:
        _remove(partial)
        raise
    return manifest


def verify_release(folder: str, running: bool = False) -> Manifest:
    """Compare every file and folder of a release with its manifest.

    Args:
        folder: The release.
        running: This process was started as `python3 FOLDER`. CPython then keeps the compiled
            `__main__.py` before any code of ours can tell it not to; that one file is passed over
            here, and removed by `forget_compiled_main`. To everyone else it is an added file.

    Raises:
        IntegrityFault: something is changed, added, missing, re-moded or linked.
        InputOutputFault: something cannot be read.
    """
    try:
        data = _read_small(os.path.join(folder, "manifest.json"))
        manifest = parse_manifest(data)
        if _read_small(os.path.join(folder, "manifest.sha256")) != digest_line(manifest):
            raise IntegrityFault("the digest of `manifest.json` differs")
        _compare_names(folder, manifest, running)
        for record in manifest.files:
            found = _digest_file(os.path.join(folder, record.path), record.path, record.size)
            if found != record.sha256:
                raise IntegrityFault("`%s` differs from the manifest" % record.path)
    except OSError as fault:
        raise InputOutputFault(
            "`%s` cannot be read: %s" % (fault.filename or folder, _reason(fault))
        ) from fault
    return manifest


def forget_compiled_main(folder: str) -> None:
    """Remove the compiled `__main__.py` that CPython kept when it was started on a folder."""
    compiled = os.path.join(folder, _COMPILED)
    try:
        for name in os.listdir(compiled):
            if name.startswith("__main__."):
                os.unlink(os.path.join(compiled, name))
        os.rmdir(compiled)
    except OSError:
        pass


def _compare_names(folder: str, manifest: Manifest, running: bool) -> None:
    modes = {record.path: record.mode for record in manifest.files}
    modes["manifest.json"] = modes["manifest.sha256"] = 0o644
    folders: Set[str] = {
        path[:cut] for path in modes for cut in range(len(path)) if path[cut] == "/"
    }
    missing = set(modes) | folders
    for path, status in _walk(folder, ""):
        if running and (path == _COMPILED or path.startswith(_COMPILED + "/__main__.")):
            continue
        if stat.S_ISLNK(status.st_mode):
            raise IntegrityFault("`%s` is a symbolic link" % path)
        mode = stat.S_IMODE(status.st_mode)
        if path in modes and stat.S_ISREG(status.st_mode):
            if status.st_nlink != 1:
                raise IntegrityFault("`%s` has a second name (a hard link)" % path)
            if mode != modes[path]:
                raise IntegrityFault("`%s` has mode %o, not %o" % (path, mode, modes[path]))
        elif path in folders and stat.S_ISDIR(status.st_mode):
            if mode != _FOLDER_MODE:
                raise IntegrityFault("`%s` has mode %o, not %o" % (path, mode, _FOLDER_MODE))
        else:
            raise IntegrityFault("`%s` is not in the manifest" % path)
        missing.discard(path)
    if missing:
        raise IntegrityFault("`%s` is missing" % min(missing))


def _walk(folder: str, prefix: str) -> Iterator[Tuple[str, os.stat_result]]:
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda e: e.name):
            path = prefix + entry.name
            yield path, entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, path + "/")


def _digest_file(path: str, name: str, size: int) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(size + 1, _CHUNK_BYTES)))
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as stream:
        if os.fstat(descriptor).st_size != size:
            raise IntegrityFault("`%s` differs from the manifest in size" % name)
        while True:
            count = stream.readinto(buffer)
            if not count:
                return digest.hexdigest()
            digest.update(buffer[:count])


def _read_small(path: str) -> bytes:
    name = os.path.basename(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as fault:
        raise IntegrityFault(
            "`%s` is no release: `%s` %s" % (os.path.dirname(path), name, _reason(fault))
        ) from fault
    with open(descriptor, "rb") as stream:
        data = stream.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise IntegrityFault("`%s` is too large" % name)
    return data


def _cache_folder() -> Optional[str]:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    # The specification has relative values ignored; `~` stays where there is no home.
    return os.path.join(base, "edgepack", "releases") if os.path.isabs(base) else None


def _open_cached(path: str, manifest: Manifest, cache: str) -> Optional[Release]:
    """Return the cached release, unpacking it where it is absent or damaged; None: no cache."""
    import fcntl

    folder = os.path.join(cache, manifest.digest)
    try:
        os.makedirs(cache, mode=0o700, exist_ok=True)
        if not _is_private(cache):
            return None
        lock = os.open(folder + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        # Held while another process unpacks the same bundle: its work is then found done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.isdir(folder):
            try:
                if verify_release(folder).digest == manifest.digest:
                    return Release(folder, manifest)
            except DeviceError:
                pass
            # Another process may still serve from it: a rename leaves its open files alone.
            aside = _partial_folder(cache, manifest.digest[:16])
            os.rename(folder, os.path.join(aside, "damaged"))
            _remove(aside)
        try:
            unpack(path, folder)
        except InputOutputFault:
            return None
        return Release(folder, manifest)
    except OSError:
        return None
    finally:
        os.close(lock)


def _is_private(folder: str) -> bool:
    status = os.stat(folder)
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _open_temporary(path: str, manifest: Manifest) -> Release:
    import tempfile

    try:
        temporary = tempfile.mkdtemp(prefix="edgepack-")
    except OSError as fault:
        raise _unwritable("TMPDIR", fault) from fault
    folder = os.path.join(temporary, manifest.digest[:16])
    try:
        unpack(path, folder)
    except BaseException:
        _remove(temporary)
        raise
    return Release(folder, manifest, temporary)


def _partial_folder(parent: str, name: str) -> str:
    # Names of killed processes do not collide with ours: mkdir is the test.
    for number in range(10_000):
        folder = os.path.join(parent, ".%s.%d.%d.part" % (name, os.getpid(), number))
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError("too many unfinished folders beside `%s`" % name)


def _publish(partial: str, target: str) -> None:
    from .archive import sync_folder

    try:
        os.chmod(partial, _FOLDER_MODE)
        # Renaming a folder over an empty one is atomic, and refused where it is not empty.
        os.rename(partial, target)
        sync_folder(os.path.dirname(target))
    except OSError as fault:
        raise _unwritable(target, fault) from fault


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _unwritable(folder: str, fault: OSError) -> InputOutputFault:
    return InputOutputFault("`%s` cannot be written: %s" % (folder, _reason(fault)))


def _reason(fault: OSError) -> str:
    return (fault.strerror or str(fault)).lower()
