"""Why this device cannot build or run a bundle's TensorRT engine, each reason with its fix."""

from __future__ import annotations

from typing import Any, List, Mapping, NamedTuple, Optional, Sequence

from .jetson import numbers

# The lowest Linux driver of each CUDA major version: since CUDA 11 every minor version of it
# runs there (NVIDIA, CUDA Compatibility, "Minor Version Compatibility").
MINIMUM_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
# Has every GPU from Maxwell to Blackwell, and runs CUDA 11 to 13.
_DRIVER_PACKAGE = "nvidia-driver-580-server"
# PyPI's aarch64 wheels are built for servers (SBSA); Jetsons became such machines with JetPack 7,
# and Orin's kernels (compute capability 8.7) came into the wheels with 10.16.
_FIRST_SBSA_L4T = 38
_FIRST_WHEEL_WITH_ORIN = (10, 16)
_NO_GPU = "this machine shows no NVIDIA GPU: in a container, start it with `docker run --gpus all`"
_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
# Every GPU that TensorRT-RTX 1.7 builds for (`ComputeCapability` of its bindings).
_RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


class Obstacle(NamedTuple):
    """One thing in the engine's way: what it is, and a command or a step that mends it."""

    what: str
    fix: str


def reasons_against_engine(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> List[str]:
    """Return why a bundle's engine cannot be built or run here, each with its fix in a sentence.

    Args:
        wanted: `manifest["tensorrt"]`.
        facts: From `gpu_facts()`; empty where nothing of NVIDIA was found.
    """
    return ["%s: %s" % obstacle for obstacle in obstacles(wanted, facts)]


def obstacles(
    wanted: Mapping[str, Any], facts: Mapping[str, Any], *, of_class: bool = False
) -> List[Obstacle]:
    """Return what is in the way of a bundle's engine here, in the order to mend it.

    Args:
        wanted: `manifest["tensorrt"]`.
        facts: From `gpu_facts()`; empty where nothing of NVIDIA was found.
        of_class: Tell what keeps this machine from being one of the target's class: there, engines
            that were built before run as they are. Else one that does not is built again here.
    """
    if not facts:
        return [
            Obstacle(
                "this machine shows no NVIDIA GPU",
                "in a container, start it with `docker run --gpus all`",
            )
        ]
    found = [
        _driver(wanted, facts),
        _gpus(wanted, facts, of_class=of_class),
        _jetpack(wanted, facts),
        _tensorrt(wanted, facts, of_class=of_class),
        _cudart(wanted, facts),
        _dla(wanted, facts),
    ]
    return [obstacle for obstacle in found if obstacle is not None]


def why_rebuilt(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> List[str]:
    """Return why this device needs another engine than the target's class, a sentence each.

    Args:
        wanted: `manifest["tensorrt"]`.
        facts: From `gpu_facts()` of a machine with a GPU that answers.
    """
    said = []
    gpu = (facts.get("gpus") or [{}])[0]
    here, listed = gpu.get("compute_capability"), wanted["compute_capabilities"]
    if here is not None and here not in listed:
        said.append(
            "the bundle is for compute capability %s, and this GPU, %s, has %s"
            % (" or ".join(listed), gpu["name"], here)
        )
    other = _other_release(wanted, facts) if wanted.get("engines") else None
    if other is not None:
        said.append(other)
    return said


def is_jetson(facts: Mapping[str, Any]) -> bool:
    """Return whether the facts are a Jetson's, whose driver comes with its system."""
    return bool(facts.get("soc") or facts.get("l4t"))


def full_name(wanted: Mapping[str, Any]) -> str:
    """Return what the bundle needs as `TensorRT 10.3.0.30`."""
    return "%s %s" % (_NAMES[wanted["module"]], wanted["version"])


def _driver(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> Optional[Obstacle]:
    if is_jetson(facts):
        return None
    install = "`sudo apt-get install %s`, then restart" % _DRIVER_PACKAGE
    if facts["driver"] is None:
        if facts["gpus"]:  # WSL: the driver is the other system's
            return None
        return Obstacle("the NVIDIA GPU has no driver loaded", install)
    minimum = MINIMUM_DRIVERS.get(_major(wanted["cuda"]))
    if minimum is None or numbers(facts["driver"]) >= numbers(minimum):
        return None
    return Obstacle(
        "driver %s is too old for CUDA %s, which needs %s or later"
        % (facts["driver"], wanted["cuda"], minimum),
        install,
    )


def _gpus(
    wanted: Mapping[str, Any], facts: Mapping[str, Any], *, of_class: bool
) -> Optional[Obstacle]:
    capabilities = wanted["compute_capabilities"]
    rtx = wanted["module"] == "tensorrt_rtx"
    found = [(gpu["name"], gpu["compute_capability"]) for gpu in facts["gpus"]]
    if any(capability in capabilities for _, capability in found):
        return None
    fault = facts["gpu_fault"] or "no reason given"
    if found and not of_class and (not rtx or found[0][1] in _RTX_CAPABILITIES):
        return None  # TensorRT builds for the GPU at hand
    if found:
        what = "the engine is" if of_class else "TensorRT-RTX has kernels"
        known = capabilities if of_class else _RTX_CAPABILITIES
        return Obstacle(
            "%s for compute capability %s, and this machine has %s"
            % (what, " or ".join(known), ", ".join("%s (%s)" % pair for pair in found)),
            "`edgepack build MODEL -t TARGET`, with a target of that GPU",
        )
    if is_jetson(facts):
        return Obstacle(
            "the GPU does not answer (%s)" % fault,
            "`sudo usermod -aG video,render $USER` and log in again; in a container, start it with"
            " `docker run --runtime nvidia`",
        )
    if facts["driver"] is None:
        return None  # said already
    return Obstacle(
        "no GPU answers (%s)" % fault,
        "`nvidia-smi` tells more; in a container, start it with `docker run --gpus all`",
    )


def _jetpack(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> Optional[Obstacle]:
    needed, found = wanted.get("l4t") or "", facts["l4t"]
    if not needed or found is None or numbers(found) >= numbers(needed):
        return None
    return Obstacle(
        "L4T %s (JetPack %s) is older than the %s that the bundle was built for"
        % (found, facts["jetpack"] or "unknown", needed),
        "update the device's JetPack, or `edgepack build MODEL -t MODULE@%s`"
        % (facts["jetpack"] or "JETPACK"),
    )


def _tensorrt(
    wanted: Mapping[str, Any], facts: Mapping[str, Any], *, of_class: bool
) -> Optional[Obstacle]:
    module, name = wanted["module"], full_name(wanted)
    carried = wanted.get("carried_pythons") or ()
    if carried:
        return _carried(carried, facts)
    ours = [found for found in facts["tensorrt"] if found["module"] == module]
    install = _install(wanted, facts)
    if not ours:
        missing = "%s is not installed for Python %s" % (name, facts["python"])
        return _elsewhere(wanted, facts) or Obstacle(missing, install)
    (found,) = ours
    version = found["version"] or ""
    here, there = numbers(version), numbers(wanted["version"])
    if is_jetson(facts) and module == "tensorrt" and found["origin"] == "wheel":
        reason = _wrong_index(found, facts)
        if reason is not None:
            return Obstacle(reason, "`python3 -m pip uninstall tensorrt`, then %s" % install)
    if not here:
        return None  # the import itself will tell
    if here[0] != there[0]:
        what = "the bundle is for %s, and Python %s has %s" % (name, facts["python"], version)
    elif here[:2] < there[:2]:
        # A newer one builds its own engine; an older one lacks operators that came after it.
        what = "%s %s is older than the %s that the model was made for" % (
            _NAMES[module],
            version,
            wanted["version"],
        )
    else:
        other = _other_release(wanted, facts) if of_class and wanted.get("engines") else None
        if other is None:
            return None
        what = other
    return Obstacle(what, install)


def _other_release(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> Optional[str]:
    """Return that TensorRT-RTX here is not the release that the engine runs in, None if it is."""
    ours = [found for found in facts["tensorrt"] if found["module"] == wanted["module"]]
    if wanted["module"] != "tensorrt_rtx" or not ours or wanted.get("carried_pythons"):
        return None
    here, there = numbers(ours[0]["version"] or ""), numbers(wanted["version"])
    if not here or here[: len(there)] == there[: len(here)]:
        return None
    return "the engine runs in %s alone, and Python %s has %s" % (
        full_name(wanted),
        facts["python"],
        ours[0]["version"],
    )


def _carried(pythons: Sequence[str], facts: Mapping[str, Any]) -> Optional[Obstacle]:
    """Return that the bundle's own bindings are for other Pythons, None where one is this."""
    if facts["python"] in pythons:
        return None
    return Obstacle(
        "the bundle carries TensorRT-RTX for CPython %s to %s, and this is %s"
        % (pythons[0], pythons[-1], facts["python"]),
        "start the bundle with `python%s`" % pythons[-1],
    )


def _elsewhere(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> Optional[Obstacle]:
    """Return that only another Python sees TensorRT, where one of the right version does."""
    for found in facts["tensorrt_elsewhere"] if wanted["module"] == "tensorrt" else ():
        if _major(found["version"] or "0") != _major(wanted["version"]):
            continue
        # Debian's python3/dist-packages belongs to the system's own Python, whichever it is.
        python = found["python"] if "." in found["python"] else "3"
        start = "start the bundle with `/usr/bin/python%s`" % python
        if facts["isolated"] and python in ("3", facts["python"]):
            return Obstacle(
                "this virtual environment does not see the system's TensorRT %s" % found["version"],
                "`python3 -m venv --system-site-packages FOLDER` makes one that does, or " + start,
            )
        return Obstacle(
            "TensorRT %s is installed for another Python than this %s"
            % (found["version"], facts["python"]),
            start,
        )
    return None


def _wrong_index(found: Mapping[str, Any], facts: Mapping[str, Any]) -> Optional[str]:
    version = found["version"] or "of an unknown version"
    l4t = numbers(facts["l4t"] or "")
    if l4t and l4t[0] < _FIRST_SBSA_L4T:
        return (
            "TensorRT %s comes from a package index, whose wheels are for servers and not for"
            " JetPack %s" % (version, facts["jetpack"] or "before 7")
        )
    orin = any(gpu["compute_capability"] == "8.7" for gpu in facts["gpus"])
    if orin and numbers(version)[:2] < _FIRST_WHEEL_WITH_ORIN:
        return "TensorRT %s comes from a package index and lacks this GPU's kernels" % version
    return None


def _cudart(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> Optional[Obstacle]:
    if wanted.get("carried_pythons"):
        return None  # the bundle brings it along
    cuda = facts["driver_cuda"]
    # A runtime runs under the drivers of its own major version and of later ones.
    majors = [_major(found["version"]) for found in facts["cudart"]]
    if any(major >= 11 and (cuda is None or major <= _major(cuda)) for major in majors):
        return None
    major = _major(wanted["cuda"])
    if is_jetson(facts):
        install = "`sudo apt-get install cuda-cudart-%s`" % wanted["cuda"].replace(".", "-")
    else:
        # From CUDA 13 on the package's name has no version in it.
        suffix = "-cu%d" % major if major < 13 else ""
        install = "`python3 -m pip install 'nvidia-cuda-runtime%s==%d.*'`" % (suffix, major)
    if not majors:
        return Obstacle("the CUDA runtime (libcudart.so.%d) is not installed" % major, install)
    return Obstacle(
        "the CUDA runtime %s needs a newer driver than this one, of CUDA %s"
        % (facts["cudart"][-1]["version"], cuda),
        install,
    )


def _dla(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> Optional[Obstacle]:
    core, cores = wanted.get("dla_core"), facts["dla_cores"]
    if core is None or cores is None or core < cores:
        return None
    return Obstacle(
        "the bundle wants DLA core %d, and %s has %d"
        % (core, facts["module"] or "this module", cores),
        "`edgepack build MODEL -t TARGET`, with the target of this module",
    )


def _install(wanted: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    if wanted["module"] == "tensorrt_rtx":
        return "`python3 -m pip install 'tensorrt-rtx-cu%d==%s'`" % (
            _major(wanted["cuda"]),
            wanted["version"],
        )
    if is_jetson(facts):
        there = facts["packages"].get("python3-libnvinfer")
        if there and _major(there) != _major(wanted["version"]):
            return "`edgepack build MODEL -t MODULE@%s`, for the JetPack that is here" % (
                facts["jetpack"] or "JETPACK"
            )
        return "`sudo apt-get install python3-libnvinfer`"
    major, minor = numbers(wanted["version"])[:2]
    # Wheels are named after their CUDA since TensorRT 10.
    suffix = "-cu%d" % _major(wanted["cuda"]) if major >= 10 else ""
    return "`python3 -m pip install 'tensorrt%s==%d.%d.*'`" % (suffix, major, minor)


def _major(version: str) -> int:
    return (numbers(version) or (0,))[0]
