"""Examines the build host: interpreter, packages, emulators, GPU, cache and disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from packager.host.findings import Finding
from packager.host.nvidia import nvidia_findings
from packager.target import all_targets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NEEDED = ("click", "jinja2", "numpy", "onnx", "onnxruntime", "onnxscript", "onnxslim", "pillow")
_LOW_DISK_BYTES = 2_000_000_000


def examine_host(cache_dir: Path) -> list[Finding]:
    """Return every finding, in the order a person would mend them."""
    return [
        *_interpreter(),
        *_packages(),
        *_emulators(),
        *nvidia_findings(),
        *_storage(cache_dir),
        *_libraries(cache_dir),
    ]


def _interpreter() -> Iterator[Finding]:
    yield Finding(
        status="ok" if sys.version_info >= (3, 11) else "missing",
        what="Python",
        found=f"{platform.python_version()} on {platform.machine()}",
        fix=None if sys.version_info >= (3, 11) else "install CPython 3.11 or later",
    )


def _packages() -> Iterator[Finding]:
    for name in _NEEDED:
        version = _version(name)
        yield Finding(
            status="ok" if version else "missing",
            what=name,
            found=version or "not installed",
            fix=None if version else f"pip install {name}",
        )
    version = _version("torch")
    yield Finding(
        status="ok" if version else "optional",
        what="torch",
        found=version or "not installed: torch modules and .pt2 files cannot be imported",
        fix=None if version else "pip install 'edgepack[torch]'",
    )


def _emulators() -> Iterator[Finding]:
    for arch, cpus in sorted({(t.arch, t.emulators) for t in all_targets() if t.emulators}):
        tool = f"qemu-{arch}"
        path = shutil.which(tool)
        yield Finding(
            status="ok" if path else "optional",
            what=tool,
            found=path or f"not installed: bundles are not checked under {', '.join(cpus)}",
            fix=None if path else "apt-get install qemu-user",
        )


def _storage(cache_dir: Path) -> Iterator[Finding]:
    folder = cache_dir
    while not folder.exists():
        folder = folder.parent
    writable = os.access(folder, os.W_OK)
    yield Finding(
        status="ok" if writable else "missing",
        what="cache folder",
        found=str(cache_dir) if writable else f"{cache_dir} cannot be written",
        fix=None if writable else "--cache-dir DIR, or set XDG_CACHE_HOME",
    )
    free = shutil.disk_usage(folder).free
    low = free < _LOW_DISK_BYTES
    yield Finding(
        status="optional" if low else "ok",
        what="disk",
        found=f"{free / 1e9:.1f} GB free for the cache",
        fix="free some space, or --cache-dir DIR" if low else None,
    )


def _libraries(cache_dir: Path) -> Iterator[Finding]:
    seen: set[str] = set()
    for target in all_targets():
        library = target.engine.library
        if library.member_sha256 in seen:
            continue
        seen.add(library.member_sha256)
        cached = (cache_dir / "engines" / library.member_sha256).is_dir()
        yield Finding(
            status="ok" if cached else "optional",
            what=f"{target.engine.name} {target.engine.version} for {target.arch}",
            found="cached" if cached else "not cached: the first build downloads it by its digest",
            fix=None if cached else "build once with a network, or use --wheelhouse DIR",
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
