"""`edgepack run`: serve a bundle on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packager.cli.options import bundle_argument, cache_dir

if TYPE_CHECKING:
    from pathlib import Path


@click.command("run")
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--threads", type=click.IntRange(min=0), help="Intra-op threads; 0: one per core.")
@cache_dir
def command(bundle: Path, host: str, port: int, threads: int | None, cache_dir: Path) -> None:
    """Serve a bundle here until Ctrl-C.

    It is ready when GET /v2/health/ready answers 200.
    """
    from packager.bundle.local import serve

    serve(bundle, host=host, port=port, threads=threads, cache_dir=cache_dir)
