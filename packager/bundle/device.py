"""Starts the runtime as a device does: our own copy of it, or the one inside a bundle."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager import errors
from packager.errors import EdgepackError, ExternalToolError
from packager.process import describe, run
from packager.resources import RUNTIME_LOADER, data_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from packager.console import Reporter
    from packager.process import Completed
    from packager.target import Target

_KEPT: Final = ("HOME", "TMPDIR", "LANG", "LC_ALL")
# As long as one request may take a slow machine.
_VERIFY_TIMEOUT_S: Final = 600.0
# Which GPUs a process sees, and where their libraries lie.
_GPU_VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
_CLASSES: Final[dict[int, type[EdgepackError]]] = {
    cls.exit_code: cls
    for cls in (
        errors.UsageError, errors.TargetError, errors.BackendMissing, errors.ModelUnsupported,
        errors.BudgetMissed, errors.IntegrityError, errors.InputOutputError,
    )
}  # fmt: skip
# What the runtime prints last: `error: …`, an empty line, `hint: …`.
_MESSAGE: Final = re.compile(
    r"^error: (?P<error>.*?)(\n\nhint: (?P<hint>.*))?\Z", re.MULTILINE | re.DOTALL
)

_MAIN: Final = """\
from runtime.main import main
sys.exit(main(sys.argv[1:], None))
"""
# Lines of progress, then the result as the last one.
_VERIFY: Final = """\
import json
from runtime.errors import DeviceError
from runtime.verify import run_verify
def told(done, total):
    print(json.dumps({"sample": done, "of": total}), flush=True)
try:
    print(json.dumps(run_verify(sys.argv[1], True, told=told)))
except DeviceError as fault:
    hint = "\\n\\nhint: " + fault.hint if fault.hint else ""
    sys.stderr.write("error: " + fault.message + hint + "\\n")
    sys.exit(fault.exit_code)
"""
_SAMPLES: Final = """\
import json
from runtime.errors import DeviceError
from runtime.manifest import parse_manifest
from runtime.release import Release
from runtime.verify import run_samples
def told(done, total):
    print(json.dumps({"sample": done, "of": total}), flush=True)
with open(sys.argv[1] + "/manifest.json", "rb") as stream:
    release = Release(sys.argv[1], parse_manifest(stream.read()))
try:
    print(json.dumps(run_samples(release, told)))
except DeviceError as fault:
    sys.exit("error: " + fault.message)
"""
# Not started with -S: it is asked whether this Python imports TensorRT.
_OBSTACLES: Final = """\
import json
from runtime.nvidia.device import gpu_facts
from runtime.nvidia.obstacles import obstacles
facts = gpu_facts()
wanted = json.loads(sys.argv[1])
found = {name: obstacles(fields, facts, of_class=True) for name, fields in wanted.items()}
print(json.dumps({"gpu": facts, "obstacles": found}))
"""


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """One thing in the way of an engine on this machine, and a command or step that mends it."""

    what: str
    fix: str


def own_argv(arguments: Sequence[str], *, cache_dir: Path | None = None) -> list[str]:
    """Return the command that runs our own copy of the runtime.

    Args:
        arguments: As on a device.
        cache_dir: Where its compiled modules are kept; None keeps none.
    """
    return _own(_MAIN, cache_dir, *arguments)


def samples_argv(release: Path, *, cache_dir: Path | None = None) -> list[str]:
    """Return the command that runs the golden samples of an unpacked release already verified."""
    return _own(_SAMPLES, cache_dir, str(release))


def verify_here(bundle: Path, *, cache_dir: Path, reporter: Reporter) -> dict[str, Any]:
    """Check a bundle and run its golden samples here, and tell which of them is run.

    Returns:
        As `verify --json` prints it.

    Raises:
        EdgepackError: as of `run_runtime`.
    """
    done = run(
        _own(_VERIFY, cache_dir, str(bundle)),
        timeout_s=_VERIFY_TIMEOUT_S,
        check=False,
        env=bundle_environment(cache_dir),
        on_line=lambda line: tell_sample(line, reporter),
    )
    if done.returncode != 0:
        raise to_error(done)
    return last_line(done)


def tell_sample(line: str, reporter: Reporter) -> None:
    """Hand a line on where it says which golden sample is run."""
    try:
        said = json.loads(line)
        number, total = int(said["sample"]), int(said["of"])
    except (ValueError, KeyError, TypeError):
        return
    reporter.progress(number, total, f"golden sample {number + 1} of {total}")


def last_line(done: Completed) -> dict[str, Any]:
    """Return the result of a program that told its progress before."""
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _own(program: str, cache_dir: Path | None, *arguments: str) -> list[str]:
    compiled = ["-B"]
    if cache_dir is not None:
        compiled = ["-X", f"pycache_prefix={cache_dir.absolute() / 'compiled'}"]
    folder = str(data_dir("runtime"))
    return [
        sys.executable,
        "-I",
        "-S",
        *compiled,
        "-c",
        RUNTIME_LOADER + program,
        folder,
        *arguments,
    ]


def bundle_argv(bundle: Path, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a bundle, or an unpacked release, as a device does."""
    return [sys.executable, "-I", str(bundle.absolute()), *arguments]


def bundle_environment(cache_dir: Path) -> dict[str, str]:
    """Return the whole environment of a runtime whose releases are unpacked below `cache_dir`."""
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    # The runtime adds `edgepack` itself: the default folder is shared with bundles run directly.
    base = cache_dir.parent if cache_dir.name == "edgepack" else cache_dir
    return {**kept, "XDG_CACHE_HOME": str(base.absolute())}


