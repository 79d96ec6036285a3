"""Fetches an engine's shared library by package and digest, and compresses it once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.archive import CHUNK_BYTES, compress_xz, sync_folder
from packager.errors import BackendMissing, EdgepackError, InputOutputError, IntegrityError
from packager.manifest import canonical_json, sha256_file
from packager.process import describe, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from packager.console import Reporter
    from packager.target import EngineLibrary

_DOWNLOAD_TIMEOUT_S: Final = 1200.0
_GLIBC_TAGS: Final = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_WHEELHOUSE_HINT: Final = (
    "fetch the wheel on a machine that has a network, and build with `--wheelhouse DIR`"
)


@dataclass(frozen=True, kw_only=True)
class FetchedLibrary:
    """An engine's shared library, checked by its digest.

    Attributes:
        path: The library.
        xz_path: The same as one xz stream.
        licenses: Texts that must travel along, by file name.
    """

    path: Path
    xz_path: Path
    licenses: dict[str, Path]
    sha256: str
    size: int


def fetch_library(
    library: EngineLibrary, *, cache: Path, wheelhouse: Path | None, reporter: Reporter
) -> FetchedLibrary:
    """Return the library from the cache, the installed package, a wheelhouse or the network.

    The cache is checked by digest at every use and redone where it is damaged. Several builds may
    run at once.

    Args:
        library: What to fetch; its digests decide.
        cache: Below it lies `engines/DIGEST`.
        wheelhouse: A folder of wheels that replaces the network.
        reporter: Told of downloads and of the compression, which takes half a minute once.

    Raises:
        BackendMissing: it is nowhere, and there is no network.
        IntegrityError: the wheel or the library is not the one the target names.
        InputOutputError: the cache cannot be written.
    """
    engines = cache / "engines"
    try:
        engines.mkdir(parents=True, exist_ok=True)
        with _locked(engines / f"{library.member_sha256}.lock"):
            folder = engines / library.member_sha256
            found = _read_cached(folder, library)
            if found is None:
                _remake(folder, library, wheelhouse, reporter)
                found = _read_cached(folder, library)
    except OSError as fault:
        raise InputOutputError(
            f"the cache `{engines}` cannot be written: {(fault.strerror or str(fault)).lower()}",
            hint="choose another with `--cache-dir DIR`",
        ) from fault
    if found is None:
        raise InputOutputError(f"the cache `{engines}` does not keep what is written to it")
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _read_cached(folder: Path, library: EngineLibrary) -> FetchedLibrary | None:
    """Return what the cache holds, or None where anything is absent or damaged."""
    try:
        facts: dict[str, Any] = json.loads((folder / "facts.json").read_bytes())
        digests = facts["files"]
        names = {"library.so", "library.so.xz", *map(_license_name, library.licenses)}
        if set(digests) != names or digests["library.so"] != library.member_sha256:
            return None
        if any(sha256_file(folder / name) != digest for name, digest in digests.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return FetchedLibrary(
        path=folder / "library.so",
        xz_path=folder / "library.so.xz",
        licenses={name: folder / name for name in map(_license_name, library.licenses)},
        sha256=library.member_sha256,
        size=library.member_size,
    )


def _license_name(member: str) -> str:
    return member.rsplit("/", 1)[-1]


def _remake(
    folder: Path, library: EngineLibrary, wheelhouse: Path | None, reporter: Reporter
) -> None:
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as name:
        work = Path(name)
        fresh = work / "fresh"
        fresh.mkdir()
        if not _copy_installed(library, fresh):
            wheel = _find_wheel(library, wheelhouse, work, reporter)
            _extract(library, wheel, fresh)
        reporter.stage(f"compress the library of {library.package} {library.version}, once")
        with (fresh / "library.so.xz").open("wb") as out:
            compress_xz(fresh / "library.so", out)
        files = {path.name: sha256_file(path) for path in fresh.iterdir()}
        (fresh / "facts.json").write_bytes(canonical_json({"files": files}))
        for path in fresh.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        if folder.exists():
            folder.rename(work / "damaged")
        fresh.rename(folder)
    sync_folder(folder.parent)


def _copy_installed(library: EngineLibrary, out: Path) -> bool:
    """Copy from the package installed in this Python, if it has the very same library."""
    try:
        package = metadata.distribution(library.package)
    except metadata.PackageNotFoundError:
        return False
    source = Path(str(package.locate_file(library.member)))
    licenses = [Path(str(package.locate_file(member))) for member in library.licenses]
    if not source.is_file() or not all(path.is_file() for path in licenses):
        return False
    if source.stat().st_size != library.member_size:
        return False
    shutil.copyfile(source, out / "library.so")
    if sha256_file(out / "library.so") != library.member_sha256:
        (out / "library.so").unlink()
        return False
    for path in licenses:
        shutil.copyfile(path, out / path.name)
    return True


def _find_wheel(
    library: EngineLibrary, wheelhouse: Path | None, work: Path, reporter: Reporter
) -> Path:
    what = f"{library.package} {library.version}"
    if wheelhouse is None:
        reporter.stage(f"download {what} ({library.platform})")
        wheels = _download(library, work)
    else:
        stem = f"{library.package.replace('-', '_')}-{library.version}-"
        wheels = [p for p in sorted(wheelhouse.glob("*.whl")) if p.name.startswith(stem)]
        wheels = [p for p in wheels if library.platform in p.name]
    for wheel in wheels:
        if sha256_file(wheel) == library.wheel_sha256:
            return wheel
    if wheels:
        raise IntegrityError(
            f"`{wheels[0].name}` is not the wheel that the target names",
            accepted=f"SHA-256 {library.wheel_sha256}",
        )
    raise BackendMissing(
        f"`{wheelhouse}` has no wheel of {what} for {library.platform}",
        hint=" ".join(_pip_words(library, Path("requirements.txt"), Path("DIR")))
        + f" with `{_requirement(library)}` in requirements.txt",
    )


def _requirement(library: EngineLibrary) -> str:
    return f"{library.package}=={library.version} --hash=sha256:{library.wheel_sha256}"


def _pip_words(library: EngineLibrary, requirements: Path, out: Path) -> list[str]:
    arch = next(
        (library.platform[len(t) + 1 :] for t in _GLIBC_TAGS if library.platform.startswith(t)),
        None,
    )
    # pip takes the tags literally: a wheel of an older glibc is only found under its own tag.
    platforms = [library.platform] + [f"{tag}_{arch}" for tag in _GLIBC_TAGS if arch]
    words = ["pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
             "--implementation", "cp"]  # fmt: skip
    if library.python_tag.startswith("cp"):
        words += ["--python-version", f"{library.python_tag[2]}.{library.python_tag[3:]}"]
    for abi in (library.python_tag, "abi3", "none"):
        words += ["--abi", abi]
    for platform in dict.fromkeys(platforms):
        words += ["--platform", platform]
    return [*words, "-r", str(requirements), "-d", str(out)]


def _download(library: EngineLibrary, work: Path) -> list[Path]:
    requirements, out = work / "requirements.txt", work / "wheels"
    requirements.write_text(_requirement(library) + "\n", encoding="utf-8")
    out.mkdir()
    words = _pip_words(library, requirements, out)
    done = run(
        [sys.executable, "-m", *words, "--no-input", "--disable-pip-version-check", "-q"],
        timeout_s=_DOWNLOAD_TIMEOUT_S,
        check=False,
        error=BackendMissing,
        hint=_WHEELHOUSE_HINT,
    )
    if done.returncode == 0:
        return sorted(out.glob("*.whl"))
    cls: type[EdgepackError] = BackendMissing
    if "DO NOT MATCH THE HASHES" in done.stderr:
        cls = IntegrityError
    raise cls(
        f"{library.package} {library.version} cannot be downloaded\n{describe(done)}",
        hint=_WHEELHOUSE_HINT,
    )


def _extract(library: EngineLibrary, wheel: Path, out: Path) -> None:
    wanted = {library.member: "library.so"}
    wanted |= {member: _license_name(member) for member in library.licenses}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, name in wanted.items():
                with archive.open(member) as source, (out / name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, CHUNK_BYTES)
    except (zipfile.BadZipFile, KeyError) as fault:
        raise IntegrityError(
            f"`{wheel.name}` does not hold what the target names: {fault}"
        ) from fault
    path = out / "library.so"
    if path.stat().st_size != library.member_size or sha256_file(path) != library.member_sha256:
        raise IntegrityError(f"`{library.member}` in `{wheel.name}` is not what the target names")
