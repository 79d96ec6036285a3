"""What this device is, and whether a bundle's target fits it."""

from __future__ import annotations

import os
import sys
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .cgroups import available_cores
from .cpu import cpu_features, cpu_level
from .errors import TargetMismatch
from .kernelfiles import read_lines


def detect_device() -> Dict[str, Any]:
    """Return what this device is, as plain data.

    Keys: `arch`, `os`, `kernel`, `libc`, `python`, `cpu_model`, `cpu_level`, `cpu_features`,
    `cores` (those this process may use), `memory_mib`, `board`, `l4t`; None where it is unknown.
    """
    system = os.uname()
    arch = system.machine
    if sys.maxsize < 1 << 32 and arch in ("aarch64", "x86_64"):
        arch += " with a 32-bit userland"
    return {
        "arch": arch,
        "os": system.sysname.lower(),
        "kernel": system.release,
        "libc": _libc(),
        "python": "%d.%d.%d" % sys.version_info[:3],
        "cpu_model": read_cpu_model(),
        "cpu_level": cpu_level(),
        "cpu_features": sorted(cpu_features()),
        "cores": available_cores(),
        "memory_mib": _memory_mib(),
        "board": _board(),
        "l4t": read_l4t(),
    }


def detect_gpu() -> Optional[Dict[str, Any]]:
    """Return what NVIDIA hardware and software this device has; empty where it has none.

    None in a bundle whose target has no GPU: it carries no code that could tell.
    """
    try:
        from .nvidia.device import gpu_facts
    except ModuleNotFoundError as fault:
        if (fault.name or "").endswith(".nvidia"):
            return None
        raise
    return gpu_facts()


def read_cpu_model(path: str = "/proc/cpuinfo") -> Optional[str]:
    """Return the first core's model name; Arm's kernels give none."""
    for line in read_lines(path):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def read_l4t(path: str = "/etc/nv_tegra_release") -> Optional[str]:
    """Return the release of a Jetson's system, as `36.4.3`; None on another machine."""
    # `# R36 (release), REVISION: 4.3, GCID: …` is L4T 36.4.3.
    for line in read_lines(path):
        words = line.replace(",", " ").split()
        if len(words) > 4 and words[0] == "#" and words[3] == "REVISION:":
            return "%s.%s" % (words[1].lstrip("R"), words[4])
    return None


def reasons_against(target: Mapping[str, Any], facts: Mapping[str, Any]) -> List[str]:
    """Return why this device cannot run what was built for `target`; empty where it can.

    Args:
        target: `manifest["target"]`.
        facts: From `detect_device()`.
    """
    if target["arch"] != facts["arch"]:
        return ["it is for %s, and this machine is %s" % (target["arch"], facts["arch"])]
    reasons = []
    if target["os"] != facts["os"]:
        reasons.append("it is for %s, and this machine runs %s" % (target["os"], facts["os"]))
    lacking = [flag for flag in target["cpu_features_all"] if flag not in facts["cpu_features"]]
    if lacking:
        reasons.append("this CPU lacks %s" % ", ".join(lacking))
    choice = target["cpu_features_any"]
    if choice and not any(flag in facts["cpu_features"] for flag in choice):
        reasons.append("this CPU has none of %s" % ", ".join(choice))
    if not _libc_suffices(target["libc"], facts["libc"]):
        reasons.append(
            "it needs %s, and this machine has %s"
            % (target["libc"], facts["libc"] or "another C library")
        )
    return reasons


def check_fits(manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse a bundle that this device cannot run.

    Raises:
        TargetMismatch: with every reason in one sentence.
    """
    reasons = reasons_against(manifest["target"], facts)
    if reasons:
        raise TargetMismatch(
            "this bundle was built for `%s`: %s" % (manifest["target"]["name"], "; ".join(reasons)),
            "edgepack build MODEL -t TARGET, with a target that fits this device",
        )


def describe(facts: Mapping[str, Any]) -> List[str]:
    """Return the facts as lines of text."""
    lines = []
    shown_facts = dict(facts)
    gpu = shown_facts.pop("gpu", None)
    if gpu is not None:
        from .nvidia.device import describe_gpu

        shown_facts.update(describe_gpu(gpu))
    for key, value in shown_facts.items():
        shown = " ".join(value) if isinstance(value, list) else value
        lines.append("%-13s %s" % (key, "unknown" if shown is None else shown))
    return lines


def _libc() -> Optional[str]:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        return None


def _libc_suffices(wanted: str, found: Optional[str]) -> bool:
    if found is None:
        return False
    name, _, version = wanted.partition(" ")
    found_name, _, found_version = found.partition(" ")
    return name == found_name and _numbers(version) <= _numbers(found_version)


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _memory_mib() -> Optional[int]:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    except (ValueError, OSError):
        return None


def _board() -> Optional[str]:
    text = "".join(read_lines("/proc/device-tree/model"))
    return text.replace("\0", "").strip() or None
