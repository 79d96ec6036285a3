"""Builds the engine of an RTX target on this host, which needs no GPU for it."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Protocol

from packager import errors
from packager.artifact import Prebuilt
from packager.errors import BackendMissing, EdgepackError, ExternalToolError
from packager.manifest import canonical_json, sha256_file, sha256_of
from packager.process import describe, run
from packager.resources import RUNTIME_LOADER, data_dir

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path, PurePath

    from packager.console import Reporter
    from packager.process import Completed
    from packager.target import TensorRT

_TIMEOUT_S: Final = 3600.0
# A ResNet-50 of 102 MB took 0.5 GB; weights are held a few times over while they are laid out.
_LEAST_MEMORY_MIB: Final = 4096
_MEMORY_PER_MODEL: Final = 8
_PROGRAM: Final = RUNTIME_LOADER + (
    "from runtime.nvidia.child import main\nsys.exit(main(sys.argv[1:]))\n"
)
_LIMITS: Final = "EDGEPACK_BUILD_LIMITS"
_KEPT: Final = ("HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH")
_PACKAGES: Final = ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings")
_REQUEST: Final = (
    "module", "version", "compute_capabilities", "platform", "artifact", "artifact_sha256",
    "precision", "strongly_typed", "flags", "profiles", "workspace_mib", "sparse", "dla_core",
    "gpu_fallback", "version_compatible",
)  # fmt: skip
_RELEASE: Final = "release"
_REQUEST_FILE: Final = "request.json"
_LOG: Final = "build.log"
_REPRODUCE: Final = "reproduce.sh"
_HINT: Final = "pip install 'edgepack[rtx]'"
_LOG_LINES: Final = 6
_STEPS: Final = 100
_CLASSES: Final[dict[int, type[EdgepackError]]] = {
    3: BackendMissing,  # TensorRT-RTX itself, as the runtime found it
    **{cls.exit_code: cls for cls in (
        errors.UsageError, errors.ModelUnsupported, errors.IntegrityError,
        errors.InputOutputError,
    )},
}  # fmt: skip


class EngineCache(Protocol):
    """Where finished stages are kept; one appears whole or not at all."""

    def find(self, key: str) -> Path | None:
        """Return a finished stage's folder, or None."""

    def unfinished(self, key: str) -> Path:
        """Return where what did not come to an end lies for a time; its parent exists."""

    def keep(self, key: str, work: Path) -> Path:
        """Move a finished stage's folder into the cache and return where it lies now."""


def build_ahead(
    recipe: Mapping[str, Any],
    core: Path,
    tensorrt: TensorRT,
    *,
    cache: EngineCache,
    workdir: Path,
    reporter: Reporter,
    timeout_s: float = _TIMEOUT_S,
    memory_mib: int | None = None,
) -> tuple[Prebuilt, dict[str, Any]]:
    """Build an engine with TensorRT-RTX in a child process, or find it in the cache.

    The same arguments give the same bytes. Beside the engine lie the build's log, the graph and
    `reproduce.sh`, which repeats it; where it failed they are left as well, and the error says so.

    Args:
        recipe: `manifest["tensorrt"]`.
        core: The ONNX file that its `artifact` names; weights may lie beside it in `NAME.data`.
        tensorrt: The target's.
        cache: Engines that were built before.
        workdir: A folder that is gone afterwards, on the cache's file system.
        reporter: Is told how far the build is.
        timeout_s: Wall-clock limit of the child.
        memory_mib: Limit of the child's own memory; None: by the model's size.

    Returns:
        The engine, and what was measured: `seconds`, `peak_memory_mib`, `size_bytes`, `sha256`,
        `version`, `not_inspected` (why no layer's precision could be looked up).

    Raises:
        BackendMissing: TensorRT-RTX is not installed, or in another version than the target's.
        ModelUnsupported: it does not build this graph; the message says why.
        ExternalToolError: it crashed, or ran out of time or memory.
    """
    check_installed(tensorrt)
    key = sha256_of(canonical_json(ingredients(recipe)))
    kept = cache.find(key)
    if kept is not None:
        found = read_built(kept)
        if found is not None:
            return found
        shutil.rmtree(kept, ignore_errors=True)
    out = workdir / "engine"
    _lay_out(out / _RELEASE, recipe, core)
    _leave(out, recipe)
    size_mib = sum(path.stat().st_size for path in core.parent.glob(f"{core.name}*")) >> 20
    limit = memory_mib or _LEAST_MEMORY_MIB + _MEMORY_PER_MODEL * size_mib
    try:
        done = run(
            [*_command(), out / _REQUEST_FILE, out],
            timeout_s=timeout_s,
            check=False,
            log=out / _LOG,
            env=_environment(limit),
            on_line=lambda line: tell_progress(line, reporter),
        )
        if done.returncode != 0:
            raise to_error(done, "this host")
        built = read_built(out)
        if built is None:
            raise ExternalToolError(f"the builder left no engine\n{describe(done)}")
    except EdgepackError as fault:
        folder = cache.unfinished(key)
        shutil.rmtree(folder, ignore_errors=True)
        out.rename(folder)
        _leave(folder, recipe)
        said = f"{fault.message}\n  log: {folder / _LOG}\n  again: sh {folder / _REPRODUCE}"
        raise type(fault)(said, hint=fault.hint) from fault
    engine, measured = built
    if measured["version"] != tensorrt.version:
        raise _other_version(measured["version"], tensorrt)
    folder = cache.keep(key, out)
    _leave(folder, recipe)
    return Prebuilt(
        path=folder / "engine", fingerprint=engine.fingerprint, facts=engine.facts
    ), measured


