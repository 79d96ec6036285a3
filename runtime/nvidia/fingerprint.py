"""Says what an engine depends on: what makes it unusable elsewhere, and what only detunes it.

Hard facts change the plan, or decide whether it loads: another value means another engine.

=====================  =========================================================================
`module`, `version`    a plan loads in exactly the TensorRT build that wrote it
`capabilities`         kernels are chosen and compiled for these compute capabilities
`platform`             operating system and processor; a plan holds host code as well
`artifact`             SHA-256 of the ONNX file that was parsed
`profiles`             shapes outside them cannot run, and the middle ones were tuned for
`precision`, `typed`,  what was asked of the builder: `typed` is strong typing, `flags` the
`flags`, `sparse`      precisions of a weakly typed network
`dla_core`,            where the layers run; a plan is bound to the kind of core
`gpu_fallback`
`workspace_mib`        a kernel that needs more memory than this is never chosen
`version_compatible`   another kind of plan
=====================  =========================================================================

Soft facts leave an engine right and perhaps slower than it could be: the model of the GPU, its
driver, CUDA's patch release and the power mode that the kernels were timed in.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

HARD = (
    "module", "version", "capabilities", "platform", "artifact", "profiles", "precision", "typed",
    "flags", "sparse", "dla_core", "gpu_fallback", "workspace_mib", "version_compatible",
)  # fmt: skip
SOFT = ("gpu", "driver", "cuda", "power_mode")
_RTX = "tensorrt_rtx"
_NAMES = {"tensorrt": "TensorRT", _RTX: "TensorRT-RTX"}


def hard_facts(
    request: Any, vendor_version: str, device: Optional[Mapping[str, Any]] = None
) -> Dict[str, Any]:
    """Return what the engine of a request depends on, here.

    Args:
        request: A `BuildRequest`, or anything with its fields.
        vendor_version: TensorRT's version with its build, as the library itself says.
        device: From `gpu_facts()`; None on a host that builds for another machine.
    """
    return {
        "module": str(request.module),
        "version": str(vendor_version),
        "capabilities": _capabilities(request, device),
        "platform": _platform(request),
        "artifact": str(request.artifact_sha256),
        "profiles": [
            {
                name: {key: list(shape) for key, shape in sizes.items()}
                for name, sizes in one.items()
            }
            for one in request.profiles
        ],
        "precision": str(request.precision),
        "typed": bool(request.strongly_typed),
        "flags": sorted(request.flags),
        "sparse": bool(request.sparse),
        "dla_core": request.dla_core,
        "gpu_fallback": bool(request.gpu_fallback),
        "workspace_mib": request.workspace_mib,
        "version_compatible": bool(request.version_compatible),
    }


def digest(facts: Mapping[str, Any]) -> str:
    """Return the fingerprint: 64 hexadecimal digits over the hard facts, whatever their order."""
    chosen = {name: facts.get(name) for name in HARD}
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> List[str]:
    """Return one sentence for each hard fact in which an engine does not fit this device.

    Args:
        wanted: The hard facts here.
        found: The engine's.
    """
    said = []
    if (wanted.get("module"), wanted.get("version")) != (found.get("module"), found.get("version")):
        said.append(
            "the engine was built with %s, and this device has %s" % (_build(found), _build(wanted))
        )
    for name in HARD[2:]:
        here, there = wanted.get(name), found.get(name)
        if here != there:
            said.append(_SENTENCES[name] % (_words(there), _words(here)))
    return said


def soft_facts(device: Mapping[str, Any]) -> Dict[str, Optional[str]]:
    """Return what an engine was tuned under; None where the device does not tell.

    Args:
        device: From `gpu_facts()`.
    """
    gpu = first_gpu(device)
    return {
        "gpu": _text(gpu.get("name")),
        "driver": _text(device.get("driver")),
        "cuda": _text(device.get("cuda")),
        "power_mode": _text(device.get("power_mode")),
    }


def soft_differences(tuned: Mapping[str, Any], here: Mapping[str, Any]) -> List[str]:
    """Return one sentence for each soft fact that has changed since the engine was tuned.

    A fact that one side does not know is no difference.
    """
    return [
        _SOFT_SENTENCES[name] % (tuned[name], here[name])
        for name in SOFT
        if tuned.get(name) and here.get(name) and tuned[name] != here[name]
    ]


def first_gpu(device: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the facts of the GPU that is used, the first one; empty where there is none."""
    gpus: Sequence[Mapping[str, Any]] = device.get("gpus") or ()
    return gpus[0] if gpus else {}


def _capabilities(request: Any, device: Optional[Mapping[str, Any]]) -> List[str]:
    """Return the compute capabilities that the engine is for.

    TensorRT builds for the GPU at hand. TensorRT-RTX builds for the list that it is given, so the
    list stands for every GPU on it; one that is not needs an engine of its own.
    """
    asked = sorted(str(item) for item in request.compute_capabilities)
    here = _text(first_gpu(device or {}).get("compute_capability"))
    if here is None or (request.module == _RTX and here in asked):
        return asked
    return [here]


def _platform(request: Any) -> str:
    """Return the operating system and processor, such as `linux-aarch64`.

    TensorRT-RTX builds on one machine for another, so there the request's word counts.
    """
    if request.module == _RTX and request.platform:
        return str(request.platform)
    system = os.uname()
    return "%s-%s" % (system.sysname.lower(), system.machine)


def _build(facts: Mapping[str, Any]) -> str:
    module = facts.get("module")
    return "%s %s" % (_NAMES.get(str(module), module), facts.get("version"))


def _words(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, str):
        return value[:12] + "…" if len(value) == hashlib.sha256().digest_size * 2 else value
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _text(value: Any) -> Optional[str]:
    return None if value is None or value == "" else str(value)


_SENTENCES = {
    "capabilities": "the engine is for compute capability %s, and this GPU has %s",
    "platform": "the engine is for %s, and this machine is %s",
    "artifact": "the engine was built from the model %s, and the bundle carries %s",
    "profiles": "the engine covers the shapes %s, and the bundle asks for %s",
    "precision": "the engine was built for %s, and the bundle asks for %s",
    "typed": "the engine's network is strongly typed: %s, and the bundle asks for: %s",
    "flags": "the engine was built with the flags %s, and the bundle asks for %s",
    "sparse": "the engine uses sparse weights: %s, and the bundle asks for: %s",
    "dla_core": "the engine runs on DLA core %s, and the bundle asks for %s",
    "gpu_fallback": "the engine moves layers from DLA to the GPU: %s, and the bundle asks for: %s",
    "workspace_mib": "the engine was built with %s MiB of workspace, and the bundle asks for %s",
    "version_compatible": "the engine is version-compatible: %s, and the bundle asks for: %s",
}
_SOFT_SENTENCES = {
    "gpu": "the engine was tuned on `%s`, and this GPU is `%s`",
    "driver": "the engine was tuned under driver %s, and this is %s",
    "cuda": "the engine was tuned under CUDA %s, and this is %s",
    "power_mode": "the engine was tuned in power mode `%s`, and the device is in `%s`",
}
