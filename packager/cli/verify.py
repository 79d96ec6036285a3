"""`edgepack verify`: integrity and self-test of a bundle or an unpacked release."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packager.cli.options import as_json, bundle_argument, cache_dir
from packager.console import Console

if TYPE_CHECKING:
    from pathlib import Path


@click.command("verify")
@bundle_argument
@click.option("--self-test/--no-self-test", default=True, help="Also run the golden samples.")
@cache_dir
@as_json
def command(bundle: Path, cache_dir: Path, *, self_test: bool, as_json: bool) -> None:
    """Check every byte of a bundle and what it computes.

    The golden samples must come out as they did when it was built.
    """
    from packager.bundle.local import verify

    result, lines = verify(bundle, self_test=self_test, cache_dir=cache_dir)
    Console(as_json=as_json).data(result, lines)