def _command() -> list[str]:
    """Return what builds, in front of REQUEST and FOLDER."""
    return [sys.executable, "-I", "-B", "-c", _PROGRAM, str(data_dir("runtime"))]


def _leave(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write what repeats a build from the folder that holds it, where that lies now."""
    request = request_fields(recipe, (folder / _RELEASE).absolute())
    (folder / _REQUEST_FILE).write_bytes(canonical_json(request))
    lines = (
        "#!/bin/sh",
        f"# Repeats the build of this engine: sh {_REPRODUCE} [OUT_DIR]",
        "# shellcheck disable=SC2016  # words in single quotes are meant as they stand",
        "set -eu",
        'here=$(cd "$(dirname "$0")" && pwd)',
        'mkdir -p "${1:-$here/again}"',
        'out=$(cd "${1:-$here/again}" && pwd)',
        f'exec {shlex.join(_command())} "$here/{_REQUEST_FILE}" "$out"',
    )
    (folder / _REPRODUCE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / _REPRODUCE).chmod(0o755)


def check_installed(tensorrt: TensorRT) -> None:
    """Refuse a host that cannot build for the target, before any work.

    Raises:
        BackendMissing: TensorRT-RTX is not installed, or in another version: an engine runs in the
            very release that built it.
    """
    if importlib.util.find_spec(tensorrt.module) is None:
        raise BackendMissing(
            f"engines for this target are built with TensorRT-RTX {tensorrt.version}, "
            "which is not installed",
            hint=_HINT,
        )
    for name in _PACKAGES:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if found != tensorrt.version:
            raise _other_version(found, tensorrt)


def ingredients(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that an engine's bytes depend on, for the key it is cached under.

    The recipe names the graph by its digest and TensorRT-RTX by its version; the builder is our
    runtime's source.
    """
    folder = data_dir("runtime") / "nvidia"
    return {
        "recipe": {name: value for name, value in recipe.items() if name in _REQUEST},
        "builder": {path.name: sha256_file(path) for path in sorted(folder.glob("*.py"))},
    }


def request_fields(recipe: Mapping[str, Any], folder: PurePath) -> dict[str, Any]:
    """Return a build request for the runtime's builder, as its `request.py` reads it.

    Args:
        recipe: `manifest["tensorrt"]`.
        folder: Absolute, where the build runs; below it lies the recipe's `artifact`.
    """
    return {**{name: recipe[name] for name in _REQUEST}, "folder": str(folder)}


def tell_progress(line: str, reporter: Reporter) -> None:
    """Hand a line of the builder's output on, where it tells a step."""
    try:
        step = json.loads(line)
        fraction, phase = float(step["progress"]), str(step["phase"])
        left = step["seconds_left"]
    except (ValueError, KeyError, TypeError):
        return
    text = phase if left is None else f"{phase}, about {float(left):.0f} s left"
    reporter.progress(int(fraction * _STEPS), _STEPS, text)


def to_error(done: Completed, where: str) -> EdgepackError:
    """Return what a failed builder said, in its own words and with the log's last lines.

    Args:
        done: The builder's process.
        where: `this host`, or the device's name.
    """
    said = _last_words(done.stdout)
    if said is None:
        ended = -done.returncode if done.returncode < 0 else done.returncode - 128
        how = f"was ended by signal {ended}" if ended > 0 else f"failed (exit {done.returncode})"
        return ExternalToolError(
            f"the builder of engines {how} on {where}\n{describe(done)}", hint="edgepack doctor"
        )
    cls = _CLASSES.get(said.get("exit_code", 0), ExternalToolError)
    log = "".join(f"\n  | {line}" for line in said.get("log", [])[-_LOG_LINES:])
    return cls(f"{said['error']}{log}", hint=said.get("hint"))


def _last_words(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and isinstance(said.get("error"), str):
            return said
    return None


def _other_version(found: str, tensorrt: TensorRT) -> BackendMissing:
    return BackendMissing(
        f"this host has TensorRT-RTX {found}, and the target's engines run only in "
        f"{tensorrt.version}",
        hint=f"pip install 'tensorrt-rtx-cu13=={tensorrt.version}'",
    )


def _environment(memory_mib: int) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, _LIMITS: f"memory_mib={memory_mib},parent={os.getpid()}"}


def _lay_out(release: Path, recipe: Mapping[str, Any], core: Path) -> None:
    """Give the graph the place that it has in a bundle; a link would lead out of the folder."""
    place = release / recipe["artifact"]
    place.parent.mkdir(parents=True)
    for source, target in ((core, place), (core.with_name(f"{core.name}.data"),) * 2):
        if not source.is_file():
            continue
        copy = target if target is place else place.with_name(source.name)
        try:
            copy.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, copy)


def read_built(folder: Path) -> tuple[Prebuilt, dict[str, Any]] | None:
    """Return the engine in a folder and its measurements; None where it is damaged."""
    path = folder / "engine"
    try:
        report = json.loads((folder / "report.json").read_bytes())
        if sha256_file(path) != report["sha256"]:
            return None
        engine = Prebuilt(path=path, fingerprint=report["fingerprint"], facts=report["facts"])
        measured = {
            "seconds": report["seconds"],
            "peak_memory_mib": report["peak_memory_mib"],
            "size_bytes": report["size"],
            "sha256": report["sha256"],
            "version": report["version"],
            "not_inspected": report["not_inspected"],
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return engine, measured
