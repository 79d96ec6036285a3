"""`edgepack targets`: what can be built for, and which of it this machine is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from packager.cli.options import as_json
from packager.console import Console, table
from packager.target import all_targets, find_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from packager.target import Target

_MODULES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
# What holds in a family, in the order in which they are listed.
_FAMILIES = {
    "cpu": "CPUs, by ONNX Runtime",
    "jetson": "Jetson: engines are built on the device; `-t NAME@JETPACK`, or the one in brackets",
    "server": "servers with an NVIDIA GPU: engines are built on the device",
    "rtx": "RTX and DGX Spark: engines are built here, without a GPU",
}


@click.group("targets", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the targets, show one, or detect which this machine is."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@command.command("list")
@as_json
def list_(*, as_json: bool) -> None:
    """List every target."""
    targets = all_targets()
    Console(as_json=as_json).data([asdict(t) for t in targets], _by_family(targets))


@command.command("show")
@click.argument("name")
@as_json
def show(name: str, *, as_json: bool) -> None:
    """Show everything known about target NAME, or about NAME@JETPACK."""
    target = find_target(name)
    Console(as_json=as_json).data(asdict(target), _flat(asdict(target)))


@command.command("detect")
@as_json
def detect(*, as_json: bool) -> None:
    """Tell which targets this machine can serve, and why not the others."""
    from packager.bundle.device import detect_device, reasons_against, reasons_against_engines

    facts = detect_device()
    targets = [_with_jetpack_of(facts, target) for target in all_targets()]
    against = {target.name: reasons_against(target, facts) for target in targets}
    on_gpu = [t for t in targets if t.tensorrt is not None and not against[t.name]]
    engines = reasons_against_engines(on_gpu) if on_gpu else {}
    for target in on_gpu:
        engines[target.name] = [*_other_module(facts, target), *engines[target.name]]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]
    lines += ["", *_by_verdict(against, engines)]
    value = {"device": facts, "targets": against, "engines": engines}
    Console(as_json=as_json).data(value, lines)


def _by_family(targets: Sequence[Target]) -> Iterator[str]:
    """Yield one table with a heading for each family."""
    rows = [("  target", "JetPack", "engine", "int8", "what it is")]
    families = []
    for family in _FAMILIES:
        for target in targets:
            if target.family == family:
                jetpacks = " ".join(
                    f"[{word}]" if word == target.jetpack else word for word in target.jetpacks
                )
                scheme = target.quantization.in_words()
                rows.append(
                    (f"  {target.module_name}", jetpacks, _engine(target), scheme, target.title)
                )
                families.append(family)
    lines = table(rows)
    yield lines[0]
    last = ""
    for family, line in zip(families, lines[1:], strict=True):
        if family != last:
            yield from ("", _FAMILIES[family])
        last = family
        yield line


def _engine(target: Target) -> str:
    if target.tensorrt is None:
        return f"{target.engine.name} {target.engine.version}"
    return f"{_MODULES[target.tensorrt.module]} {target.tensorrt.version}"


def _with_jetpack_of(facts: Mapping[str, Any], target: Target) -> Target:
    """Return a Jetson target with the JetPack that this device has, where the file offers it."""
    found = (facts.get("gpu") or {}).get("jetpack") or ""
    release = ".".join(found.split(".")[:2])
    return find_target(f"{target.module_name}@{release}") if release in target.jetpacks else target


def _other_module(facts: Mapping[str, Any], target: Target) -> list[str]:
    part = (facts.get("gpu") or {}).get("module_part")
    if target.flash is None or not part or part.startswith(target.flash.parts):
        return []
    return [f"it is for the module {' or '.join(target.flash.parts)}, and this one is {part}"]


def _by_verdict(
    against: Mapping[str, list[str]], engines: Mapping[str, list[str]]
) -> Iterator[str]:
    """Yield each verdict with the targets that it is about."""
    verdicts: dict[str, list[str]] = {}
    for name, reasons in against.items():
        verdict = "this machine is"
        if reasons:
            verdict = "; ".join(reasons)
        elif engines.get(name):
            verdict = f"on the CPU alone: {'; '.join(engines[name])}"
        verdicts.setdefault(verdict, []).append(name)
    for verdict in sorted(verdicts, key=lambda words: words != "this machine is"):
        yield from (verdict, *(f"  {name}" for name in verdicts[verdict]))


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += _flat(item, f"{prefix}{key}.")
        elif key == "uncertain":
            lines += [f"{prefix}{key}: {sentence}" for sentence in item]
        elif item not in (None, (), [], ""):
            text = ", ".join(map(str, item)) if isinstance(item, tuple | list) else str(item)
            lines.append(f"{prefix}{key}: {text}")
    return lines
