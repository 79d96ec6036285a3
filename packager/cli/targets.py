"""`edgepack targets`: what can be built for, and which of it this machine is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from packager.cli.options import as_json
from packager.console import Console, table
from packager.target import all_targets, find_target


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
    rows = [("target", "engine", "int8", "what it is")]
    rows += [
        (t.name, f"{t.engine.name} {t.engine.version}", t.quantization.in_words(), t.title)
        for t in targets
    ]
    Console(as_json=as_json).data([asdict(t) for t in targets], table(rows))


@command.command("show")
@click.argument("name")
@as_json
def show(name: str, *, as_json: bool) -> None:
    """Show everything known about target NAME."""
    target = find_target(name)
    Console(as_json=as_json).data(asdict(target), _flat(asdict(target)))


@command.command("detect")
@as_json
def detect(*, as_json: bool) -> None:
    """Tell which targets this machine can serve, and why not the others."""
    from packager.bundle.device import detect_device, reasons_against

    facts = detect_device()
    verdicts = [(target, reasons_against(target, facts)) for target in all_targets()]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]
    lines.append("")
    lines += table(
        [("target", "here"), *((t.name, "; ".join(why) or "yes") for t, why in verdicts)]
    )
    value = {"device": facts, "targets": {t.name: why for t, why in verdicts}}
    Console(as_json=as_json).data(value, lines)


def _flat(value: dict[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += _flat(item, f"{prefix}{key}.")
        elif item not in (None, (), []):
            text = ", ".join(map(str, item)) if isinstance(item, tuple | list) else str(item)
            lines.append(f"{prefix}{key}: {text}")
    return lines
