"""`edgepack report`: one HTML page that shows what a build decided, and why."""

from __future__ import annotations

from pathlib import Path

import click

from packager.cli.options import as_json, bundle_argument, cache_dir
from packager.console import Console, human_size

_FILE = click.Path(path_type=Path)


@click.command("report")
@bundle_argument
@click.option("-o", "--output", type=_FILE, default=Path("report.html"), show_default=True)
@click.option("--record", type=_FILE, help="By default BUNDLE's name with .record.json.")
@cache_dir
@as_json
def command(
    bundle: Path, output: Path, record: Path | None, cache_dir: Path, *, as_json: bool
) -> None:
    """Show what a build decided and why, as one HTML page that needs no network.

    It is made from the record that lies beside the bundle; the bundle is verified first.
    """
    from packager.report import write_report

    done = write_report(bundle, output, record=record, cache_dir=cache_dir)
    lines = [f"{done['report']}  {human_size(done['size_bytes'])}"]
    if done["unknown"]:
        lines.append("the record says nothing about: " + ", ".join(done["unknown"]))
    Console(as_json=as_json).data(done, lines)
