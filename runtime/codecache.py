"""Keeps the compiled modules of a release in this user's cache: compiling is most of a start.

CPython would keep them beside the sources, where a release holds listed files only. One file per
release and interpreter, `$XDG_CACHE_HOME/edgepack/compiled/KEY`, is written by a server once the
sources were verified, and read before that the next time. Whoever can write there already acts as
this user; others cannot, else it is left alone. `python3 -B` does without.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import stat
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, ModuleType
from typing import Any, Dict, Optional, Sequence, Tuple

_PACKAGE = __name__.split(".", maxsplit=1)[0]
_DIGEST_BYTES = 32
_MAX_BYTES = 1 << 24
# Releases that came and went, and interpreters: what is older is removed.
_MOST_FILES = 8


class CodeCache:
    """Finds the runtime's modules among the kept ones first, and remembers what it had to compile.

    Args:
        root: The bundle file or release folder that modules come from.
        path: The file to keep them in, in a folder of its own.
    """

    def __init__(self, root: str, path: str) -> None:
        self._root = root
        self._path = path
        self._modules = _read(path)
        self._compiled = False

    def find_spec(
        self,
        name: str,
        path: Optional[Sequence[str]] = None,
        target: Optional[ModuleType] = None,
    ) -> Optional[ModuleSpec]:
        """Return where a module is, as `importlib.abc.MetaPathFinder` says."""
        if name.split(".", maxsplit=1)[0] != _PACKAGE:
            return None
        if name not in self._modules:
            found = PathFinder.find_spec(name, path)
            if found is None or found.loader is None:
                return None
            code = found.loader.get_code(name)  # type: ignore[attr-defined]
            self._modules[name] = (found.submodule_search_locations is not None, code)
            self._compiled = True
        is_package, code = self._modules[name]
        loader: Any = self  # has what the import system asks for; no class of its own
        spec = ModuleSpec(name, loader, origin=code.co_filename, is_package=is_package)
        spec.has_location = True
        if is_package:
            # beside what the parent's path says by now: a bundle may be another one's by then
            last = name.rpartition(".")[2]
            bases = [self._root] if path is None else path
            spec.submodule_search_locations = [os.path.join(base, last) for base in bases]
        return spec

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        """Leave it to the interpreter, as `importlib.abc.Loader` says."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's code, as `importlib.abc.Loader` says."""
        # this release's own code: see the head of this file for who could have written it
        exec(self._modules[module.__name__][1], module.__dict__)  # noqa: S102

    def keep(self) -> None:
        """Write what was compiled, if anything was, and forget the modules that are loaded."""
        if self._compiled:
            self._write()
        for name in set(self._modules).intersection(sys.modules):
            del self._modules[name]

    def _write(self) -> None:
        """Write all of it or nothing; where that cannot be, do without."""
        data = marshal.dumps(self._modules)
        folder, name = os.path.split(self._path)
        partial = os.path.join(folder, ".%s.%d.part" % (name, os.getpid()))
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if not _is_own(os.stat(folder)):
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(partial, flags, 0o600), "wb") as stream:
                stream.write(hashlib.sha256(data).digest() + data)
            os.replace(partial, self._path)
            _prune(folder)
        except OSError:
            _unlink(partial)


_cache: Optional[CodeCache] = None


def install(root: str, loader: Any) -> None:
    """Take the modules of a release from the cache from here on, where this user has one.

    Args:
        root: The bundle file or release folder that runs.
        loader: What loads from it; has `get_data`.
    """
    global _cache  # noqa: PLW0603 - one process runs one release
    try:
        # verified or not: what was kept for other sources lies under another digest
        manifest_digest = loader.get_data(os.path.join(root, "manifest.sha256"))
    except OSError:
        return  # the check of the release tells of it
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):
        return
    # Code objects hold the paths of their sources, and belong to one build of one interpreter.
    parts = (os.fsencode(root), manifest_digest, sys.version.encode(), b"%d" % sys.flags.optimize)
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()
    _cache = CodeCache(root, os.path.join(base, "edgepack", "compiled", key))
    sys.meta_path.insert(0, _cache)


def keep() -> None:
    """Write what this process had to compile; call this only once its sources are verified."""
    if _cache is not None:
        _cache.keep()


def _read(path: str) -> Dict[str, Tuple[bool, CodeType]]:
    """Return the kept modules; none where there are none, or where others could have put them."""
    try:
        if not _is_own(os.stat(os.path.dirname(path))):
            return {}
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not (stat.S_ISREG(status.st_mode) and _is_own(status)):
                return {}
            data = stream.read(_MAX_BYTES)
    except OSError:
        return {}
    content = memoryview(data)[_DIGEST_BYTES:]
    # marshal may crash on a file that was cut short or has rotten
    if hashlib.sha256(content).digest() != data[:_DIGEST_BYTES]:
        return {}
    modules: Dict[str, Tuple[bool, CodeType]] = marshal.loads(content)  # noqa: S302 - as above
    return modules


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _prune(folder: str) -> None:
    with os.scandir(folder) as found:
        ages = sorted((entry.stat().st_mtime, entry.path) for entry in found)
    for _, path in ages[:-_MOST_FILES]:
        _unlink(path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
