"""Builds an engine on a device like the target's, over SSH, and brings it back."""

from __future__ import annotations

import dataclasses
import json
import sys
import zipfile
from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.ahead import read_built, request_fields, tell_progress
from packager.backends.tensorrt.ahead import to_error as build_error
from packager.bundle.device import engines_wanted, reasons_against, to_error
from packager.deliver.ssh import Address, Remote
from packager.errors import ExternalToolError, IntegrityError, TargetError, UsageError
from packager.manifest import canonical_json
from packager.process import run
from packager.resources import RUNTIME_LOADER, data_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from packager.artifact import Prebuilt
    from packager.console import Reporter
    from packager.process import Completed
    from packager.target import Target

_DETECT_S: Final = 120.0
_UNPACK_S: Final = 1800.0
# The better part of an hour for a large network on a slow module, several times over.
_BUILD_S: Final = 3 * 3600.0
_MIB: Final = 1 << 20
_BUNDLE: Final = "bundle.edgepack"
_RELEASE: Final = "release"
_OUT: Final = "out"
_LOOK: Final = "look.pyz"
# What the bundle will say of the device by `detect --json`, before there is a bundle.
_LOOKING: Final = """\
import json, sys
if sys.version_info[:2] < (3, 8):
    sys.stderr.write("error: a bundle needs CPython 3.8, and this is %d.%d" % sys.version_info[:2])
    sys.exit(3)
from runtime.detect import detect_device
from runtime.nvidia.device import gpu_facts
from runtime.nvidia.obstacles import obstacles
found = obstacles(json.loads(sys.argv[1]), gpu_facts(), of_class=True)
facts = detect_device()
facts["tensorrt"] = {"reasons": ["%s: %s" % obstacle for obstacle in found]}
print(json.dumps(facts))
"""
_FINGERPRINT: Final = RUNTIME_LOADER + (
    "import json\n"
    "from runtime.nvidia.fingerprint import digest\n"
    "print(digest(json.loads(sys.argv[1])))\n"
)


