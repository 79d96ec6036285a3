"""`edgepack demo`: the whole way on a real model, no input needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.options import cache_dir
from packager.console import Console, human_size, table


@click.command("demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("dist"),
              show_default=True)  # fmt: skip
@cache_dir
def command(output: Path, cache_dir: Path) -> None:
    """Take a real classifier the whole way, no input needed."""
    from packager.demo import run_demo

    console = Console()
    result = run_demo(output, cache_dir=cache_dir, reporter=console)
    console.data(result, _lines(result))


def _lines(result: dict[str, Any]) -> list[str]:
    lines = ["", f"the photo `{result['photo']}`, asked over HTTP:"]
    lines += [f"  {share:6.1%}  {label}" for label, share in result["answers"]]
    sizes = f"{human_size(result['original_bytes'])} in fp32, "
    sizes += f"{human_size(result['artifact_bytes'])} as {result['precision']}"
    server = f"first answer {result['first_answer_s']:.2f} s after its start, "
    server += f"then {result['answer_ms']:.1f} ms a photo, {result['memory_mb']:.0f} MB"
    rows = [
        ("bundle", f"{result['bundle']}, {human_size(result['bundle_bytes'])}, nothing to install"),
        ("model", sizes),
        ("agreement", f"cosine {result['cosine']:.4f} with the original"),
        ("server", server),
        ("next", f"edgepack run {result['bundle']}"),
    ]
    if result["speedup"]:
        rows.insert(2, ("speed", f"{result['speedup']:.2f} times the original on this machine"))
    lines += ["", *table(rows)]
    return lines
