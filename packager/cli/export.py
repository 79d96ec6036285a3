"""`edgepack export`: a bundle as what a machine's own service manager starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.options import as_json, bundle_argument, cache_dir
from packager.console import Console

# As `packager.bundle.units.FORMATS` has them; named here so that `--help` imports nothing.
_FORMATS = ("systemd", "container", "launchd")


@click.command("export")
@bundle_argument
@click.option(
    "--format", "kind", type=click.Choice(_FORMATS), required=True,
    help="systemd: a hardened service and its socket; container: a Containerfile; launchd: a job "
    "that keeps that container running on a developer's Mac.",
)  # fmt: skip
@click.option(
    "-o", "--output", "out_dir", type=click.Path(path_type=Path, file_okay=False), required=True,
    metavar="DIR", help="Where the files are written.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="The IP address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True)
@click.option("--tls", is_flag=True, help="With a certificate and its key, as credentials.")
@click.option("--client-ca", is_flag=True, help="Clients show certificates too.")
@click.option("--keys", is_flag=True, help="With a file of API keys, as a credential.")
@click.option("--insecure", is_flag=True, help="Listen beyond the machine without TLS.")
@click.option("--name", "names", multiple=True, help="A name clients call the server by.")
@click.option("--path", metavar="PATH", help="Where the bundle lies on the device.")
@click.option(
    "--python", default="/usr/bin/python3", show_default=True, help="The device's Python."
)
@click.option("--base", metavar="IMAGE", help="What the container starts from.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
@cache_dir
@as_json
def command(
    bundle: Path, kind: str, out_dir: Path, cache_dir: Path,
    *, force: bool, as_json: bool, **place: Any,
) -> None:  # fmt: skip
    """Write what starts a bundle on a machine.

    The bundle is verified first; the files name it and hold nothing of it.
    """
    from packager.bundle.units import Place, export

    paths = export(
        bundle, kind, place=Place(**place), out_dir=out_dir, force=force, cache_dir=cache_dir
    )
    Console(as_json=as_json).data({"files": [str(path) for path in paths]}, map(str, paths))
