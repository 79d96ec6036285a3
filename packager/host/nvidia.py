"""What this machine lacks for TensorRT: to build engines ahead, and to run them as a device."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from packager.bundle.device import engine_obstacles
from packager.host.findings import Finding
from packager.target import all_targets, find_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from packager.target import Target

_RTX = "tensorrt-rtx-cu13"


def nvidia_findings() -> Iterator[Finding]:
    """Yield what building for NVIDIA's GPUs needs, then what running on this machine's needs."""
    yield _builder()
    targets = _every_jetpack()
    facts, obstacles = engine_obstacles(targets)
    if not facts:
        yield Finding(
            status="ok",
            what="NVIDIA GPU",
            found="none here, and none is needed: devices build their engines themselves",
        )
        return
    yield _gpu(facts)
    chosen = _targets_of(facts, targets)
    if facts["gpus"] and not chosen:
        yield Finding(
            status="optional",
            what="TensorRT",
            found="no target is for this GPU",
            fix="edgepack targets list",
        )
    for target in chosen:
        what = f"TensorRT for {target.name}"
        if not obstacles[target.name]:
            yield Finding(status="ok", what=what, found="ready")
        for obstacle in obstacles[target.name]:
            # a command alone stands in the table as it is typed
            alone = (
                obstacle.fix.startswith("`") and obstacle.fix.find("`", 1) == len(obstacle.fix) - 1
            )
            fix = obstacle.fix.strip("`") if alone else obstacle.fix
            yield Finding(status="optional", what=what, found=obstacle.what, fix=fix)


def _builder() -> Finding:
    try:
        version = metadata.version(_RTX)
    except metadata.PackageNotFoundError:
        return Finding(
            status="optional",
            what="tensorrt_rtx",
            found="not installed: no engines for RTX targets, no early look at what TensorRT runs",
            fix="pip install 'edgepack[rtx]'",
        )
    wanted = {
        target.tensorrt.version
        for target in all_targets()
        if target.tensorrt is not None and target.tensorrt.module == "tensorrt_rtx"
    }
    if version in wanted:
        return Finding(status="ok", what="tensorrt_rtx", found=version)
    needed = " or ".join(sorted(wanted))
    return Finding(
        status="optional",
        what="tensorrt_rtx",
        found=f"{version}: engines of the RTX targets run in {needed} alone",
        fix=f"pip install '{_RTX}=={needed}'",
    )


def _gpu(facts: Mapping[str, Any]) -> Finding:
    if facts["gpus"]:
        gpu = facts["gpus"][0]
        name = f"{gpu['name']}, compute capability {gpu['compute_capability']}"
        driver = f", driver {facts['driver']}" if facts["driver"] else ""
        more = f", and {len(facts['gpus']) - 1} more" if len(facts["gpus"]) > 1 else ""
        return Finding(status="ok", what="NVIDIA GPU", found=name + more + driver)
    return Finding(
        status="optional",
        what="NVIDIA GPU",
        found=f"does not answer: {facts['gpu_fault']}",
        fix="install or restart its driver; in a container, `docker run --gpus all`",
    )


def _every_jetpack() -> list[Target]:
    found = []
    for target in all_targets():
        names = [f"{target.module_name}@{jetpack}" for jetpack in target.jetpacks]
        found += [find_target(name) for name in names] or [target]
    return found


def _targets_of(facts: Mapping[str, Any], targets: list[Target]) -> list[Target]:
    """Return the targets that this machine is one of: each TensorRT once, a Jetson's newest."""
    capabilities = {gpu["compute_capability"] for gpu in facts["gpus"]}
    usual = {target.name for target in all_targets()}
    chosen: dict[tuple[str, str], Target] = {}
    for target in targets:
        tensorrt = target.tensorrt
        if tensorrt is None:
            continue
        if target.flash is not None or facts["soc"]:
            # JetPacks come in order: the last one that is not newer than this device's, or the
            # usual one where a container hides it
            old_enough = (
                target.name in usual
                if facts["l4t"] is None
                else _numbers(tensorrt.l4t) <= _numbers(facts["l4t"])
            )
            if _is_module(target, facts) and old_enough:
                chosen = {("", ""): target}
        elif not capabilities.isdisjoint(tensorrt.compute_capabilities):
            chosen.setdefault((tensorrt.module, tensorrt.version), target)
    return list(chosen.values())


def _is_module(target: Target, facts: Mapping[str, Any]) -> bool:
    part = facts["module_part"] or ""
    return target.flash is not None and any(part.startswith(known) for known in target.flash.parts)


def _numbers(version: str | None) -> list[int]:
    return [int(part) for part in (version or "").split(".") if part.isdigit()]
