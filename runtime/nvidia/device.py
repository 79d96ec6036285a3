"""What NVIDIA's hardware and software this device has, read without importing TensorRT."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional

from .driver import ask_driver, count_pci_gpus, read_kernel_driver
from .installed import (
    Interpreter,
    find_cudart,
    find_tensorrt,
    read_packages,
    this_interpreter,
)
from .jetson import read_jetson
from .obstacles import full_name, is_jetson, why_rebuilt
from .obstacles import reasons_against_engine as reasons_against_engine  # noqa: PLC0414 - one door

# Any of these says that asking the driver's libraries is worth the time.
_TRACES = (
    "dev/nvhost-gpu",
    "dev/nvidiactl",
    "etc/nv_tegra_release",
    "proc/driver/nvidia/version",
    "sys/module/nvidia/version",
    "usr/lib/wsl/lib/libcuda.so.1",
)


def gpu_facts(root: str = "/", interpreter: Optional[Interpreter] = None) -> Dict[str, Any]:
    """Return what TensorRT would find here, as plain data; empty where nothing is NVIDIA's.

    Keys, None or empty where unknown:
        `driver`: the kernel driver's version, `550.54.15`.
        `driver_cuda`: the highest CUDA that the driver runs, `12.4`.
        `gpus`: `name`, `compute_capability` (`8.7`), `memory_mib`, `memory` (`own` or `shared`).
        `gpu_fault`: why no GPU answers.
        `cudart`: CUDA runtimes, newest first: `version`, `path`.
        `cuda`: the newest one's version, with its patch where a file's name tells.
        `tensorrt`: modules that this Python imports: `module`, `version`, `origin`, `path`.
        `tensorrt_elsewhere`: modules that only another Python sees, with its `python`.
        `packages`: versions of NVIDIA's installed Debian packages.
        `python`, `isolated`: the interpreter, and whether it hides the system's packages.
        `soc`, `module`, `module_part`, `dla_cores`, `l4t`, `jetpack`, `power_mode`: of a Jetson.

    Args:
        root: The folder under which everything is read, libraries too.
        interpreter: Which Python would import TensorRT; by default this one.
    """
    if not anything_nvidia(root):
        return {}
    interpreter = interpreter or this_interpreter()
    packages = read_packages(root)
    driver = ask_driver(root, os.environ.get("CUDA_VISIBLE_DEVICES"))
    tensorrt, elsewhere = find_tensorrt(root, interpreter, packages)
    jetson = read_jetson(root, packages)
    cudart = find_cudart(root, interpreter.paths)
    gpus = [dict(gpu) for gpu in driver.gpus]
    for gpu in gpus:
        if jetson["soc"]:
            gpu["memory"] = "shared"
        if gpu["memory"] == "shared" and gpu["memory_mib"] is None:
            gpu["memory_mib"] = _memory_mib(root)
    return {
        "driver": read_kernel_driver(root) or driver.version,
        "driver_cuda": driver.cuda,
        "gpus": gpus,
        "gpu_fault": driver.fault,
        "cudart": cudart,
        "cuda": cudart[0]["version"] if cudart else None,
        "tensorrt": tensorrt,
        "tensorrt_elsewhere": elsewhere,
        "packages": packages,
        "python": interpreter.version,
        "isolated": interpreter.isolated,
        **jetson,
    }


def anything_nvidia(root: str = "/") -> bool:
    """Return whether this looks like a machine with an NVIDIA GPU, with a driver or without."""
    if any(os.path.exists(os.path.join(root, path)) for path in _TRACES):
        return True
    try:
        with open(os.path.join(root, "proc/device-tree/compatible"), "rb") as stream:
            if b"nvidia,tegra" in stream.read(1 << 16):
                return True
    except OSError:
        pass
    return count_pci_gpus(root) > 0


def describe_gpu(facts: Mapping[str, Any]) -> Dict[str, str]:
    """Return the facts as names and texts, for people; what is not there is left out or said."""
    shown = {}
    if facts["module"]:
        shown["module"] = facts["module"]
    if facts["l4t"]:
        shown["jetpack"] = "%s (L4T %s)" % (facts["jetpack"] or "unknown", facts["l4t"])
    for number, gpu in enumerate(facts["gpus"]):
        memory = "%s MiB" % gpu["memory_mib"] if gpu["memory_mib"] else "memory unknown"
        shown["gpu" if number == 0 else "gpu %d" % number] = "%s, compute capability %s, %s%s" % (
            gpu["name"],
            gpu["compute_capability"],
            memory,
            " shared with the processor" if gpu["memory"] == "shared" else "",
        )
    if not facts["gpus"]:
        shown["gpu"] = "does not answer: %s" % facts["gpu_fault"]
    if facts["driver"] or not is_jetson(facts):
        cuda = " (CUDA %s)" % facts["driver_cuda"] if facts["driver_cuda"] else ""
        shown["driver"] = (facts["driver"] or "none loaded") + cuda
    versions = ", ".join(found["version"] for found in facts["cudart"])
    shown["cuda runtime"] = versions or "not found"
    for found in facts["tensorrt"]:
        shown[found["module"]] = "%s (%s)" % (found["version"] or "unknown", found["origin"])
    for found in facts["tensorrt_elsewhere"]:
        shown.setdefault(
            "tensorrt", "%s, but only for Python %s" % (found["version"], found["python"])
        )
    shown.setdefault("tensorrt", "not found for Python %s" % facts["python"])
    if facts["power_mode"]:
        shown["power mode"] = facts["power_mode"]
    return shown


def engine_outlook(manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> Dict[str, Any]:
    """Return which engine a bundle will answer with here.

    Keys: `engine`, a sentence with the reasons in it; `reasons` against TensorRT, each with its
    fix; `rebuilt`, why another engine than the target's is built here; `needs`, what the bundle
    says a device must have.

    Args:
        manifest: Of a bundle whose target has TensorRT.
        facts: From `gpu_facts()`.
    """
    wanted, engine = manifest["tensorrt"], manifest["engine"]
    reasons = reasons_against_engine(wanted, facts)
    rebuilt = [] if reasons else why_rebuilt(wanted, facts)
    if reasons:
        said = "%s %s on the CPU, not %s: %s" % (
            engine["name"],
            engine["version"],
            full_name(wanted),
            "; ".join(reasons),
        )
    else:
        kept = wanted.get("engines") and not rebuilt
        made = "checked" if kept else "built here and checked"
        said = "%s, %s, once it is %s" % (full_name(wanted), wanted["precision"], made)
        said = ": ".join([said, "; ".join(rebuilt)]) if rebuilt else said
    needs = list(wanted.get("needs", ()))
    return {"engine": said, "reasons": reasons, "rebuilt": rebuilt, "needs": needs}


def describe_outlook(outlook: Mapping[str, Any]) -> List[str]:
    """Return an outlook as lines of text; what is needed only where something lacks."""
    lines = ["%-13s %s" % ("engine", outlook["engine"])]
    if outlook["reasons"]:
        lines += ["%-13s %s" % ("needs", need) for need in outlook["needs"]]
    return lines


def _memory_mib(root: str) -> Optional[int]:
    try:
        with open(os.path.join(root, "proc/meminfo"), encoding="ascii") as stream:
            for line in stream:
                if line.startswith("MemTotal:"):
                    return int(line.split()[1]) >> 10
    except (OSError, ValueError):
        pass
    return None