def look_at(
    url: str, target: Target, *, workdir: Path, reporter: Reporter, config: Path | None = None
) -> None:
    """Refuse a device that cannot build the target's engine, before there is anything to build.

    Importing and compressing a model takes minutes; a device that is off is known in a second.

    Args:
        url: As of `build_on`.
        target: Has TensorRT.
        workdir: For a file of some hundred kilobytes.
        reporter: Is told that the device is asked.
        config: A configuration of ssh in the place of the user's own.

    Raises:
        UsageError: the address.
        DeviceUnreachable: no connection.
        TargetError: the device is not like the target's, or lacks what builds engines.
    """
    address = Address.from_url(url)
    (wanted,) = engines_wanted([target]).values()
    program = workdir / _LOOK
    runtime = data_dir("runtime")
    with zipfile.ZipFile(program, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", _LOOKING)
        for path in sorted(runtime.rglob("*.py")):
            archive.write(path, f"runtime/{path.relative_to(runtime)}")
    reporter.stage(f"look at {address.login}")
    with Remote(address, config=config) as remote:
        there = remote.put(program, _LOOK)
        words = [address.python, there, json.dumps(wanted)]
        _check_device(remote, target, _facts(remote, words))


def build_on(
    url: str,
    bundle: Path,
    target: Target,
    *,
    workdir: Path,
    reporter: Reporter,
    config: Path | None = None,
    timeout_s: float = _BUILD_S,
) -> tuple[Prebuilt, dict[str, Any]]:
    """Build the engine of a bundle on a reference device and return it.

    The bundle is copied into a temporary folder there, which is gone afterwards whatever happens,
    and with it whatever ran in it.

    Args:
        url: `ssh://user@host:port?python=PATH`.
        bundle: Without an engine yet.
        target: What the bundle is for.
        workdir: Where the engine is put.
        reporter: Is told what happens there, and how far the build is.
        config: A configuration of ssh in the place of the user's own.
        timeout_s: Wall-clock limit of the build.

    Returns:
        The engine, and what was measured: as of `build_ahead`, and `device`.

    Raises:
        UsageError: the address, or a bundle without an engine recipe.
        DeviceUnreachable: no connection, or one that broke.
        TargetError: the device is not like the target's, or lacks what builds engines.
        ModelUnsupported: TensorRT does not build this graph; the message says why.
        ExternalToolError: the builder crashed, or ran out of time or memory.
        IntegrityError: what came back is not what was built there.
        InputOutputError: there is no room.
    """
    address = Address.from_url(url)
    recipe = _read_recipe(bundle)
    reporter.stage(f"connect to {address.login}")
    with Remote(address, config=config) as remote:
        size = bundle.stat().st_size / _MIB
        reporter.stage(f"copy {bundle.name} to {address.login} ({size:.1f} MiB)")
        remote.put(bundle, _BUNDLE)
        facts = _facts(remote, _words(remote, "detect", "--json"))
        _check_device(remote, target, facts)
        _ask(remote, _words(remote, "unpack", _RELEASE), timeout_s=_UNPACK_S)
        request = workdir / "request.json"
        request.write_bytes(canonical_json(request_fields(recipe, remote.folder / _RELEASE)))
        reporter.stage(f"build the engine on {address.login}")
        words = _words(remote, "build-engine", remote.put(request, request.name), _OUT)
        done = remote.run(
            words,
            timeout_s=timeout_s,
            check=False,
            environment=_environment(remote),
            on_line=lambda line: tell_progress(line, reporter),
        )
        if done.returncode != 0:
            raise build_error(done, f"`{address.login}`")
        folder = workdir / "reference"
        folder.mkdir()
        for name in ("report.json", "engine"):
            remote.get(f"{_OUT}/{name}", folder / name)
    return _check_engine(folder, recipe, facts, address.login, reporter)


def _read_recipe(bundle: Path) -> dict[str, Any]:
    with zipfile.ZipFile(bundle) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    recipe: dict[str, Any] | None = manifest.get("tensorrt")
    if recipe is None:
        raise UsageError(
            f"`{bundle.name}` has no recipe for a TensorRT engine",
            accepted="a bundle for a Jetson, a GPU server or an RTX target",
        )
    return recipe


def _words(remote: Remote, *words: str) -> list[str]:
    return [remote.address.python, str(remote.folder / _BUNDLE), *words]


def _environment(remote: Remote) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(remote.folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}


def _ask(remote: Remote, words: Sequence[str], *, timeout_s: float) -> Completed:
    """Run a command of the runtime there; its errors come back as ours."""
    done = remote.run(words, timeout_s=timeout_s, check=False, environment=_environment(remote))
    if done.returncode != 0:
        raise to_error(done)
    return done


def _facts(remote: Remote, words: Sequence[str]) -> dict[str, Any]:
    """Return what a program there prints of its device."""
    done = _ask(remote, words, timeout_s=_DETECT_S)
    try:
        # A login script of the user there may have said something before.
        facts: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError as fault:
        raise ExternalToolError(
            f"`{remote.address.login}` does not say what it is",
            hint=f"{remote.address.command()} {remote.address.python} --version",
        ) from fault
    return facts


def _check_device(remote: Remote, target: Target, facts: Mapping[str, Any]) -> None:
    """Refuse a device whose engine would fit no device of the target's class."""
    reasons = reasons_against(target, facts)
    # TensorRT-RTX builds without a GPU for the list that it is given.
    if not reasons and target.tensorrt and target.tensorrt.module != "tensorrt_rtx":
        outlook = facts.get("tensorrt") or {"reasons": ["it shows no NVIDIA GPU"]}
        # An engine for another GPU would be of no use to the target's devices.
        reasons = [*outlook["reasons"], *outlook.get("rebuilt", ())]
    if reasons:
        raise TargetError(
            f"`{remote.address.login}` cannot build for {target.name}: {'; '.join(reasons)}",
            hint=f"{remote.address.command()} shows what is there; `--engine-on` wants a device of "
            f"the class {target.name}",
        )


def _check_engine(
    folder: Path,
    recipe: Mapping[str, Any],
    device: Mapping[str, Any],
    login: str,
    reporter: Reporter,
) -> tuple[Prebuilt, dict[str, Any]]:
    """Return the engine that came back, if it is the one that was built, of what was asked for."""
    built = read_built(folder)
    if built is None:
        raise IntegrityError(
            f"the engine from `{login}` is not the one that was built there: its digest differs",
            hint="build again; a connection or a disk is at fault",
        )
    engine, measured = built
    facts = engine.facts
    strange = [
        name
        for name, wanted in (
            ("module", recipe["module"]),
            ("platform", recipe["platform"]),
            ("artifact", recipe["artifact_sha256"]),
            ("profiles", recipe["profiles"]),
            ("precision", recipe["precision"]),
        )
        if facts.get(name) != wanted
    ]
    if strange or engine.fingerprint != _fingerprint(facts):
        what = ", ".join(strange) or "fingerprint"
        raise IntegrityError(f"the engine from `{login}` says that it is of another {what}")
    if not set(facts["capabilities"]) <= set(recipe["compute_capabilities"]):
        raise TargetError(
            f"`{login}` built for compute capability {', '.join(facts['capabilities'])}, and the "
            f"target's is {', '.join(recipe['compute_capabilities'])}",
        )
    if facts["version"] != recipe["version"]:
        reporter.note(
            f"{login} has {recipe['module']} {facts['version']}, where the target's file says "
            f"{recipe['version']}: devices with another build make an engine of their own"
        )
    return dataclasses.replace(engine, soft=_soft(device)), {**measured, "device": login}


def _fingerprint(facts: Mapping[str, Any]) -> str:
    """Return what our own runtime computes: another would never be found by a device."""
    folder = str(data_dir("runtime"))
    words = [sys.executable, "-I", "-S", "-B", "-c", _FINGERPRINT, folder, json.dumps(facts)]
    return run(words, timeout_s=60).stdout.strip()


def _soft(device: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine was tuned under, as the runtime's `fingerprint.py` names it."""
    gpu: Mapping[str, Any] | None = device.get("gpu")
    if not gpu:
        return {}
    gpus: list[Mapping[str, Any]] = gpu.get("gpus") or [{}]
    found = {name: gpu.get(name) for name in ("driver", "cuda", "power_mode")}
    return {"gpu": gpus[0].get("name"), **found}
