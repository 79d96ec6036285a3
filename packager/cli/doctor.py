"""`edgepack doctor`: what this host lacks, each with its fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packager.cli.options import as_json, cache_dir
from packager.console import Console, table

if TYPE_CHECKING:
    from pathlib import Path


@click.command("doctor")
@cache_dir
@as_json
def command(cache_dir: Path, *, as_json: bool) -> None:
    """Tell what this host lacks, each with its fix."""
    from packager.host.examine import examine_host

    findings = examine_host(cache_dir)
    rows = [("", "what", "found", "fix")]
    rows += [(f.status, f.what, f.found, f.fix or "") for f in findings]
    Console(as_json=as_json).data([f.to_json() for f in findings], table(rows))
    if any(f.status == "missing" for f in findings):
        raise click.exceptions.Exit(4)
