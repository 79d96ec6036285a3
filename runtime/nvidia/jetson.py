"""Which Jetson this is: module, L4T, JetPack and the power mode by its name."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, Mapping, Optional, Tuple

from ..detect import read_l4t

# L4T to JetPack, from NVIDIA's release notes and the package versions in its repositories.
_JETPACKS = (
    ("35.1.0", "5.0.2"),
    ("35.2.1", "5.1"),
    ("35.3.1", "5.1.1"),
    ("35.4.1", "5.1.2"),
    ("35.5.0", "5.1.3"),
    ("35.6.0", "5.1.4"),
    ("35.6.1", "5.1.5"),
    ("35.6.4", "5.1.6"),
    ("36.3.0", "6.0"),
    ("36.4.0", "6.1"),
    ("36.4.3", "6.2"),
    ("36.4.4", "6.2.1"),
    ("36.5.0", "6.2.2"),
    ("38.2.0", "7.0"),
    ("38.4.0", "7.1"),
    ("39.2.0", "7.2"),
    ("39.2.1", "7.2.1"),
    ("39.2.2", "7.2.2"),
)
# Part number and SKU, as the device tree's `compatible` spells them: name, DLA cores.
_MODULES = {
    "p2888": ("Jetson AGX Xavier", 2),
    "p3668": ("Jetson Xavier NX", 2),
    "p3701-0000": ("Jetson AGX Orin Developer Kit", 2),
    "p3701-0004": ("Jetson AGX Orin 32 GB", 2),
    "p3701-0005": ("Jetson AGX Orin 64 GB", 2),
    "p3701-0008": ("Jetson AGX Orin Industrial", 2),
    "p3767-0000": ("Jetson Orin NX 16 GB", 2),
    "p3767-0001": ("Jetson Orin NX 8 GB", 1),
    "p3767-0002": ("Jetson Orin NX 16 GB", 2),
    "p3767-0003": ("Jetson Orin Nano 8 GB", 0),
    "p3767-0004": ("Jetson Orin Nano 4 GB", 0),
    "p3767-0005": ("Jetson Orin Nano 8 GB", 0),
    "p3834-0000": ("Jetson Thor T4000", 0),
    "p3834-0008": ("Jetson AGX Thor T5000", 0),
}
_PART = re.compile(r"\b(p2888|p3668|p3701|p3767|p3834)-(\d{4})")
_SOC = re.compile(r"nvidia,(tegra\d+)")
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_DEFAULT_MODE = re.compile(r"<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>")


def read_jetson(root: str, packages: Mapping[str, str]) -> Dict[str, Any]:
    """Return what is known of the Jetson; every value None on another machine.

    Keys: `soc` (`tegra234`), `module`, `module_part` (`p3767-0005`), `dla_cores`, `l4t`,
    `jetpack`, `power_mode`.

    Args:
        root: `/`, or a folder that stands for it.
        packages: Installed packages and versions, where /etc/nv_tegra_release is missing.
    """
    part, soc = _read_device_tree(root)
    name, dla_cores = _MODULES.get(part or "") or _MODULES.get((part or "")[:5]) or (None, None)
    l4t = read_l4t(os.path.join(root, "etc/nv_tegra_release"))
    if l4t is None and "nvidia-l4t-core" in packages:
        l4t = packages["nvidia-l4t-core"].split("-")[0]
    tegra = soc is not None or l4t is not None
    return {
        "soc": soc,
        "module": name or (_text(root, "proc/device-tree/model").strip() or None if soc else None),
        "module_part": part,
        "dla_cores": dla_cores,
        "l4t": l4t,
        "jetpack": jetpack_of(l4t),
        "power_mode": read_power_mode(root) if tegra else None,
    }


def jetpack_of(l4t: Optional[str]) -> Optional[str]:
    """Return the JetPack of an L4T release, as `6.2` for `36.4.3`.

    A release that is not in the table lies between two that are, and counts as the lower one of
    its own major version; None where there is none.
    """
    if l4t is None:
        return None
    found = None
    for release, jetpack in _JETPACKS:
        same_major = numbers(release)[:1] == numbers(l4t)[:1]
        if same_major and numbers(release) <= numbers(l4t):
            found = jetpack
    return found


def read_power_mode(root: str) -> Optional[str]:
    """Return the current nvpmodel mode by its name: the same number means another per module.

    What nvpmodel recorded last; where it never did, the default of its configuration. A mode that
    waits for a restart counts as the current one, since nvpmodel itself tells no difference.
    """
    configuration = _text(root, "etc/nvpmodel.conf")
    names: Dict[int, str] = {int(mode): name for mode, name in _MODE.findall(configuration)}
    status = re.search(r"pmode:(\d+)", _text(root, "var/lib/nvpmodel/status"))
    chosen = status or _DEFAULT_MODE.search(configuration)
    if chosen is None:
        return None
    number = int(chosen.group(1))
    return names.get(number, "mode %d, without a name" % number)


def numbers(version: str) -> Tuple[int, ...]:
    """Return the leading numbers of a version, to be compared: `10.3.0` of `10.3.0-1+cuda12.5`."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _read_device_tree(root: str) -> Tuple[Optional[str], Optional[str]]:
    compatible = _text(root, "proc/device-tree/compatible")
    # `nvidia,p3768-0000+p3767-0005-super`: the carrier board comes first, the module is ours.
    part, soc = _PART.search(compatible), _SOC.search(compatible)
    return (part.group() if part else None), (soc.group(1) if soc else None)


def _text(root: str, path: str) -> str:
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as stream:
            return stream.read(1 << 20).replace("\0", "\n")
    except OSError:
        return ""