def run_runtime(
    arguments: Sequence[str],
    *,
    cache_dir: Path,
    bundle: Path | None = None,
    timeout_s: float = 120.0,
) -> Completed:
    """Run the runtime to its end, isolated and with an environment of its own.

    Args:
        arguments: As on a device: `verify PATH`, `predict -i in.npz` …
        cache_dir: Below it releases are unpacked.
        bundle: Whose runtime; None for our own copy, which needs nothing of a bundle to be
            trusted.
        timeout_s: Wall-clock limit.

    Raises:
        EdgepackError: of the class that the exit status stands for, with the runtime's words.
    """
    if bundle is None:
        argv = own_argv(arguments, cache_dir=cache_dir)
    else:
        argv = bundle_argv(bundle, arguments)
    done = run(argv, timeout_s=timeout_s, check=False, env=bundle_environment(cache_dir))
    if done.returncode != 0:
        raise to_error(done)
    return done


def to_error(done: Completed) -> EdgepackError:
    """Return what a failed runtime said as the host's error of the same class."""
    found = _MESSAGE.search(done.stderr.rstrip())
    cls = _CLASSES.get(done.returncode)
    if found is None or cls is None:
        return ExternalToolError(
            f"the runtime failed (exit {done.returncode})\n{describe(done)}",
            hint="edgepack doctor",
        )
    return cls(found["error"].strip(), hint=found["hint"])


def detect_device() -> dict[str, Any]:
    """Return what this machine is, in the runtime's words: `arch`, `cpu_features` and so on."""
    done = run(
        own_argv(["detect", "--json"]), timeout_s=60, env={"LANG": os.environ.get("LANG", "C")}
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def reasons_against(target: Target, facts: Mapping[str, Any]) -> list[str]:
    """Return why a machine cannot run what is built for `target`; empty where it can.

    The same rules as the runtime's own, which decides on the device. A missing GPU is no reason:
    the bundle then answers on the CPU, and `engine_obstacles` tells why.

    Args:
        target: The target.
        facts: From `detect_device()`, of this machine or another.
    """
    if target.arch != facts["arch"]:
        return [f"it is for {target.arch}, and this machine is {facts['arch']}"]
    reasons = []
    if target.os != facts["os"]:
        reasons.append(f"it is for {target.os}, and this machine runs {facts['os']}")
    lacking = [flag for flag in target.cpu_features_all if flag not in facts["cpu_features"]]
    if lacking:
        reasons.append(f"this CPU lacks {', '.join(lacking)}")
    choice = target.cpu_features_any
    if choice and not any(flag in facts["cpu_features"] for flag in choice):
        reasons.append(f"this CPU has none of {', '.join(choice)}")
    if not _libc_suffices(target.libc, facts["libc"]):
        found = facts["libc"] or "another C library"
        reasons.append(f"it needs {target.libc}, and this machine has {found}")
    return reasons


def engines_wanted(targets: Sequence[Target]) -> dict[str, dict[str, Any]]:
    """Return by name what the runtime wants to know of a target's engine, as in a manifest."""
    return {
        target.name: {
            "module": tensorrt.module,
            "version": tensorrt.version,
            "cuda": tensorrt.cuda,
            "compute_capabilities": list(tensorrt.compute_capabilities),
            "l4t": tensorrt.l4t,
            "dla_core": None,
            # Those of TensorRT-RTX come with the bundle, and so bind it to one release.
            "engines": [{}] if tensorrt.module == "tensorrt_rtx" else [],
        }
        for target in targets
        if (tensorrt := target.tensorrt) is not None
    }


def engine_obstacles(
    targets: Sequence[Target],
) -> tuple[dict[str, Any], dict[str, tuple[Obstacle, ...]]]:
    """Return this machine's GPU, and what keeps the engines of targets from running on it.

    The rules are the runtime's own, with the packages that this interpreter sees.

    Args:
        targets: Those without TensorRT are left out.

    Returns:
        (facts, obstacles): the runtime's `gpu_facts()`, empty where nothing of NVIDIA is here;
        and by the target's name what is in the way, in the order to mend it.
    """
    wanted = engines_wanted(targets)
    folder = str(data_dir("runtime"))
    program = RUNTIME_LOADER + _OBSTACLES
    argv = [sys.executable, "-I", "-B", "-c", program, folder, json.dumps(wanted)]
    kept = {key: os.environ[key] for key in ("LANG", *_GPU_VARIABLES) if key in os.environ}
    told = json.loads(run(argv, timeout_s=60, env=kept).stdout)
    found = {
        name: tuple(Obstacle(what=what, fix=fix) for what, fix in pairs)
        for name, pairs in told["obstacles"].items()
    }
    return told["gpu"], found


def reasons_against_engines(targets: Sequence[Target]) -> dict[str, list[str]]:
    """Return, by name, why this machine's GPU cannot run what TensorRT makes for a target.

    The rules are the runtime's own. A bundle whose engine does not run answers on the CPU.

    Args:
        targets: Targets that have TensorRT.
    """
    _, found = engine_obstacles(targets)
    return {
        name: [f"{obstacle.what}: {obstacle.fix}" for obstacle in obstacles]
        for name, obstacles in found.items()
    }


def _libc_suffices(wanted: str, found: str | None) -> bool:
    name, _, version = wanted.partition(" ")
    found_name, _, found_version = (found or "").partition(" ")
    return name == found_name and _numbers(version) <= _numbers(found_version)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
